"""Several models at once: what each computes is what it would alone."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import noisin.replicas as replicas_module
from cases import ROWS, kinds_of, make, seeded
from conftest import assert_bit_equal, flat
from noisin import (
    GRU,
    LSTM,
    BernoulliHead,
    Embedding,
    Linear,
    Replicas,
    plain,
    regularize,
    sampling,
)

T, B, F, H = 4, 3, 3, 5
SEEDS = (11, 12, 13)


class Network(nn.Module):
    """Embedding, recurrent layers, dense layer and head, with noise in each."""

    def __init__(self, noise="hidden * Gaussian(0.3)", cell=LSTM):
        super().__init__()
        self.embedding = Embedding(7, F, noise="row * Bernoulli(keep=0.5) @ sequence")
        self.rnn = cell(F, H, num_layers=2, dropout=0.4, noise=noise)
        self.dense = Linear(H, H, noise="weight + Gaussian(0.1) & input * Bernoulli(keep=0.8)")
        self.drop = nn.Dropout(0.0)
        self.head = BernoulliHead(H, 4, noise="input * Gaussian(Learned(0.3))")

    def forward(self, ids, state=None):
        output, state = self.rnn(self.embedding(ids), state)
        return self.head(self.drop(torch.tanh(self.dense(output)))), state


def networks(*noises, cell=LSTM):
    torch.manual_seed(1)
    return [Network(noise, cell) for noise in noises]


def alone(models, args):
    """Run each model by itself, with a seed of its own."""
    found = []
    for model, seed, own in zip(models, SEEDS, args, strict=False):
        torch.manual_seed(seed)
        found.append(model(*own))
    return found


def gradients(results, models):
    """Gradients of all parameters of all models, of the same function of each one's results."""
    total = sum(one.square().sum() for one in flat(results))
    named = [parameter for model in models for parameter in model.parameters()]
    return torch.autograd.grad(total, named, allow_unused=True, materialize_grads=True)


def unstacked(results, count):
    return [[one[r] for one in flat(results)] for r in range(count)]


IDS = torch.randint(7, (T, B), generator=torch.Generator().manual_seed(2))
LEVELS = [f"hidden * Gaussian({std})" for std in (0.3, 0.6, 0.9)]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_a_network_of_noisy_layers(together, cell):
    models = networks(*LEVELS, cell=cell)
    replicas = Replicas(models, seeds=SEEDS, together=together)
    found = replicas(IDS)
    expected = alone(models, [(IDS,)] * 3)
    compare = torch.testing.assert_close if together else assert_bit_equal
    compare(unstacked(found, 3), [flat(one) for one in expected])
    grads, others = gradients(found, models), gradients(expected, models)
    torch.testing.assert_close(grads, others, rtol=1e-4, atol=1e-5)
    differ = found[0][0] - found[0][1]
    assert differ.abs().max() > 0.01


@pytest.mark.parametrize(("row", "kind"), [(row, kinds_of(row)[0]) for row in ROWS])
def test_every_row_together(row, kind):
    models = [make(kind, F, H, 2, noise=row) for _ in SEEDS]
    x = seeded(T, B, F)
    found = Replicas(models, seeds=SEEDS, together=True)(x)
    expected = alone(models, [(x,)] * 3)
    torch.testing.assert_close(unstacked(found, 3), [flat(one) for one in expected])
    torch.testing.assert_close(
        gradients(found, models), gradients(expected, models), rtol=1e-4, atol=1e-5
    )


def test_noises_of_different_forms():
    """What one pass does not serve has passes of its own."""
    noises = [
        "none",
        "Zoneout(hidden=0.3)",
        "hidden * Gaussian(0.3) & output * Bernoulli(keep=0.5)",
    ]
    torch.manual_seed(0)
    replicas = Replicas(nn.LSTM(F, H), noises, seeds=SEEDS, together=True)
    assert [str(one.noise) for one in replicas][1:] == noises[1:]
    x = seeded(T, B, F)
    expected = alone(list(replicas), [(x,)] * 3)
    torch.testing.assert_close(unstacked(replicas(x), 3), [flat(one) for one in expected])
    replicas.eval()
    expected = [one(x) for one in replicas]
    torch.testing.assert_close(unstacked(replicas(x), 3), [flat(one) for one in expected])


@pytest.mark.parametrize("noise", ["hidden * Gaussian(0.3)", "none"])
def test_arguments_of_each_replica(noise):
    replicas = Replicas(LSTM(F, H), [noise] * 3, seeds=SEEDS, together=True)
    x, h = seeded(3, T, B, F), seeded(3, 1, B, H)
    found = replicas(x, (h, 2 * h), in_dims=0)
    expected = alone(list(replicas), [(x[r], (h[r], 2 * h[r])) for r in range(3)])
    torch.testing.assert_close(unstacked(found, 3), [flat(one) for one in expected])
    found = replicas(x[0], found[1], in_dims=(None, 0))
    assert found[0].shape == (3, T, B, H)


@pytest.mark.parametrize("together", [False, True])
def test_streams_go_on_and_are_saved(together):
    models = networks(*LEVELS)
    replicas = Replicas(models, seeds=SEEDS, together=together)
    first = replicas(IDS)[0]
    saved = copy.deepcopy(replicas.state_dict())
    before = torch.get_rng_state()
    second = replicas(IDS)[0]
    assert_bit_equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    other = Replicas(networks(*LEVELS), seeds=(5, 6, 7), together=together)
    other.load_state_dict(saved)
    assert_bit_equal(other(IDS)[0], second)
    torch.manual_seed(SEEDS[1])
    expected = [models[1](IDS)[0] for _ in range(2)]
    torch.testing.assert_close([first[1], second[1]], expected)


@pytest.mark.parametrize("together", [False, True])
def test_training_is_that_of_each_alone(together):
    replicas = Replicas(networks(*LEVELS), seeds=SEEDS, together=together)
    others = networks(*LEVELS)
    sgd = torch.optim.SGD(replicas.parameters(), lr=0.1)
    for _ in range(5):
        sgd.zero_grad()
        replicas(IDS)[0].square().mean((1, 2, 3)).sum().backward()
        sgd.step()
    for model, seed in zip(others, SEEDS, strict=True):
        torch.manual_seed(seed)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            sgd.zero_grad()
            model(IDS)[0].square().mean().backward()
            sgd.step()
    for model, other in zip(replicas, others, strict=True):
        torch.testing.assert_close(dict(model.named_parameters()), dict(other.named_parameters()))


def test_sampling_draws_for_each():
    replicas = Replicas(networks(*LEVELS), seeds=SEEDS, together=True).eval()
    assert_bit_equal(replicas(IDS)[0], replicas(IDS)[0])
    with sampling(replicas):
        first, second = replicas(IDS)[0], replicas(IDS)[0]
    assert (first != second).any()


def test_packed_sequences_run_in_turn():
    lengths = torch.tensor([2, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(seeded(T, B, F), lengths, enforce_sorted=False)
    replicas = Replicas(LSTM(F, H), LEVELS, seeds=SEEDS, together=True)
    found = replicas(packed)[0]
    expected = alone(list(replicas), [(packed,)] * 3)
    assert len(found) == 3
    for one, (alone_one, _) in zip(found, expected, strict=True):
        pad = nn.utils.rnn.pad_packed_sequence
        assert_bit_equal(pad(one)[0], pad(alone_one)[0])


def test_a_replica_is_a_model():
    replicas = Replicas(LSTM(F, H), LEVELS)
    assert len(replicas) == 3
    assert isinstance(replicas[1], LSTM)
    assert str(replicas[1].noise) == LEVELS[1]
    assert replicas[0].weight_hh_l0.data_ptr() != replicas[1].weight_hh_l0.data_ptr()
    assert len(set(replicas.seeds)) == 3


@pytest.mark.parametrize(
    ("make_replicas", "rule"),
    [
        (lambda: Replicas(LSTM(F, H)), "need noises or seeds"),
        (lambda: Replicas([]), "at least one model"),
        (lambda: Replicas(LSTM(F, H), LEVELS, seeds=[1]), "one a replica, 3; got 1"),
        (lambda: Replicas([LSTM(F, H), LSTM(F, H + 1)]), "same names, shapes"),
        (lambda: Replicas(LSTM(F, H), ["row * Gaussian(1.0)"]), "row"),
        (lambda: Replicas(nn.Linear(2, 3), ["hidden * Gaussian(1.0)"]), "must have an RNN"),
    ],
)
def test_bad_replicas_are_refused(make_replicas, rule):
    with pytest.raises(ValueError, match=rule):
        make_replicas()


@pytest.mark.parametrize(
    ("dims", "rule"),
    [(1, "in_dims must be 0 or None"), ((None, 0), "for each of 1"), (0, "3 replicas in front")],
)
def test_bad_arguments_are_refused(dims, rule):
    with pytest.raises(ValueError, match=rule):
        Replicas(LSTM(F, H), LEVELS)(seeded(T, B, F), in_dims=dims)


def test_other_modules_decide_what_is_together():
    models = networks(*LEVELS)
    models[1].drop.p = 0.9
    replicas = Replicas(models, seeds=SEEDS, together=True)
    found = unstacked(replicas(IDS), 3)
    expected = alone(models, [(IDS,)] * 3)
    torch.testing.assert_close(found, [flat(one) for one in expected])
    regularize(models[0].rnn, None)
    replicas(IDS)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A value that cannot be hashed, though its class can."""

    sizes: list


class Scaled(nn.Module):
    """A model with numbers that are no tensors."""

    def __init__(self, **settings):
        super().__init__()
        self.rnn = LSTM(F, H, noise=LEVELS[0])
        vars(self).update(settings)

    def forward(self, x):
        gain = self._gain * getattr(self, "sampling", 1.0)
        return self.rnn(x)[0] * self.scale * gain * (self.scales[0] if self.scales else 1)


@pytest.mark.parametrize(
    "other", [{"scale": 10.0}, {"_gain": 10.0}, {"sampling": 10.0}, {"scales": [3.0]}, {}]
)
def test_settings_of_a_model_stay_its_own(other):
    """What is no weight and no noise is not stacked: such replicas have passes of their own."""
    settings = {"scale": 1.0, "_gain": 1.0, "scales": [], "hooks": [], "_sizes": Sizes([1])}
    models = [Scaled(**settings), Scaled(**{**settings, **other})]
    if not other:
        models[1].register_forward_hook(lambda module, args, output: 10 * output)
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(T, B, F)
    first, second = Replicas(models, seeds=[1, 1], together=True)(x)
    assert torch.allclose(second / first, torch.tensor(3.0 if "scales" in other else 10.0))


def test_copies_of_a_parametrized_model_run_together():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(F, F)), Linear(F, F))
    models = [copy.deepcopy(model) for _ in SEEDS]
    assert replicas_module._alike(models) == [[0, 1, 2]]


def test_what_one_replica_was_asked_for_meanwhile_leaves_nothing():
    replicas = Replicas(networks(*LEVELS[:1] * 3), seeds=SEEDS, together=True)
    assert replicas_module._alike(list(replicas)) == [[0, 1, 2]]
    with sampling(replicas[0]), plain(replicas[1]):
        assert replicas_module._alike(list(replicas)) == [[0], [1], [2]]
    assert replicas_module._alike(list(replicas)) == [[0, 1, 2]]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_region_that_runs_again_is_refused(together, reentrant):
    """It would draw other noise the second time, and its gradients would be of neither."""
    model = Replicas(networks("hidden * Gaussian(0.3)")[0].rnn, seeds=[1, 2], together=together)
    x = seeded(T, B, F).requires_grad_()
    with pytest.raises(RuntimeError, match="let the checkpoint be inside of their models"):
        checkpoint(model, x, use_reentrant=reentrant)


class Checkpointed(nn.Module):
    def __init__(self, layer, used):
        super().__init__()
        self.layer, self.used = layer, used

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=False)[0] if self.used else self.layer(x)[0]


def test_a_checkpoint_inside_draws_the_same():
    layer = LSTM(F, H, noise="hidden * Gaussian(1)")
    found = []
    for used in (False, True):
        model = Replicas(Checkpointed(layer, used), seeds=[1, 2], together=False)
        output = model(seeded(T, B, F))
        found.append([output, *torch.autograd.grad(output.square().sum(), model.parameters())])
    assert_bit_equal(*found)


def test_where_nothing_is_drawn_a_region_may_run_again():
    model = Replicas(LSTM(F, H, noise="hidden * Gaussian(1)"), seeds=[1, 2]).eval()
    x = seeded(T, B, F).requires_grad_()
    output = checkpoint(lambda x: model(x)[0], x, use_reentrant=False)
    assert_bit_equal(output, model(x)[0])
    with sampling(model), pytest.raises(RuntimeError, match="inside of their models"):
        checkpoint(lambda x: model(x)[0], x, use_reentrant=False)


@pytest.mark.parametrize("training", [True, False])
def test_buffers_are_those_of_each_alone(training):
    """Of batch normalization, which keeps what it has seen in training."""
    found = []
    for together in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(Linear(F, H, noise="input * Gaussian(0.5)"), nn.BatchNorm1d(H))
        replicas = Replicas(model, seeds=SEEDS, together=together).train(training)
        replicas(seeded(B, F))
        found.append([one.clone() for one in replicas.buffers()])
    torch.testing.assert_close(*found)
    assert found[0][2] == int(training)


@pytest.mark.parametrize(
    ("layer", "instead"),
    [(nn.Dropout(0.5), "a term of noise"), (nn.GRU(F, H), r"regularize\(model, None\)")],
    ids=["dropout", "gru"],
)
def test_what_one_pass_cannot_run_is_refused(layer, instead):
    """Draws of torch would come from another stream than that of the replica."""
    models = [nn.Sequential(Linear(F, F), copy.deepcopy(layer)) for _ in SEEDS]
    for one in models[1:]:
        one.load_state_dict(models[0].state_dict())
    replicas = Replicas(models, seeds=SEEDS, together=True)
    with pytest.raises(ValueError, match=rf"torch's own .*: take {instead} .*; got 1"):
        replicas(seeded(T, B, F))
    in_turn = Replicas(models, seeds=SEEDS)  # on the CPU
    assert len(flat(in_turn(seeded(T, B, F)))) >= 1


@pytest.mark.parametrize("drops", [(0.0, 0.5, 0.5), (0.5, 0.0, 0.0)])
def test_each_group_decides_whether_one_pass_can_run_it(drops):
    models = [nn.Sequential(Linear(F, F), nn.Dropout(p)) for p in drops]
    replicas = Replicas(models, seeds=SEEDS, together=True)
    if drops[1:] == (0.0, 0.0):
        assert len(replicas(seeded(T, B, F))) == 3
        return
    with pytest.raises(ValueError, match="torch's own Dropout"):
        replicas(seeded(T, B, F))


def test_draws_of_torch_are_refused_together():
    class Dropping(Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    with pytest.raises(RuntimeError, match=r"draws by operations of torch .* together=False"):
        Replicas(Dropping(F, H), seeds=SEEDS, together=True)(seeded(B, F))


def test_dropout_between_layers_is_ours():
    replicas = Replicas(LSTM(F, H, 2, dropout=0.5), [None] * 2, seeds=SEEDS[:2], together=True)
    expected = alone(list(replicas), [(seeded(T, B, F),)] * 2)
    assert flat(replicas(seeded(T, B, F)))[0].shape == (2, T, B, H)
    assert not torch.equal(expected[0][0], expected[1][0])
