"""``Linear`` over moments: taken, given, and under noise that is drawn."""

import pytest
import torch

from cases import seeded
from conftest import assert_bit_equal
from noisin import Linear, Moments, plain, sampling
from noisin.propagation import linear, noisy
from test_propagated import F64, B, F, T, tensors


def test_linear_takes_and_gives_moments():
    layer, x = (
        Linear(F, 2, dtype=F64),
        Moments(seeded(T, B, F, dtype=F64), seeded(T, B, F, dtype=F64).square()),
    )
    torch.testing.assert_close(tensors(layer(x)), tensors(linear(x, layer.weight, layer.bias)))
    assert_bit_equal(layer(x.mean), torch.nn.functional.linear(x.mean, layer.weight, layer.bias))
    layer.noise = "input * Bernoulli(keep=0.8) @ moments & weight + Gaussian(0.1) @ moments"
    spread = torch.full_like(layer.weight, 0.01)
    expected = linear(noisy(x, "*", 0.25), layer.weight, layer.bias, spread)
    for mode in (True, False):
        torch.testing.assert_close(tensors(layer.train(mode)(x)), tensors(expected))
    alone = layer(x.mean, return_moments=True)
    assert (alone.variance > 0).all()
    assert_bit_equal(layer(x.mean), alone.mean)
    with sampling(layer):
        assert not torch.equal(layer(x.mean), layer(x.mean))
    with plain(layer):
        torch.testing.assert_close(layer(x.mean), layer(x).mean)


@pytest.mark.parametrize(
    "noise",
    ["weight * Gaussian(0.5)", "input * Gaussian(0.5)", "weight + Gaussian(0.5) @ sequence"],
)
def test_a_linear_of_moments_under_noise_that_is_drawn(noise):
    layer, x = (
        Linear(F, 2, dtype=F64, noise=noise),
        Moments(seeded(T, B, F, dtype=F64), torch.zeros(T, B, F, dtype=F64)),
    )
    draws = layer.draw(x)
    found = layer(x, draws=draws)
    torch.testing.assert_close(found.mean, layer(x.mean, draws=draws))
    assert (found.variance == 0).all()
    assert (layer(x._replace(variance=x.variance + 1), draws=draws).variance > 0).all()


@pytest.mark.parametrize("time", [T, 0])
def test_held_and_fresh_terms_in_the_weights_of_a_linear(time):
    """What is held acts beside what is drawn at each step, and its learned spread learns."""
    noise = "weight + Gaussian(Learned(0.1)) @ sequence & weight + Gaussian(0.1)"
    layer = Linear(F, 2, noise=noise + " & input * Bernoulli(keep=0.8) @ moments", dtype=F64)
    x = seeded(time, B, F, dtype=F64)
    draws = layer.draw(x)
    found = layer(x, draws=draws)
    sampled = Linear(F, 2, noise=noise, dtype=F64)
    sampled.load_state_dict(layer.state_dict())
    torch.testing.assert_close(found, sampled(x, draws={"weight": draws["weight"]}))
    found.square().sum().backward()
    assert time == 0 or (layer.rho_weight.grad != 0).any()


def test_formulas_and_moments_do_not_meet_in_a_linear():
    both = "input * Gaussian(0.3) @ preactivation & weight * Gaussian(0.3) @ moments"
    with pytest.raises(ValueError, match="@ moments meets noise that is drawn"):
        Linear(F, 2, noise=both)


def test_several_terms_held_in_the_weights_of_a_linear():
    noise = "weight + Gaussian(0.1) @ sequence & weight + Gaussian(0.2) @ sequence"
    layer, x = Linear(F, 2, noise=noise), torch.randn(T, B, F)
    draws = layer.draw(x)
    found = layer(x, draws=draws, return_moments=True)
    torch.testing.assert_close(found.mean, layer(x, draws=draws))
