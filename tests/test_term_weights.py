"""Noise in weights: order of terms, clean parameters, learned spreads, and refusals."""

import copy

import pytest
import torch
from torch import nn

from cases import make, seeded, zeros
from conftest import assert_bit_equal, assert_close_to_float64
from noisin import GRU, LSTM, RNN, Gaussian, Zoneout, at, parse, untied
from noisin.draws import Scaled
from noisin.streams import Stream

T, B, F, H = 3, 2, 2, 3


def drawn(layer, x, seed=0):
    return layer.draw(x, generator=torch.Generator().manual_seed(seed))


def assert_torchs(layer, weights, x, draws):
    """Compare a call with torch's own layer of other weights, by rule 7."""
    kind = layer.mode if layer.mode in ("LSTM", "GRU") else layer.nonlinearity
    results = []
    for dtype in (torch.float32, torch.float64):
        plain = make(kind, F, H, package=nn, dtype=dtype)
        plain.load_state_dict({**layer.state_dict(), **weights})
        results.append(plain(x.to(dtype))[0].detach())
    assert_close_to_float64(layer(x, draws=draws)[0].detach(), *results)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
def test_terms_at_a_held_weight_apply_left_to_right(name, kind):
    times, plus = f"{name} * Gaussian(0.5) @ sequence", f"{name} + Gaussian(0.5) @ sequence"
    layer, x = make(kind, F, H, noise=f"{times} & {plus}"), seeded(T, B, F)
    place = f"{name}_l0"
    weight, draws = layer.get_parameter(place), drawn(layer, x)
    factor, offset = (value[0] for value in draws[place])
    assert factor.shape == offset.shape == weight.shape
    assert_torchs(layer, {place: weight * factor + offset}, x, draws)
    layer.noise = f"{plus} & {times}"
    draws = {place: draws[place][::-1]}
    assert_torchs(layer, {place: (weight + offset) * factor}, x, draws)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
def test_terms_at_a_fresh_weight_apply_left_to_right(name):
    """One step, whose matrix is that of its seed."""
    times, plus, place = f"{name} * Gaussian(0.5)", f"{name} + Laplace(0.5)", f"{name}_l0"
    layer, x = LSTM(F, H, noise=f"{times} & {plus}"), seeded(1, B, F)
    weight, draws = layer.get_parameter(place), drawn(layer, x)
    seeds = draws[place]
    assert all(s.dtype == torch.int64 and s.shape == (1,) for s in seeds)
    first, second = (Stream(weight.device, int(s)) for s in seeds)
    a, b = (term.law for term in layer.noise)
    factor = a.factor(weight.shape, generator=first, dtype=torch.float32)
    offset = b.sample(weight.shape, generator=second, dtype=torch.float32)
    hx = tuple(seeded(*z.shape, seed=4) for z in zeros(layer, x))
    for noise, found, changed in (
        (f"{times} & {plus}", draws[place], weight * factor + offset),
        (f"{plus} & {times}", draws[place][::-1], (weight + offset) * factor),
    ):
        layer.noise = noise
        results = []
        for dtype in (torch.float32, torch.float64):
            plain = nn.LSTM(F, H, dtype=dtype)
            plain.load_state_dict({**layer.state_dict(), place: changed})
            results.append(plain(x.to(dtype), tuple(h.to(dtype) for h in hx))[0].detach())
        assert_close_to_float64(layer(x, hx, draws={place: found})[0].detach(), *results)


NOISED = [
    "weight_ih + Gaussian(0.3) & weight_hh * Bernoulli(keep=0.6)",
    "weight_ih * Gaussian(0.3) @ sequence & weight_hh + Gaussian(0.3) @ sequence",
    "weight_ih + Gaussian(0.1) @ cumulative & weight_hh + Gaussian(Learned(0.3, per='weight'))",
    "weight_ih + Gaussian(0.3) @ preactivation & weight_hh * Gaussian(0.3) @ preactivation",
    "input * Gaussian(0.3) @ untied & recurrent * Gaussian(0.3) @ untied",
]


@pytest.mark.parametrize("noise", NOISED)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "sigmoid"])
def test_weights_stay_parameters_and_clean(kind, noise):
    layer, x = make(kind, F, H, 2, noise=noise), seeded(T, B, F)
    names = dict(layer.named_parameters())
    before = {name: p.detach().clone() for name, p in names.items()}
    layer(x)[0].square().sum().backward()
    assert {name: id(p) for name, p in layer.named_parameters()} == {
        name: id(p) for name, p in names.items()
    }
    assert all(getattr(layer, name) is p and type(p) is nn.Parameter for name, p in names.items())
    assert_bit_equal(list(names.values()), list(before.values()))
    weights = [name for name in names if name.startswith("weight")]
    assert len(weights) == 4
    assert all((names[name].grad != 0).any() for name in names)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    trained = {name: names[name].detach().clone() for name in weights}
    assert all(not torch.equal(trained[name], before[name]) for name in weights)
    twin = copy.deepcopy(layer).eval()
    for name in weights:
        assert_bit_equal(layer.eval().state_dict()[name], trained[name])
        assert_bit_equal(getattr(twin, name), trained[name])
    layer.noise = None  # the trained weights and nothing else
    assert_bit_equal(twin(x), layer(x))


@pytest.mark.parametrize("noise", NOISED[:4])
def test_a_call_that_fails_leaves_the_weights_clean(noise):
    layer, x = GRU(F, H, noise=noise), seeded(T, B, F)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    draws = drawn(layer, x)
    with pytest.raises((ValueError, RuntimeError)):
        layer(x, seeded(1, B + 1, H), draws=draws)
    with pytest.raises(ValueError, match="weight_hh_l0"):
        layer(x, draws={"weight_ih_l0": draws["weight_ih_l0"]})
    assert_bit_equal(list(layer.parameters()), list(before.values()))
    assert [name for name, _ in layer.named_parameters()] == list(before)


@pytest.mark.parametrize("form", ["weight_hh + {}", "weight_hh * {}", "recurrent * {}"])
@pytest.mark.parametrize("law", ["Gaussian(0.5)", "Gaussian(Learned(0.5))"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "relu"])
def test_gradients_are_finite_where_there_is_no_variance(kind, law, form):
    """From the state 0 the first step has V = 0, and √V no slope."""
    noise = f"{form.format(law)} @ preactivation"
    layer, x = make(kind, F, H, 2, noise=noise), seeded(T, B, F).requires_grad_()
    hx = tuple(z.requires_grad_() for z in zeros(layer, x.detach()))
    output, _ = layer(x, hx if kind == "LSTM" else hx[0])
    grads = torch.autograd.grad(output.square().sum(), [x, *hx, *layer.parameters()])
    assert len(grads) >= 10
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    ("per", "size"), [("layer", (1,)), ("unit", (4 * H, 1)), ("weight", (4 * H, H))]
)
@pytest.mark.parametrize("operator", ["*", "+"])
def test_what_is_drawn_for_a_learned_spread_in_a_weight(operator, per, size):
    law, x = f"Gaussian(Learned(0.5, floor=0.1, per='{per}'))", seeded(T, B, F)
    layer = LSTM(F, H, noise=f"weight_hh {operator} {law}")
    rho = layer.rho_weight_hh_l0
    assert rho.shape == size
    with torch.no_grad():
        rho.copy_(seeded(1, *size, seed=1)[0])
    std64 = 0.1 + nn.functional.softplus(rho.detach().double())
    std = 0.1 + nn.functional.softplus(rho.detach())
    for word, shape in (("step", (T,)), ("cumulative", (T,)), ("preactivation", (T, B, 4 * H))):
        layer.noise = f"weight_hh {operator} {law} @ {word}"
        layer.load_state_dict({**layer.state_dict(), "rho_weight_hh_l0": rho.detach()})
        (value,) = drawn(layer, x)["weight_hh_l0"]
        assert isinstance(value, Scaled)
        assert value.source.shape == shape
        assert value.std.requires_grad
        own = value.std.shape
        assert own == (() if per == "layer" else size)
        assert_close_to_float64(value.std.detach(), std.reshape(own), std64.reshape(own))
    layer.noise = f"weight_hh {operator} {law} @ sequence"
    (value,) = drawn(layer, x)["weight_hh_l0"]
    assert value.shape == (1, 4 * H, H)
    assert value.requires_grad


REFUSED = [
    (RNN, at.candidate * Gaussian(0.5)),
    (GRU, Zoneout(cell=0.5)),
    (RNN, Zoneout(hidden=0.5, cell=0.5)),
    *(
        (LSTM, site * Gaussian(0.5) @ untied)
        for site in (at.hidden, at.candidate, at.output, at.weight_ih, at.weight_hh)
    ),
]


@pytest.mark.parametrize(("kind", "noise"), REFUSED, ids=str)
def test_what_has_no_meaning_is_refused(kind, noise):
    with pytest.raises(ValueError, match="got"):
        kind(F, H, num_layers=2, noise=noise)
    layer = kind(F, H, num_layers=2)
    with pytest.raises(ValueError, match="got"):
        layer.noise = parse(str(noise))
    assert layer.noise is None
