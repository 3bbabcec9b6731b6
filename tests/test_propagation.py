"""Mean and variance through each function: against draws, integration, and what is exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import seeded
from conftest import Z, assert_bit_equal, assert_mean, assert_variance
from noisin import Moments, laws
from noisin.propagation import (
    exact,
    integrated,
    linear,
    mixed,
    noisy,
    product,
    relu,
    sigmoid,
    tanh,
    total,
)

N = 1_000_000
F64 = torch.float64
FORMS = ("mixture", "closed", "wang-manning")
SQUASHING = {"tanh": (tanh, torch.tanh), "sigmoid": (sigmoid, torch.sigmoid)}
# largest errors of mean and variance over the grid, as the module states them
STATED = {
    ("tanh", "mixture"): (2.9e-5, 5.1e-5),
    ("tanh", "closed"): (3.5e-2, 6.3e-2),
    ("tanh", "wang-manning"): (3.5e-2, 1.1e-1),
    ("sigmoid", "mixture"): (1.3e-5, 1.3e-5),
    ("sigmoid", "closed"): (1.7e-2, 1.5e-2),
    ("sigmoid", "wang-manning"): (1.7e-2, 2.8e-2),
}


def grid(means=(-10, 10, 101), variances=(-4, 2, 31)):
    mean = torch.linspace(*means, dtype=F64)
    variance = torch.cat([torch.zeros(1, dtype=F64), torch.logspace(*variances, dtype=F64)])
    return Moments(*(t.flatten() for t in torch.meshgrid(mean, variance, indexing="ij")))


def some(*size, seed=0):
    return Moments(
        seeded(*size, seed=seed, dtype=F64), seeded(*size, seed=seed + 50, dtype=F64).square()
    )


def drawn(x, seed):
    """Draw N values of each number, normal."""
    noise = torch.randn(N, *x.mean.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x.mean + x.variance.sqrt() * noise


def assert_moments(samples, expected, error=(0.0, 0.0)):
    """Compare with draws, within z standard errors and what an approximation may err."""
    if error == (0.0, 0.0):
        assert_mean(samples, expected.mean, expected.variance.sqrt())
        assert_variance(samples, expected.variance, expected.mean)
        return
    mean, variance = samples.mean(0), samples.var(0)
    fourth = (samples - mean).pow(4).mean(0)
    slack = Z * (variance / N).sqrt() + error[0]
    assert ((mean - expected.mean).abs() <= slack).all()
    slack = Z * ((fourth - variance.square()) / N).sqrt() + error[1]
    assert ((variance - expected.variance).abs() <= slack).all()


@pytest.mark.parametrize(("name", "form"), STATED)
def test_squashing_errs_no_more_than_stated_and_that_is_no_overstatement(name, form):
    ours, function = SQUASHING[name]
    x = grid()
    found, truth = ours(x, form), integrated(function, x)
    for got, wanted, stated in zip(found, truth, STATED[name, form], strict=True):
        error = (got - wanted).abs().max()
        assert 0.8 * stated < error <= stated


@pytest.mark.parametrize("name", SQUASHING)
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_without_variance_it_is_the_function_itself(name, form, dtype):
    ours, function = SQUASHING[name]
    x = torch.linspace(-30, 30, 301).to(dtype)
    found = ours(exact(x), form)
    assert_bit_equal(found.mean, function(x))
    assert (found.variance == 0).all()
    assert_bit_equal(relu(exact(x)).mean, torch.relu(x))
    assert (relu(exact(x)).variance == 0).all()


def test_wang_and_mannings_variance_is_not_0_where_that_of_its_input_is():
    x = exact(torch.linspace(-10, 10, 1001, dtype=F64))
    assert 0.10 < tanh(x, "wang-manning").variance.max() < 0.11
    assert 0.026 < sigmoid(x, "wang-manning").variance.max() < 0.028


def test_integration_is_that_of_draws_and_of_what_is_known():
    x = some(5)
    assert_moments(torch.tanh(drawn(x, 1)), integrated(torch.tanh, x), (1e-9, 1e-9))
    power = integrated(lambda a: a**3, x)
    m, v = x
    torch.testing.assert_close(power.mean, m**3 + 3 * m * v)
    torch.testing.assert_close(power.variance, 9 * m**4 * v + 36 * m**2 * v**2 + 15 * v**3)


@pytest.mark.parametrize(
    ("function", "ours", "error"),
    [
        (torch.relu, relu, (0.0, 0.0)),
        (torch.tanh, tanh, STATED["tanh", "mixture"]),
        (torch.sigmoid, sigmoid, STATED["sigmoid", "mixture"]),
        (torch.tanh, lambda x: tanh(x, "closed"), STATED["tanh", "closed"]),
        (torch.sigmoid, lambda x: sigmoid(x, "closed"), STATED["sigmoid", "closed"]),
    ],
)
def test_functions_against_draws(function, ours, error):
    x = Moments(some(6).mean, some(6).variance + 0.5)
    assert_moments(function(drawn(x, 2)), ours(x), error)


def test_sums_products_and_mixtures_against_draws():
    a, b, c = some(4), some(4, seed=1), some(4, seed=2)
    s, t, z = drawn(a, 3), drawn(b, 4), drawn(c, 5)
    assert_moments(s + t, total(a, b))
    assert_moments(s * t, product(a, b))
    assert_moments(z * s + (1 - z) * t, mixed(c, a, b))


def test_an_affine_map_against_draws():
    x, weight = some(5), some(3, 5, seed=1)
    bias = seeded(3, dtype=F64)
    values = drawn(x, 3)
    assert_moments(values @ weight.mean.T + bias, linear(x, weight.mean, bias))
    total_ = torch.zeros(N, 3, dtype=F64)
    for column in range(5):  # a million matrices, one column at a time
        one = Moments(weight.mean[:, column], weight.variance[:, column])
        total_ += drawn(one, 10 + column) * values[:, column : column + 1]
    assert_moments(total_ + bias, linear(x, weight.mean, bias, weight.variance))


@pytest.mark.parametrize("law", [*laws.LAWS])
@pytest.mark.parametrize("operator", ["*", "+"])
def test_every_law_acts_by_its_variance_alone(law, operator):
    one = laws.LAWS[law](keep=0.7) if law == "Bernoulli" else laws.LAWS[law](0.6)
    x = some(4)
    draw = one.factor if operator == "*" else one.sample
    noise = draw((N, 4), generator=torch.Generator().manual_seed(7), dtype=F64)
    values = drawn(x, 8)
    found = noisy(x, operator, one.variance)
    assert_moments(values * noise if operator == "*" else values + noise, found, (1e-12, 1e-12))


def test_equation_2_by_counting_all_masks():
    """Dropout of rate 1 - p with scale 1 / p, over all 2^F masks."""
    x, weight, p = some(4), seeded(4, dtype=F64), 0.3
    first = second = 0.0
    for bits in range(16):
        mask = torch.tensor([(bits >> i) & 1 for i in range(4)], dtype=F64)
        chance = torch.where(mask > 0, p, 1 - p).prod()
        mean, variance = linear(
            Moments(x.mean * mask / p, x.variance * (mask / p) ** 2), weight[None]
        )
        first, second = first + chance * mean, second + chance * (variance + mean.square())
    found = linear(noisy(x, "*", (1 - p) / p), weight[None])
    torch.testing.assert_close(found.mean, first)
    torch.testing.assert_close(found.variance, second - first.square())


def test_fast_dropout_is_fast_adaptive_weight_noise():
    """Equations 2 and 6 with V[W] = W² (1 - p) / p, for any input."""
    x, weight, p = some(3, 7), seeded(5, 7, dtype=F64), 0.4
    on_units = linear(noisy(x, "*", (1 - p) / p), weight)
    on_weights = linear(x, weight, weight_variance=weight.square() * (1 - p) / p)
    torch.testing.assert_close(on_units, on_weights, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ours", [tanh, sigmoid, relu])
def test_variances_of_any_size_stay_finite_and_above_0(ours, dtype):
    means = torch.tensor([-1e4, -100, -3, -1, -1e-8, 0, 1e-8, 1, 3, 100, 1e4])
    variances = torch.tensor([0, 1e-38, 1e-20, 1e-8, 1e-3, 0.1, 1, 100, 1e4, 1e8])
    mean, variance = torch.meshgrid(means, variances, indexing="ij")
    leaves = [t.to(dtype).clone().requires_grad_() for t in (mean, variance)]
    found = ours(Moments(*leaves))
    assert all(one.isfinite().all() and one.dtype == dtype for one in found)
    assert (found.variance >= 0).all()
    if ours is not relu:
        assert (found.mean.abs() <= 1).all()
        assert (found.variance <= 1).all()
    (found.mean.sum() + found.variance.sum()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@given(st.floats(-1e4, 1e4), st.floats(0, 1e8))
def test_rectifier_keeps_its_digits(mean, variance):
    x = Moments(torch.tensor(mean), torch.tensor(variance))
    found = relu(x)
    wide = relu(Moments(x.mean.double(), x.variance.double()))
    assert (found.variance.double() - wide.variance).abs() <= 1e-6 * x.variance.double() + 1e-40
    bound = 1e-6 * (x.mean.double().abs() + x.variance.double().sqrt()) + 1e-40
    assert (found.mean.double() - wide.mean).abs() <= bound


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ours", [tanh, sigmoid])
def test_gradients_of_the_squashing(ours, form):
    leaves = [t.clone().requires_grad_() for t in (3 * some(9).mean, some(9).variance + 0.1)]
    assert torch.autograd.gradcheck(lambda m, v: tuple(ours(Moments(m, v), form)), leaves)
    assert torch.autograd.gradgradcheck(lambda m, v: tuple(ours(Moments(m, v), form)), leaves)


def test_gradients_of_the_rest():
    a, b, c = (some(4, seed=i) for i in range(3))
    leaves = [t.clone().requires_grad_() for t in (*a, *b, *c)]

    def results(m, v, n, w, p, u):
        a, b, c = Moments(m, v), Moments(n, w), Moments(p, u)
        parts = (relu(a), total(a, b), product(a, b), mixed(c, a, b), noisy(a, "*", 0.3))
        return tuple(t for part in parts for t in part)

    assert torch.autograd.gradcheck(results, leaves)
    weight, spread = (t.clone().requires_grad_() for t in some(3, 4, seed=9))
    inputs = (leaves[0], leaves[1], weight, spread)
    assert torch.autograd.gradcheck(
        lambda m, v, w, s: tuple(linear(Moments(m, v), w, None, s)), inputs
    )


def test_the_gradient_by_the_variance_is_half_the_curvature():
    """∂E/∂V = ½ ∂²E/∂E², which holds of every normal mean; the closed form errs there."""
    x = Moments(*(t.clone().requires_grad_() for t in grid((-3, 3, 13), (-1, 0, 5))))
    m = tanh(x).mean.sum()
    by_mean, by_variance = torch.autograd.grad(m, x, create_graph=True)
    (curvature,) = torch.autograd.grad(by_mean.sum(), x.mean)
    torch.testing.assert_close(by_variance, curvature / 2, atol=2e-4, rtol=0)


def test_unknown_forms_are_refused():
    with pytest.raises(
        ValueError, match="form must be one of mixture, closed, wang-manning; got 'g'"
    ):
        tanh(some(2), "g")
