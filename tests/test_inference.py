"""Averaging over noise: draws folded into the batch, noise kept on in evaluation."""

import pytest
import torch
from torch import nn

from cases import seeded
from conftest import assert_bit_equal, assert_close_to_float64
from noisin import (
    GRU,
    LSTM,
    Bernoulli,
    Gaussian,
    at,
    fold,
    predict,
    predictive,
    regularize,
    sampling,
    unfold,
)

T, B, F, H, K = 4, 3, 2, 5, 4
NOISE = at.hidden * Gaussian(0.5) & at.output * Bernoulli(keep=0.5)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_fold_repeats_the_whole_batch_for_each_draw_in_turn(dim):
    x = seeded(T, B, F)
    folded = fold(x, K, dim)
    assert folded.shape[dim] == K * x.shape[dim]
    for k, part in enumerate(folded.chunk(K, dim)):
        assert_bit_equal(part, x)
        assert_bit_equal(unfold(folded, K, dim)[k], x)
    assert unfold(folded, K, dim).shape == (K, *x.shape)


def test_fold_and_unfold_take_the_batch_second_by_default():
    x = seeded(T, B, F)
    assert_bit_equal(fold(x, K), fold(x, K, 1))
    assert_bit_equal(unfold(fold(x, K), K), unfold(fold(x, K, 1), K, 1))
    assert_bit_equal(fold(x, 1), x)
    assert_bit_equal(unfold(x, 1), x[None])


def test_fold_of_one_dimension_and_of_class_indices():
    assert fold(torch.tensor([1, 2]), 2, 0).tolist() == [1, 2, 1, 2]
    assert unfold(torch.tensor([1, 2, 1, 2]), 2, 0).tolist() == [[1, 2], [1, 2]]


def test_gradients_pass_fold():
    x = seeded(T, B, F).requires_grad_()
    (grad,) = torch.autograd.grad(fold(x, K).sum(), x)
    assert_bit_equal(grad, torch.full_like(x, K))


@pytest.mark.parametrize("samples", [0, -1])
def test_fewer_draws_than_one_are_refused(samples):
    for use in (fold, unfold):
        with pytest.raises(ValueError, match=str(samples)):
            use(seeded(T, B, F), samples)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="7"):
        unfold(seeded(T, 7, F), K)


def test_folded_draws_are_independent_and_are_what_each_would_be_alone():
    layer, x = LSTM(F, H, noise=NOISE).eval(), seeded(T, B, F)
    draws = layer.draw(fold(x, K), generator=torch.Generator().manual_seed(0))
    together = unfold(layer(fold(x, K), draws=draws)[0], K)
    for k in range(K):
        own = {p: tuple(v[:, k * B : (k + 1) * B] for v in vs) for p, vs in draws.items()}
        alone = layer(x, draws=own)[0].detach()
        assert_close_to_float64(together[k].detach(), alone, alone.double())
        assert k == 0 or not torch.equal(together[k], together[0])


def model():
    inner = nn.ModuleDict({"rnn": GRU(F, H, noise=NOISE), "plain": nn.GRU(F, H)})
    return nn.ModuleDict({"inner": inner, "rnn": LSTM(F, H, noise=NOISE)})


def noisy(net, x):
    """Return which of the model's layers give another output the second time."""
    layers = (net["inner"]["rnn"], net["inner"]["plain"], net["rnn"])
    return [not torch.equal(layer(x)[0], layer(x)[0]) for layer in layers]


def test_sampling_keeps_the_noise_of_every_layer_on_and_puts_it_off_again():
    net, x = model().eval(), seeded(T, B, F)
    assert noisy(net, x) == [False, False, False]
    with sampling(net) as same:
        assert same is net
        assert noisy(net, x) == [True, False, True]
        assert not any(module.training for module in net.modules())
    assert noisy(net, x) == [False, False, False]


def test_sampling_ends_with_an_error_too_and_may_be_nested():
    net, x = model().eval(), seeded(T, B, F)
    with sampling(net["rnn"]):
        with pytest.raises(KeyError), sampling(net):
            raise KeyError
        assert noisy(net, x) == [False, False, True]
    assert noisy(net, x) == [False, False, False]


def test_sampling_leaves_training_and_plain_layers_alone():
    net, x = model().train(), seeded(T, B, F)
    with sampling(net):
        assert noisy(net, x) == [True, False, True]
    assert all(module.training for module in net.modules())
    plain = LSTM(F, H).eval()
    expected = plain(x)
    with sampling(plain):
        assert_bit_equal(plain(x), expected)


def test_predictive_averages_probabilities():
    parts = -3 * seeded(K, T, B).abs()

    def average(dtype):
        return torch.log(torch.exp(parts.to(dtype)).mean(0))

    assert_close_to_float64(predictive(parts), average(torch.float32), average(torch.float64))
    assert predictive(parts).shape == (T, B)
    assert (predictive(parts) > parts.mean(0)).all()  # Jensen
    assert_bit_equal(predictive(parts[:1]), parts[0])


def test_predictive_neither_underflows_nor_loses_what_is_impossible():
    parts = torch.tensor([[-5000.0, -torch.inf, -torch.inf], [-5000.0, -1.0, -torch.inf]])
    ref64 = torch.tensor([-5000.0, -1 - torch.log(torch.tensor(2.0).double()).item()]).double()
    assert_close_to_float64(predictive(parts)[:2], ref64.float(), ref64)
    assert predictive(parts)[2] == -torch.inf


class Scores(nn.Module):
    """A model of log-probabilities, which remembers the modes it was called in."""

    def __init__(self, noise=NOISE, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.rnn, self.drop, self.read = LSTM(F, H, noise=noise), nn.Dropout(0.5), nn.Linear(H, 3)
        self.modes = []

    def forward(self, x, fail_at=None):
        self.modes.append((self.training, self.rnn.training, self.drop.training))
        if len(self.modes) == fail_at:
            raise KeyError(fail_at)
        return self.read(self.drop(self.rnn(x)[0]))


def probabilities(scores):
    return scores.softmax(-1)


def passes(net, x, samples, link=probabilities):
    """Return the predictions of so many calls, one by one, in evaluation."""
    net.eval()
    with torch.no_grad():
        if not samples:
            return [link(net(x))]
        with sampling(net):
            return [link(net(x)) for _ in range(samples)]


def means(parts, kind):
    """Return the mean of predictions in float32 and float64, by its definition."""
    for dtype in (torch.float32, torch.float64):
        stacked = torch.stack(parts).to(dtype)
        if kind == "arithmetic":
            yield stacked.sum(0) / len(parts)
        else:
            product = stacked.prod(0) ** (1 / len(parts))
            yield product / product.sum(-1, keepdim=True)


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("samples", [0, 1, 4])
def test_predict_is_the_mean_of_the_calls_of_one_seed(samples, count, average):
    nets, x = [Scores(seed=seed) for seed in range(count)], seeded(T, B, F)
    torch.manual_seed(5)
    parts = [part for net in nets for part in passes(net, x, samples)]
    assert len(parts) == count * max(samples, 1)
    torch.manual_seed(5)
    given = nets[0] if count == 1 else nets
    found = predict(given, x, samples=samples, average=average, link=probabilities)
    assert_close_to_float64(found, *means(parts, average))
    total = found.double().sum(-1)
    assert_close_to_float64(total, found.sum(-1).double(), torch.ones_like(total))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
def test_many_draws_of_16_bits_are_not_lost(dtype, average):
    """Their sum outgrows both types: float16 has no number above 65504, bfloat16 8 bits."""
    layer = regularize(nn.Linear(F, H, dtype=dtype), "input * Gaussian(0.1)", "", time_dim=0)
    x, samples = seeded(T, B, F).to(dtype), 2000
    shift = 40 if average == "arithmetic" else 0

    def link(scores):
        return shift + scores.softmax(-1)

    torch.manual_seed(5)
    found = predict(layer, x, samples=samples, average=average, link=link)
    torch.manual_seed(5)
    parts = torch.stack([one.double() for one in passes(layer, x, samples, link)])
    assert found.dtype == dtype
    mean = parts.mean(0) if average == "arithmetic" else parts.log().mean(0).softmax(-1)
    torch.testing.assert_close(found, mean.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_no_samples_are_the_plain_network():
    net, x = Scores(), seeded(T, B, F)
    before = torch.get_rng_state()
    assert_bit_equal(predict(net, x), net.eval()(x).detach())
    assert torch.equal(before, torch.get_rng_state())
    assert not predict(net, x, samples=2).requires_grad


def test_the_default_is_the_arithmetic_mean_of_the_result_itself():
    net, x = Scores(), seeded(T, B, F)
    found = []
    for options in ({}, {"average": "arithmetic", "link": lambda scores: scores}):
        torch.manual_seed(3)
        found.append(predict(net, x, samples=3, **options))
    assert_bit_equal(*found)


def test_an_average_of_many_draws_varies_less():
    net, x = Scores(), seeded(T, B, F)
    few = torch.stack([predict(net, x, samples=1) for _ in range(8)])
    many = torch.stack([predict(net, x, samples=30) for _ in range(8)])
    assert 0 < many.var(0).mean() < few.var(0).mean()


@pytest.mark.parametrize("samples", [0, 3])
def test_models_are_left_in_the_modes_they_were_in(samples):
    nets, x = [Scores(), Scores()], seeded(T, B, F)
    nets[0].drop.eval()
    nets[1].eval()
    nets[1].rnn.train()
    before = [[module.training for module in net.modules()] for net in nets]
    predict(nets, x, samples=samples)
    assert [[module.training for module in net.modules()] for net in nets] == before
    assert all(set(net.modes) == {(False, False, False)} for net in nets)
    assert not any(net.rnn.sampling for net in nets)


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("what", ["model", "link", "prediction"])
def test_modes_are_restored_after_an_error(what, samples):
    net, x = Scores(), seeded(T, B, F)
    net.drop.eval()
    before = [module.training for module in net.modules()]
    arguments = (x, 1 + (samples > 0)) if what == "model" else (x,)
    links = {"link": lambda scores: {}["missing"], "prediction": lambda scores: [scores]}
    with pytest.raises(TypeError if what == "prediction" else KeyError):
        predict(net, *arguments, samples=samples, link=links.get(what))
    assert [module.training for module in net.modules()] == before
    assert not net.rnn.sampling


def test_gradients_are_on_after_an_error():
    with pytest.raises(TypeError, match="link="):
        predict(LSTM(F, H), seeded(T, B, F))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"samples": -1}, "samples >= 0, got 1 and -1"),
        ({"average": "harmonic"}, "arithmetic or geometric, got 'harmonic'"),
        ({"model": []}, "needs a model .* got 0"),
        ({"model": Scores(noise=None), "samples": 2}, "2 samples"),
        ({"model": nn.Linear(F, 3), "samples": 2}, "2 samples"),
        ({"model": [Scores(), Scores(noise=None)], "samples": 2}, "2 samples"),
    ],
)
def test_what_has_no_meaning_is_refused(options, rule):
    model = options.pop("model", None)
    with pytest.raises(ValueError, match=rule):
        predict(Scores() if model is None else model, seeded(T, B, F), **options)


def test_torchs_dropout_between_layers_is_noise_to_average():
    torch.manual_seed(0)
    net, x = LSTM(F, H, 2, dropout=0.5), seeded(T, B, F)
    first = predict(net, x, samples=1, link=lambda result: result[0])
    assert not torch.equal(first, net.eval()(x)[0])


def test_the_geometric_mean_keeps_what_is_impossible_in_one_model_impossible():
    parts = torch.tensor([[0.0, 0.5, 0.5], [0.2, 0.4, 0.4]])
    nets = [nn.Linear(1, 3) for _ in parts]
    for net, part in zip(nets, parts, strict=True):
        nn.init.zeros_(net.weight)
        net.bias.data.copy_(part)
    found = predict(nets, torch.zeros(1, 1), average="geometric")
    assert_bit_equal(found[0, 0], torch.tensor(0.0))
    assert_close_to_float64(
        found, torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[0, 0.5, 0.5]]).double()
    )


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        regularize(self, "input * Gaussian(0.5)", where="*.linear1")

    def forward(self, x):
        return self.encoder(x)


def test_a_transformers_fast_path_does_not_skip_the_noise():
    """In evaluation without gradients torch reads the weights of linear1 and does not call it."""
    torch.manual_seed(0)
    model, x = Transformer(), seeded(2, 3, 8)
    plain = predict(model, x)
    assert (predict(model, x, samples=1) - plain).abs().max() > 1e-3
    assert torch.backends.mha.get_fastpath_enabled()
    with sampling(model.eval()), torch.no_grad():
        assert not torch.equal(model(x), model(x))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sampling(model):
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_prediction_may_lie_in_memory_that_is_used_again():
    layer, x = LSTM(F, H, noise=NOISE), seeded(T, B, F)
    memory = torch.empty(T, B, H)
    found = []
    for link in (lambda result: memory.copy_(result[0]), lambda result: result[0]):
        torch.manual_seed(1)
        found.append(predict(layer, x, samples=3, link=link))
    assert_bit_equal(*found)


def test_the_fast_path_comes_back_however_contexts_overlap():
    first, second = sampling(Transformer()), sampling(Transformer())
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled(), "the second still samples"
    second.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled()
    with sampling(LSTM(F, H, noise=NOISE)):
        assert torch.backends.mha.get_fastpath_enabled(), "nothing would be skipped"
