"""The helpers that compare: each accepts what it must, and fails on a sabotaged input."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from cases import seeded
from conftest import (
    assert_bit_equal,
    assert_close_to_float64,
    assert_distribution,
    assert_gradients,
    assert_mean,
    assert_second_gradients,
    assert_uncorrelated,
    assert_vanishes,
    assert_variance,
    within_seconds,
)


def test_new_memory_is_filled_with_nan():
    for new in (torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(1).new_empty(3)):
        assert new.isnan().all()


def test_shapes_are_enforced_inside_the_package():
    import jaxtyping

    import noisin

    with pytest.raises(jaxtyping.TypeCheckError, match="log_likelihood"):
        noisin.BernoulliHead(2, 3).log_likelihood(torch.zeros(4, 3), torch.zeros(4, 2))


def gradient(dtype):
    """Return the gradient of a small recurrence, as plain eager torch computes it."""
    w = seeded(5, 5, seed=1).to(dtype).requires_grad_()
    h = torch.ones(5, dtype=dtype)
    for _ in range(6):
        h = torch.tanh(w @ h)
    return torch.autograd.grad(h.sum(), w)[0]


def test_rule_seven_accepts_another_order_of_sums():
    eager, ref64 = gradient(torch.float32), gradient(torch.float64)
    assert_close_to_float64(ref64.float(), eager, ref64)


@pytest.mark.parametrize("sabotage", ["scaled", "one entry", "transposed", "one nan"])
def test_rule_seven_refuses_a_sabotaged_gradient(sabotage):
    eager, ref64 = gradient(torch.float32), gradient(torch.float64)
    wrong = eager.clone()
    if sabotage == "scaled":
        wrong *= 1.001
    elif sabotage == "transposed":
        wrong = wrong.T
    else:
        wrong[2, 3] += 1e-4 if sabotage == "one entry" else torch.nan
    with pytest.raises(AssertionError):
        assert_close_to_float64([wrong], [eager], [ref64])


def test_rule_seven_refuses_shapes_and_nothing_at_all():
    with pytest.raises(AssertionError):
        assert_close_to_float64(torch.ones(2), torch.ones(2), torch.ones(1, 2).double())
    with pytest.raises(AssertionError):
        assert_close_to_float64([], [], [])


def test_bit_equal_refuses_one_bit_a_shape_a_dtype_and_a_missing_tensor():
    x = torch.ones(3)
    assert_bit_equal((x, [x, None]), (x.clone(), [x.clone(), None]))
    bit = x.clone()
    bit[1] = torch.nextafter(bit[1], torch.tensor(2.0))
    for wrong in (bit, x[None], x.double(), x * torch.nan, None, [x, x]):
        with pytest.raises(AssertionError):
            assert_bit_equal(wrong, x)


def test_mean_and_variance_refuse_a_shift_and_a_scale():
    x = seeded(40_000, 2)
    assert_mean(x, 0.0, 1.0)
    assert_variance(x, 1.0, mean=0.0)
    for wrong in (x + 0.05, x * torch.tensor([1.0, torch.nan])):
        with pytest.raises(AssertionError):
            assert_mean(wrong, 0.0, 1.0)
    for wrong in (x * 1.03, x * 0.97, torch.zeros_like(x)):
        with pytest.raises(AssertionError):
            assert_variance(wrong, 1.0, mean=0.0)
    with pytest.raises(AssertionError):  # too few samples say nothing
        assert_mean(x[:10], 0.0, 1.0)


def test_uncorrelated_refuses_a_shared_part():
    x, y = seeded(10_000, 2), seeded(10_000, 2, seed=1)
    assert_uncorrelated(x, y)
    for wrong in (x, y + 0.1 * x):
        with pytest.raises(AssertionError):
            assert_uncorrelated(x, wrong)


def test_distribution_refuses_a_scale_and_an_atom_but_not_rounding():
    x = seeded(100_000, dtype=torch.float64)
    assert_distribution(x, norm.cdf)
    assert_distribution(x.bfloat16(), norm.cdf)
    holed = torch.where(x.abs() < 0.03, torch.zeros_like(x), x)
    for wrong in (x * 1.05, x + 0.03, holed):
        with pytest.raises(AssertionError):
            assert_distribution(wrong, norm.cdf)


def test_distribution_knows_an_atom_made_by_rounding():
    # u ** 200 is below eps with probability 0.83, so 1 + u ** 200 rounds to exactly 1
    u = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_distribution(1 + u**200, lambda x: np.clip(x - 1, 0, 1) ** (1 / 200))


def test_vanishes_refuses_no_noise_and_too_much():
    plain = torch.zeros(3)
    assert_vanishes(plain + 1e-6, plain, std=1e-6)
    for wrong in (plain, plain + 1e-3, plain * torch.nan):
        with pytest.raises(AssertionError):
            assert_vanishes(wrong, plain, std=1e-6)


class Sabotaged(torch.autograd.Function):
    """x³ whose first or second derivative is off by 1 part in 100."""

    @staticmethod
    def forward(ctx, x, first, second):
        ctx.save_for_backward(x)
        ctx.factors = first, second
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        first, second = ctx.factors
        square = 3 * x**2
        return grad * first * (square.detach() + second * (square - square.detach())), None, None


def test_gradient_checks_refuse_a_scaled_derivative():
    x = seeded(3, dtype=torch.float64).requires_grad_()
    assert_gradients(lambda x: Sabotaged.apply(x, 1.0, 1.0), (x,))
    assert_second_gradients(lambda x: Sabotaged.apply(x, 1.0, 1.0), (x,))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        assert_gradients(lambda x: Sabotaged.apply(x, 1.01, 1.0), (x,))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        assert_second_gradients(lambda x: Sabotaged.apply(x, 1.0, 1.01), (x,))


def test_seconds_are_counted():
    with pytest.raises(AssertionError), within_seconds(-1):
        pass
