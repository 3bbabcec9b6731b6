"""torch's own features with noise on: autocast, seeds, checkpoints, second derivatives, vmap."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from cases import ROWS, kinds_of, make, seeded, zeros
from conftest import assert_bit_equal, assert_close_to_float64, assert_second_gradients
from models import IDS, Tagger
from noisin import Embedding, Linear, Recurrence, regularize
from noisin.functional import recur
from noisin.fused import products

T, B, F, H = 4, 3, 3, 5
KINDS = ("LSTM", "GRU", "tanh", "relu")
NOISES = [
    *(
        "hidden * Gaussian(0.3)",
        "weight_hh + Gaussian(0.3)",
        "weight_hh + Gaussian(0.3) @ sequence",
    ),
    *("input * Gaussian(0.3)", "recurrent + Gaussian(0.3) @ untied", "output + Gaussian(0.3)"),
    *("weight_ih * Gaussian(0.3) @ preactivation", "Zoneout(hidden=0.3)"),
    "weight_ih + Gaussian(Learned(0.3, per='weight')) & hidden * Gaussian(Learned(0.3))",
]


def dtypes(result):
    output, state = result
    output = output.data if isinstance(output, PackedSequence) else output
    return [output.dtype, *(s.dtype for s in (state if isinstance(state, tuple) else (state,)))]


def state_of(kind, batch=B, layers=1):
    h = seeded(layers, batch, H, seed=3)
    return (h, h) if kind == "LSTM" else h


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
def test_autocast_gives_the_dtypes_of_torch(noise, kind, given, packed):
    """And gradients, in the dtype of the parameters."""
    ours, theirs = make(kind, F, H, noise=noise), make(kind, F, H, package=nn)
    x, hx = seeded(T, B, F), state_of(kind) if given else None
    x = pack_padded_sequence(x, [T, *[T - 1] * (B - 1)]) if packed else x
    with autocast():
        output, state = ours(x, hx)
        assert dtypes((output, state)) == dtypes(theirs(x, hx))
    output = output.data if packed else output
    output.float().square().sum().backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    assert len(grads) >= 4
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    assert all(grad.isfinite().all() and (grad != 0).any() for grad in grads.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
def test_autocast_takes_its_own_draws_back(noise, kind):
    layer, x = make(kind, F, H, noise=noise), seeded(T, B, F)
    with autocast():
        torch.manual_seed(1)
        expected = layer(x)
        torch.manual_seed(1)
        assert_bit_equal(layer(x, draws=layer.draw(x)), expected)


@pytest.mark.parametrize("by", ["torch", "onednn"])
@pytest.mark.parametrize("batch", [1, 9])  # fewer and more steps than rows of W_hh
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
@pytest.mark.parametrize("noise", ["hidden * Gaussian(0.5)", "hidden * Gaussian(0.5) @ moments"])
def test_autocast_rounds_no_gradient_of_what_ran_without_it(noise, kind, batch, by, monkeypatch):
    """Where ``backward`` is called within autocast, and the forward pass was not."""
    if by == "onednn" and not products._works():
        pytest.skip("oneDNN's products are not to be had")
    monkeypatch.setattr(products, "library", lambda: by)
    layer, x, found = make(kind, F, H, noise=noise), seeded(20, batch, F), []
    for cast in (False, True):
        torch.manual_seed(1)
        loss = layer(x)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            found.append(torch.autograd.grad(loss, [*layer.parameters()]))
    assert_bit_equal(*found)


def test_autocast_rounds_no_gradient_of_weights_that_are_drawn_anew():
    """A GRU on the CPU, which autocast leaves in float32."""
    layer, x, found = make("GRU", F, H, noise="weight_ih * Gaussian(0.3)"), seeded(T, B, F), []
    for inside in (False, True):
        torch.manual_seed(1)
        with autocast():
            loss = layer(x)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(loss, [*layer.parameters()]))
    assert_bit_equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_autocast_is_torchs(kind):
    ours, theirs = make(kind, F, H, noise=NOISES[0]).eval(), make(kind, F, H, package=nn)
    theirs.load_state_dict(ours.state_dict())
    with autocast():
        assert_bit_equal(ours(seeded(T, B, F)), theirs(seeded(T, B, F)))


def test_autocast_around_the_recurrence_gives_the_dtypes_of_torch():
    torch.manual_seed(0)
    for noise in ("input * Gaussian(0.3)", "weight + Gaussian(0.3)"):
        with autocast():
            output = Linear(F, H, noise=noise)(seeded(T, B, F))
            assert output.dtype == nn.Linear(F, H)(seeded(T, B, F)).dtype == torch.bfloat16
    with autocast():
        vectors = Embedding(7, F, noise="row * Gaussian(0.3)")(IDS)
        assert vectors.dtype == nn.Embedding(7, F)(IDS).dtype
        state = torch.zeros(B, H)
        ours, _ = Recurrence(nn.GRUCell(F, H), F, H, noise=NOISES[0])(seeded(T, B, F), state)
        theirs = nn.GRUCell(F, H)(seeded(B, F), state)
    assert ours.dtype == theirs.dtype


LAYERS = {
    "linear": (lambda: Linear(F, H, noise="weight * Gaussian(0.3)"), lambda: (seeded(T, B, F),)),
    "embedding": (lambda: Embedding(7, F, noise="row * Gaussian(0.3)"), lambda: (IDS,)),
    "recurrence": (
        lambda: Recurrence(nn.GRUCell(F, H), F, H, noise="hidden + Gaussian(0.3)"),
        lambda: (seeded(T, B, F), torch.zeros(B, H)),
    ),
    "regularized": (lambda: regularize(Tagger(), NOISES[0]).rnn, lambda: (seeded(T, B, F),)),
}


def made(name):
    """Return a layer and its arguments; any name but those above is noise."""
    torch.manual_seed(0)
    if name in LAYERS:
        layer, arguments = LAYERS[name]
        return layer(), arguments()
    return make(kinds_of(name)[0], F, H, num_layers=2, noise=name), (seeded(T, B, F),)


def called(seed, layer, *args, **kwargs):
    torch.manual_seed(seed)
    return layer(*args, **kwargs)


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", [*ROWS, *LAYERS])
def test_a_seed_gives_the_same_noise_again(name):
    layer, arguments = made(name)
    once = called(1, layer, *arguments)
    assert_bit_equal(called(1, layer, *arguments), once)
    assert not torch.equal(first(called(2, layer, *arguments)), first(once))


@pytest.mark.parametrize("name", [*ROWS, *LAYERS])
def test_a_generator_is_used_and_no_other(name):
    layer, arguments = made(name)
    before = torch.get_rng_state()
    draws = [
        layer.draw(arguments[0], generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    results = [layer(*arguments, draws=one) for one in draws]
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator was used"
    assert_bit_equal(results[0], results[1])
    assert not torch.equal(first(results[0]), first(results[2]))
    without = called(1, layer, *arguments)
    torch.manual_seed(1)
    assert_bit_equal(layer(*arguments, draws=layer.draw(arguments[0])), without)


@pytest.mark.parametrize("name", [*ROWS, *LAYERS])
def test_copies_and_pickles_compute_the_same(name):
    layer, arguments = made(name)
    expected = called(1, layer, *arguments)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        assert_bit_equal(called(1, twin, *arguments), expected)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in layer.parameters()}


CHECKPOINTED = [
    *("hidden * Gaussian(0.3)", "weight_hh + Gaussian(0.3)", "weight_hh * Gaussian(Learned(0.3))"),
    *("weight_ih + Gaussian(0.3) @ cumulative", "Zoneout(hidden=0.3)", "output + Gaussian(0.3)"),
    "hidden * Gaussian(Learned(0.3)) & weight_ih * Bernoulli(keep=0.7) @ sequence",
]


def grads_of(layer, x, run):
    """Return the result and all gradients of one call, from one seed."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    output = run(x)
    torch.rand(7)  # what happens in between moves the generator on
    return output, torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("noise", CHECKPOINTED)
def test_a_checkpointed_region_draws_its_noise_again(noise, use_reentrant):
    layer, x = make("LSTM", F, H, noise=noise), seeded(T, B, F)
    expected = grads_of(layer, x, lambda x: layer(x)[0])

    def recomputed(x):
        x = x.clone().requires_grad_()
        torch.manual_seed(1)
        output = checkpoint(lambda x: layer(x)[0], x, use_reentrant=use_reentrant)
        torch.rand(7)
        output.square().sum().backward()  # autograd.grad is refused where it is reentrant
        return output, (x.grad, *(p.grad for p in layer.parameters()))

    assert_bit_equal(recomputed(x), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("noise", [noise for noise in CHECKPOINTED if "Learned" not in noise])
def test_a_checkpointed_region_takes_draws(noise, use_reentrant):
    layer, x = make("GRU", F, H, noise=noise), seeded(T, B, F)
    draws = layer.draw(x, generator=torch.Generator().manual_seed(0))
    expected = grads_of(layer, x, lambda x: layer(x, draws=draws)[0])
    x.requires_grad_()
    output = checkpoint(lambda x: layer(x, draws=draws)[0], x, use_reentrant=use_reentrant)
    output.square().sum().backward()
    assert_bit_equal((output, (x.grad, *(p.grad for p in layer.parameters()))), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["hidden * Gaussian(0.3)", "weight_hh + Gaussian(0.3)", *LAYERS])
def test_a_generator_in_a_checkpointed_region_is_refused(name, use_reentrant):
    layer, arguments = made(name) if name in LAYERS else (make("GRU", F, H, noise=name), [X])
    generator = torch.Generator().manual_seed(0)

    def region(anchor):
        draws = layer.draw(arguments[0], generator=generator)
        return anchor + first(layer(*arguments, draws=draws)).sum()

    anchor = torch.zeros((), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"default generator.*got generator="):
        checkpoint(region, anchor, use_reentrant=use_reentrant)
    region(anchor)


X = seeded(T, B, F)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
@pytest.mark.parametrize(
    "noise",
    [
        "hidden * Gaussian(0.3)",
        "weight_hh + Gaussian(0.3) & weight_hh * Gaussian(0.3)",
        "weight_ih * Gaussian(Learned(0.3))",
        "recurrent + Gaussian(0.3) @ preactivation",
    ],
)
def test_second_derivatives(noise, kind):
    """Of inputs, weights and learned spreads, noise in the weights of each step included."""
    torch.manual_seed(0)
    layer = make(kind, 2, 2, noise=noise, dtype=torch.float64)
    x = seeded(2, 1, 2, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters() if not name.startswith("bias")]

    def run(x, *weights):
        torch.manual_seed(1)
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, given, (x,), {"path": "reference"})[0]

    inputs = [x, *(layer.get_parameter(name).detach().clone() for name in names)]
    assert_second_gradients(run, tuple(one.requires_grad_() for one in inputs))


def cast(draws, dtype):
    """Return draws in another dtype, seeds as they are."""
    return {
        place: tuple(v.to(dtype) if v.is_floating_point() else v for v in values)
        for place, values in draws.items()
    }


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
@pytest.mark.parametrize(
    "noise",
    [
        *("hidden * Gaussian(0.3)", "recurrent + Gaussian(0.3) @ untied", "Zoneout(hidden=0.3)"),
        *("weight_hh + Gaussian(0.3)", "weight_ih * Gaussian(0.3) & hidden + Gaussian(0.3)"),
        *("weight_hh * Gaussian(0.3) @ sequence", "weight_ih + Gaussian(0.3) @ cumulative"),
    ],
)
def test_gradients_of_each_sequence_by_vmap(noise, kind):
    """Of all weights, with the sequence's own noise and that of the weights, which all share."""
    torch.manual_seed(0)
    layer = make(kind, F, H, noise=noise)
    x = seeded(T, B, F)
    draws = layer.draw(x)
    mapped = {p: vs for p, vs in draws.items() if not p.startswith("weight")}
    shared = {p: vs for p, vs in draws.items() if p.startswith("weight")}

    def loss(weights, x, own):
        own = {p: tuple(v[:, None] for v in vs) for p, vs in own.items()}
        state = zeros(layer, x[:, None])
        given = {"noise": layer.noise, "draws": cast({**own, **shared}, x.dtype)}
        return recur(layer.stack, [weights], x[:, None], state, **given)[0].square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 1, 1))(layer.all_weights[0], x, mapped)
    for b in range(B):
        others = []
        for dtype in (torch.float32, torch.float64):
            weights = [w.detach().to(dtype).requires_grad_() for w in layer.all_weights[0]]
            own = {p: tuple(v[:, b] for v in vs) for p, vs in mapped.items()}
            value = loss(weights, x[:, b].to(dtype), cast(own, dtype))
            others.append(torch.autograd.grad(value, weights))
        assert_close_to_float64([g[b].detach() for g in grads], *others)
    assert len(grads) == 4


@pytest.mark.parametrize("noise", ["weight_hh + Gaussian(0.3)", "weight_ih * Laplace(0.3)"])
@pytest.mark.parametrize("kind", ["LSTM", "tanh"])
def test_gradients_of_each_sequence_under_its_own_matrices(noise, kind):
    """By one vmap and by two: each member has matrices of its own, drawn at each step."""
    torch.manual_seed(0)
    layer = make(kind, F, H, noise=noise)
    x = seeded(4, T, 1, F)
    (place,) = layer.draw(x[0])
    seeds = torch.stack([layer.draw(one)[place][0] for one in x])

    def loss(weights, x, seeds):
        given = {"noise": layer.noise, "draws": {place: (seeds,)}}
        return recur(layer.stack, [weights], x, zeros(layer, x), **given)[0].square().sum()

    of_one = torch.func.grad(loss)
    weights = [w.detach() for w in layer.all_weights[0]]
    expected = [of_one(weights, *own) for own in zip(x, seeds, strict=True)]
    by_one = torch.func.vmap(of_one, (None, 0, 0))
    once = by_one(weights, x, seeds)
    pairs = x.unflatten(0, (2, 2)), seeds.unflatten(0, (2, 2)).transpose(0, 1)
    twice = torch.func.vmap(by_one, (None, 0, 1))(weights, *pairs)
    for index, found in enumerate(zip(*expected, strict=True)):
        torch.testing.assert_close(once[index], torch.stack(found))
        torch.testing.assert_close(twice[index].flatten(0, 1), torch.stack(found))
    assert (seeds[0] != seeds[1]).any()


@pytest.mark.parametrize("noise", ["hidden * Gaussian(0.3)", "weight_hh + Gaussian(0.3)"])
def test_an_ensemble_by_vmap(noise):
    """Weights of several models stacked, one noise for all."""
    torch.manual_seed(0)
    layers, x = [make("LSTM", F, H, noise=noise) for _ in range(3)], seeded(T, B, F)
    draws, state = layers[0].draw(x), zeros(layers[0], x)
    stacked = [
        torch.stack(weights) for weights in zip(*(w.all_weights[0] for w in layers), strict=True)
    ]

    def run(dtype, *weights):
        given = {"noise": layers[0].noise, "draws": cast(draws, dtype)}
        initial = tuple(s.to(dtype) for s in state)
        return recur(layers[0].stack, [weights], x.to(dtype), initial, **given)[0].detach()

    found = torch.func.vmap(lambda *weights: run(torch.float32, *weights))(*stacked)
    for layer, actual in zip(layers, found, strict=True):
        weights = layer.all_weights[0]
        ref64 = run(torch.float64, *(w.double() for w in weights))
        assert_close_to_float64(actual, run(torch.float32, *weights), ref64)
