"""The compiled recurrence over moments beside torch's operations, which run in float64."""

import pytest
import torch

import noisin
from conftest import assert_bit_equal, assert_close_to_float64
from noisin import Moments, Propagation
from noisin.fused import compiled, moment_call

pytestmark = pytest.mark.skipif(compiled.LIBRARY is None, reason="nothing was compiled")
T, B, F, H = 6, 3, 7, 150  # more units than a block of the C file
KINDS = {
    "RNN_TANH": (noisin.RNN, {}),
    "RNN_SIGMOID": (noisin.RNN, {"nonlinearity": "sigmoid"}),
    "GRU": (noisin.GRU, {}),
    "LSTM": (noisin.LSTM, {}),
}
NOISES = {
    "dropout": "fast_dropout(input=0.9, recurrent=0.8)",
    "hidden": "hidden * Gaussian(0.5) @ moments & recurrent + Uniform(0.3) @ moments"
    " & recurrent * Gaussian(0.3) @ moments",
    "weights": "weight_ih * Gaussian(0.2) @ moments & weight_hh + Gaussian(0.1) @ moments"
    " & input * Gaussian(0.3) @ moments",
    "candidate": "candidate * Gaussian(0.4) @ moments",
    "learned": "weight_hh + Gaussian(Learned(0.1)) @ moments",
}
WAYS = {
    "mixture": Propagation(),
    "closed": Propagation("closed"),
    "wang-manning": Propagation("wang-manning", own_variance=False, recurrent_mean=0.25),
}


@pytest.fixture
def served(monkeypatch):
    """The calls that were asked for, and whether the compiled recurrence took them."""
    calls, known = [], moment_call.serves

    def ask(call, tensors):
        calls.append(known(call, tensors))
        return calls[-1]

    monkeypatch.setattr(moment_call, "serves", ask)
    return calls


def layer_of(kind, noise, way="mixture", **options):
    torch.manual_seed(3)
    cls, own = KINDS[kind]
    layer = cls(F, H, noise=noise, **own, **options)
    layer.propagation = WAYS[way]
    return layer


def inputs(dtype=torch.float32, time=T):
    generator = torch.Generator().manual_seed(5)
    mean = torch.randn(time, B, F, generator=generator).to(dtype)
    return mean.requires_grad_(), torch.rand(time, B, F, generator=generator).to(
        dtype
    ).requires_grad_()


def results(layer, mean, variance):
    """Outputs, final state, and the gradients of a loss that sees all of them."""
    output, state = layer(Moments(mean, variance), return_moments=True)
    parts = [*output, *(one for pair in state for one in pair)]
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (one * torch.randn(one.shape, generator=generator).to(one.dtype)).sum()
        for one in flat(parts)
    )
    leaves = [mean, variance, *layer.parameters()]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [*flat(parts), *grads]


def flat(parts):
    return [one for part in parts for one in ([part] if isinstance(part, torch.Tensor) else part)]


def compare(found, expected, tolerance):
    for got, wanted in zip(found, expected, strict=True):
        scale = wanted.abs().max().clamp(min=1e-3)
        assert (got - wanted).abs().max() < tolerance * scale


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_torch(kind, noise, way, served):
    if noise == "candidate" and kind.startswith("RNN"):
        pytest.skip("an Elman cell has no candidate")
    options = {"num_layers": 2, "bidirectional": way == "closed"}
    layer = layer_of(kind, NOISES[noise], way, **options)
    found = results(layer, *inputs())
    assert served == [True] * (2 + 2 * (way == "closed"))
    served.clear()
    expected = results(layer.double(), *inputs(torch.float64))
    assert not any(served)
    compare(found, expected, 2e-4 if way == "mixture" else 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_comes_in_without_variance(kind, served):
    """Its variance is 0; without noise at the input none is multiplied."""
    for noise in ("fast_dropout(recurrent=0.8)", NOISES["dropout"], NOISES["weights"]):
        layer = layer_of(kind, noise)
        mean, _ = inputs()
        (given,) = (layer(mean, return_moments=True)[0].variance,)
        zero = Moments(mean, torch.zeros_like(mean))
        torch.testing.assert_close(given, layer(zero, return_moments=True)[0].variance)
        (slope,) = torch.autograd.grad(given.sum(), mean)
        (expected,) = torch.autograd.grad(
            layer(zero, return_moments=True)[0].variance.sum(), mean, allow_unused=True
        )
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5)
    assert all(served)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients_and_many_at_once(kind, served):
    layer = layer_of(kind, NOISES["dropout"])
    seconds = []
    for dtype in (torch.float32, torch.float64):
        layer = layer.to(dtype)
        mean, variance = inputs(dtype)
        output = layer(Moments(mean, variance), return_moments=True)[0]
        weight = layer.weight_hh_l0
        (first,) = torch.autograd.grad(
            output.mean.square().sum() + output.variance.sum(), weight, create_graph=True
        )
        seconds.append(torch.autograd.grad(first.square().sum(), [mean, variance, weight]))
    compare(*seconds, 1e-3)
    assert served == [True, False]
    layer = layer.float()
    mean, _ = inputs()
    output = layer(mean)[0][-1, 0, :4]
    (many,) = torch.autograd.grad(
        output, mean, torch.eye(4), is_grads_batched=True, retain_graph=True
    )
    for row, one in zip(many, output, strict=True):
        (alone,) = torch.autograd.grad(one, mean, retain_graph=True)
        torch.testing.assert_close(row, alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(kind):
    layer = layer_of(kind, NOISES["dropout"])
    alone = results(layer, *inputs())
    torch.set_num_threads(2)
    try:
        both = results(layer, *inputs())
    finally:
        torch.set_num_threads(1)
    compare(both, alone, 1e-5)


def test_a_graph_serves_twice():
    layer = layer_of("GRU", NOISES["dropout"])
    mean, _ = inputs()
    loss = layer(mean)[0].sum()
    first, second = (torch.autograd.grad(loss, mean, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("kind", "noise", "options"),
    [
        ("LSTM", "fast_dropout(recurrent=0.8)", {"proj_size": 3}),
        ("LSTM", "fast_dropout(recurrent=0.8) & Zoneout(0.1, 0.1)", {}),
        ("GRU", "hidden * Gaussian(Learned(0.1)) @ moments", {}),
        ("GRU", "fast_dropout(recurrent=0.8) & hidden * Gaussian(0.1)", {}),
        ("LSTM", "fast_dropout(recurrent=0.8) & weight_hh * Gaussian(0.1) @ step", {}),
    ],
)
def test_what_it_cannot_do_takes_torchs_operations(kind, noise, options, served):
    layer = layer_of(kind, noise, **options)
    mean, _ = inputs()
    layer(mean)[0].sum().backward()
    assert not any(served)
    assert all(one.grad is not None for one in layer.parameters())


def test_a_variance_that_broadcasts_takes_torchs_operations(served):
    layer = layer_of("GRU", NOISES["dropout"])
    mean = inputs()[0].detach()
    h = torch.zeros(1, B, H)
    found = noisin.functional.recur(
        *(layer.stack, layer.all_weights, mean),
        (Moments(h, torch.full((1, 1, H), 0.5)),),
    )[0]
    assert served == [False]
    whole = Moments(h, torch.full_like(h, 0.5))
    expected = noisin.functional.recur(layer.stack, layer.all_weights, mean, (whole,))[0]
    assert served == [False, True]
    compare(found, expected, 1e-4)


def test_an_unpacked_weight_is_multiplied_alike():
    """A short walk does not pack its weights."""
    layer = layer_of("LSTM", NOISES["weights"])
    long, _ = inputs(time=40)
    compare([layer(long)[0][:T]], [layer(long[:T])[0]], 1e-5)


@pytest.mark.parametrize("way", ["mixture", "closed"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_variance_it_is_the_plain_network(kind, way, served):
    layer = layer_of(kind, None, way, num_layers=2)
    mean, _ = inputs()
    found = layer(Moments(mean, torch.zeros_like(mean)), return_moments=True)[0]
    assert all(served)
    assert not found.variance.any()
    wide = layer_of(kind, None, num_layers=2).double()
    assert_close_to_float64(found.mean, layer(mean)[0], wide(mean.double())[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_has_a_variance_and_a_gradient(kind, way, served):
    layer = layer_of(kind, NOISES["dropout"], way)
    size = torch.tensor([0.0, 1e-4, 1.0, 1e4])
    mean = torch.cartesian_prod(size, torch.tensor([-1.0, 1.0])).prod(-1)
    variance = torch.tensor([0.0, 1e-8, 1.0, 1e8])
    means, variances = torch.meshgrid(mean, variance, indexing="ij")
    x = [one.reshape(1, -1, 1).expand(3, -1, F).clone() for one in (means, variances)]
    leaves = [one.requires_grad_() for one in x]
    found = layer(Moments(*leaves), return_moments=True)[0]
    assert served == [True]
    assert (found.variance >= 0).all()
    assert all(one.isfinite().all() for one in found)
    (found.mean.sum() + found.variance.sum()).backward()
    assert all(one.grad.isfinite().all() for one in (*leaves, *layer.parameters()))


def test_noise_that_is_changed_in_place_does_not_reach_the_way_back():
    """What acted on the way forward acts on the way back."""
    layer = noisin.LSTM(F, H, noise="recurrent * Bernoulli(keep=0.5) @ moments")
    x = torch.randn(T, B, F)
    found = []
    for changed in (False, True):
        draws = layer.draw(x)
        loss = layer(x, draws=draws)[0].square().sum()
        if changed:
            draws["recurrent_l0"][0].zero_()
        found.append(torch.autograd.grad(loss, [*layer.parameters()]))
    assert_bit_equal(*found)
