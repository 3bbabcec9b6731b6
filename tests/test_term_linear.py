"""``Linear`` against the plain loop: noise in its input and weight, sampled or by the formula."""

import pytest
import torch

from cases import given_draws, leaf_draws, pulled_back, remade, seeded
from conftest import assert_close_to_float64, assert_gradients
from noisin import Linear
from noisin.draws import Scaled
from plain_weights import plain_linear

T, B, F, R = 3, 2, 2, 4

LINEAR = [
    "weight + Gaussian(0.3)",
    "weight * Bernoulli(keep=0.6)",
    "weight * Gaussian(0.3) @ sequence & weight + Gaussian(0.3) @ sequence",
    "weight + Gaussian(0.3) @ cumulative & weight * Gaussian(0.3)",
    "weight + Gaussian(Learned(0.3, per='unit'))",
    "weight * Gaussian(Learned(0.3, per='weight')) @ sequence",
    "weight + Gaussian(0.3) @ preactivation & weight * Gaussian(0.3) @ preactivation",
    "weight * Gaussian(Learned(0.3, per='weight')) @ preactivation @ sequence",
    "input * Bernoulli(keep=0.6) @ preactivation",
    "input + Gaussian(0.3) @ preactivation @ sequence & weight * Gaussian(0.3) @ preactivation",
    "input * Gaussian(Learned(0.3, per='unit')) @ preactivation & weight + Gaussian(0.3)",
    "input + Gaussian(0.3) & weight * Gaussian(0.3) @ preactivation",
    "input * Gaussian(0.3) & input + Gaussian(0.3) @ sequence & weight + Gaussian(0.3)",
]


def linear_with_gradients(layer, x, draws, dtype):
    """Run the plain loop in a dtype: the result and all gradients."""

    def leaf(tensor):
        return tensor.detach().to(dtype, copy=True).requires_grad_()

    x, params = leaf(x), {n: leaf(p) for n, p in layer.named_parameters()}
    draws = remade(layer, draws, params, leaf)
    leaves = [x, *params.values(), *given_draws(layer, draws)]
    return pulled_back([plain_linear(layer, x, draws, params)], leaves)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("noise", LINEAR)
def test_linear_is_the_plain_loop(noise, bias):
    layer, x = Linear(F, R, bias, noise=noise), seeded(T, B, F).requires_grad_()
    draws = leaf_draws(layer, x.detach())
    shapes = {"input": [(T, B, F), (1, B, F), (T, B, R), (1, B, R)]}
    shapes["weight"] = [(T,), (1, R, F), (T, B, R), (1, B, R)]
    for place, values in draws.items():
        sources = [v.source if isinstance(v, Scaled) else v for v in values]
        assert {tuple(v.shape) for v in sources} <= set(shapes[place])
    leaves = [x, *layer.parameters(), *given_draws(layer, draws)]
    actual = pulled_back([layer(x, draws=draws)], leaves)
    others = [linear_with_gradients(layer, x, draws, d) for d in (torch.float32, torch.float64)]
    assert_close_to_float64(actual, *others)


@pytest.mark.parametrize("noise", LINEAR)
def test_gradients_of_linear_are_central_differences(noise):
    layer, x = Linear(F, 2, noise=noise, dtype=torch.float64), seeded(2, 1, F, dtype=torch.float64)

    def result(*_):
        return layer(x, draws=leaf_draws(layer, x))

    assert_gradients(result, (x.requires_grad_(), *layer.parameters()))


@pytest.mark.parametrize("noise", LINEAR)
def test_linear_knows_its_dimension_of_time(noise):
    first = Linear(F, R, noise=noise)
    second = Linear(F, R, noise=noise, time_dim=1)
    second.load_state_dict(first.state_dict())
    x = seeded(T, B, F)
    draws = leaf_draws(first, x)
    swapped = leaf_draws(second, x.transpose(0, 1))
    for place, values in draws.items():
        shapes = [
            [tuple(v[0].shape if isinstance(v, Scaled) else v.shape) for v in found]
            for found in (values, swapped[place])
        ]
        matrix = [s if len(s) == 1 or s == (1, R, F) else (s[1], s[0], *s[2:]) for s in shapes[0]]
        assert shapes[1] == matrix
    turned = {
        place: tuple(v if _is_matrix(v) else _turned(v) for v in values)
        for place, values in draws.items()
    }
    eager = first(x, draws=draws).detach()
    actual = second(x.transpose(0, 1), draws=turned).detach().transpose(0, 1)
    assert_close_to_float64(actual, eager, eager.double())


def _is_matrix(value):
    source = value[0] if isinstance(value, Scaled) else value
    return source.dim() == 1 or source.shape == (1, R, F)


def _turned(value):
    if isinstance(value, Scaled):
        return Scaled(value.source.transpose(0, 1), value.std)
    return value.transpose(0, 1)
