"""The gradient in two parts, the sign of δ, fields of losses, and heads that take moments."""

import math

import pytest
import torch
from torch import distributions, nn

from cases import seeded
from conftest import Z, assert_mean
from noisin import (
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    Moments,
    PoissonHead,
    diagnostics,
    variance,
)
from noisin.likelihood import squared_error
from noisin.propagation import integrated, linear, noisy, sigmoid
from noisin.variance import bernoulli, gaussian, split_gradient, variance_field

F64 = torch.float64
HEADS = (BernoulliHead, CategoricalHead, GaussianHead, PoissonHead)


def some(*size, seed=0):
    return Moments(
        seeded(*size, seed=seed, dtype=F64), seeded(*size, seed=seed + 9, dtype=F64).square()
    )


@pytest.mark.parametrize("operator", ["*", "+"])
def test_the_parts_are_the_gradient(operator):
    x, weight = some(4, 3), seeded(2, 3, dtype=F64).requires_grad_()

    def loss(a):
        return (sigmoid(a).mean - 0.2).square().sum() + a.variance.log().sum()

    parts = split_gradient(loss, x, weight, operator=operator, noise=0.3)
    whole = loss(linear(noisy(x, operator, 0.3), weight))
    (expected,) = torch.autograd.grad(whole, weight)
    torch.testing.assert_close(parts.loss + parts.regularizer, expected)
    assert parts.delta.shape == (4, 2)
    shrinks = parts.delta > 0
    row = Moments(x.mean[0], x.variance[0])
    torch.testing.assert_close(
        split_gradient(loss, row, weight, noise=0.3).loss,
        split_gradient(loss, Moments(x.mean[:1], x.variance[:1]), weight, noise=0.3).loss,
    )
    one = split_gradient(loss, Moments(x.mean[:1], x.variance[:1]), weight, noise=0.3)
    assert ((one.regularizer * weight > 0) == (one.delta[0, :, None] > 0)).all()
    assert shrinks.any()


def test_the_parts_of_the_sampled_form_are_its_gradient():
    """With several inputs, where equation (4) as printed is not."""
    x, weight = some(4, 3), seeded(2, 3, dtype=F64).requires_grad_()
    draw = seeded(4, 2, seed=5, dtype=F64)

    def loss(a):
        return torch.tanh(a).square().sum()

    parts = split_gradient(loss, x, weight, noise=0.3, draw=draw)
    mean, spread = linear(noisy(x, "*", 0.3), weight)
    (expected,) = torch.autograd.grad(loss(mean + draw * spread.sqrt()), weight)
    torch.testing.assert_close(parts.loss + parts.regularizer, expected)


def test_a_loss_of_the_mean_has_no_regularizer():
    parts = split_gradient(lambda a: a.mean.sum(), some(4, 3), seeded(2, 3, dtype=F64), noise=0.5)
    assert (parts.regularizer == 0).all()
    assert (parts.delta == 0).all()


@pytest.mark.parametrize(
    ("mean", "expected"), [(3.0, -0.261), (-3.0, -0.0455), (-1.0, 0.0119), (-1.386, 0.0060)]
)
def test_delta_of_the_papers_third_panel(mean, expected):
    """A confident and wrong unit wants more variance, a right one less; target 0.2, variance 1."""
    one = torch.ones(1, dtype=F64)
    field = variance_field(bernoulli, mean * one, one)
    assert field.by_variance.item() == pytest.approx(expected, abs=6e-4)


def test_optima_of_the_fields():
    means = torch.linspace(-6, 6, 241, dtype=F64)
    spreads = torch.linspace(0.01, 4, 200, dtype=F64)
    field = variance_field(variance.squared_error, means, spreads)
    assert (field.by_variance == 0).all()
    assert means[field.loss.argmin(0)].sub(0.2).abs().max() < 0.03
    field = variance_field(gaussian, means, spreads)
    row = field.by_variance[(means - 1.2).abs().argmin()]  # one away: V = 1 is the best
    assert spreads[row.abs().argmin()].item() == pytest.approx(1.0, abs=0.03)
    field = variance_field(bernoulli, means, spreads)
    best = math.log(0.25) * (1 + math.pi / 8 * spreads).sqrt()  # a curve, not a point
    assert (means[field.loss.argmin(0)] - best).abs().max() < 0.03


def test_radius_of_squared_weights():
    weight = torch.tensor([[1.0, -0.999], [0.999, -1.0]])
    assert diagnostics.spectral_radius(weight).item() ** 2 == pytest.approx(0.002, rel=0.01)
    assert diagnostics.spectral_radius(weight, squared=True).item() == pytest.approx(
        1.998, rel=1e-3
    )
    positive = torch.rand(2 * 5, 5)
    radius = diagnostics.spectral_radius(positive)
    assert (diagnostics.spectral_radius(positive, squared=True) <= radius**2).all()


def made(kind, seed=0):
    """Return a head, moments of its parameters, and observations."""
    torch.manual_seed(seed)
    head = kind(3, 5, dtype=F64)
    if kind is GaussianHead:
        nn.init.uniform_(head.log_std, -1, 1)
    a = some(4, 2, 5)
    return head, a, head.sample(a.mean)


@pytest.mark.parametrize("kind", HEADS)
def test_without_variance_moments_are_numbers(kind):
    head, a, x = made(kind)
    exact = a._replace(variance=torch.zeros_like(a.variance))
    found, expected = head.log_likelihood(exact, x), head.log_likelihood(a.mean, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    if kind not in (CategoricalHead, PoissonHead):  # which draw the parameters first
        drawn = [head.sample(p, g) for p, g in zip((exact, a.mean), generators, strict=True)]
        torch.testing.assert_close(*drawn)


def test_bernoulli_averages_the_sigmoid():
    head, a, x = made(BernoulliHead)
    p = integrated(torch.sigmoid, a).mean
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    torch.testing.assert_close(head.log_likelihood(a, x), expected, atol=0.3, rtol=0)
    p = torch.sigmoid(a.mean / (1 + math.pi / 8 * a.variance).sqrt())
    known = distributions.Independent(distributions.Bernoulli(p), 1).log_prob(x)
    torch.testing.assert_close(head.log_likelihood(a, x), known)
    far = Moments(torch.full((1, 5), 1e4), torch.full((1, 5), 1e8))
    assert head.log_likelihood(far, torch.zeros(1, 5)).isfinite()


def test_gaussian_has_a_known_average():
    head, a, x = made(GaussianHead)
    std = (a.variance + head.log_std.exp().square()).sqrt()
    known = distributions.Independent(distributions.Normal(a.mean, std), 1).log_prob(x)
    torch.testing.assert_close(head.log_likelihood(a, x), known)


@pytest.mark.parametrize("count", [0.0, 1.0, 10.0, 2000.0])
def test_poisson_averages_over_the_rate(count):
    head = PoissonHead(3, 1, dtype=F64)
    means, variances = torch.arange(-3.0, 7), torch.tensor([1e-6, 0.1, 1, 4])
    mean, variance = torch.meshgrid(means, variances, indexing="ij")
    a = Moments(*(one.double()[..., None].requires_grad_() for one in (mean, variance)))
    x = torch.full_like(a.mean, count)
    z = torch.linspace(-150, 150, 100_001, dtype=F64)
    spread = a.variance.sqrt()
    eta = a.mean + spread * z
    constant = ((z[1] - z[0]) / math.sqrt(2 * math.pi)).log() - torch.lgamma(x + 1)
    expected = (torch.logsumexp(x * eta - eta.exp() - z.square() / 2, -1, True) + constant)[..., 0]
    found = head.log_likelihood(a, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    grads = (torch.autograd.grad(one.sum(), a) for one in (found, expected))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert head.log_likelihood(Moments(*(one.half() for one in a)), x.half()).dtype == torch.half


def test_counts_of_moments_vary_more_than_poissons():
    torch.manual_seed(0)
    head, size = PoissonHead(3, 1, dtype=F64), (200_000, 1)
    drawn = head.sample(Moments(torch.zeros(size, dtype=F64), torch.full(size, 0.25, dtype=F64)))
    mean = math.exp(0.125)
    assert_mean(drawn.flatten(), mean, math.sqrt(mean + mean**2 * math.expm1(0.25)))
    assert drawn.var().item() == pytest.approx(mean + mean**2 * math.expm1(0.25), rel=0.03)


def test_the_unscented_transform_is_the_average_of_its_points():
    head, a, _ = made(CategoricalHead)
    mean, spread = a.mean[0, 0], a.variance[0, 0]
    moves = torch.diag((6 * spread).sqrt())
    points = torch.cat([mean[None], mean + moves, mean - moves])
    weights = torch.tensor([1 / 6] + 10 * [1 / 12], dtype=F64)
    torch.testing.assert_close(weights @ points, mean)
    torch.testing.assert_close(weights @ (points - mean).square(), spread)
    expected = (weights @ points.softmax(-1)).log()
    for index in range(5):
        one = torch.tensor(index)
        torch.testing.assert_close(head.log_likelihood(Moments(mean, spread), one), expected[index])


def test_both_averages_of_the_softmax_are_near_that_of_many_draws():
    head, a, x = made(CategoricalHead)
    a = a._replace(variance=a.variance.clamp(max=0.5))
    many = head.log_likelihood(a, x, samples=20_000, generator=torch.Generator().manual_seed(0))
    few = torch.stack([head.log_likelihood(a, x, samples=500) for _ in range(8)])
    assert (few.mean(0) - many).abs().max() < Z * few.std(0).max() / 8**0.5 + 0.01
    assert (head.log_likelihood(a, x) - many).abs().max() < 0.1
    assert (head.log_likelihood(a.mean, x) - many).abs().mean() > (
        head.log_likelihood(a, x) - many
    ).abs().mean()
    with pytest.raises(ValueError, match="samples must be >= 0, got -1"):
        head.log_likelihood(a, x, samples=-1)


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_of_heads(kind):
    head, a, x = made(kind)
    leaves = [one.detach().clone().requires_grad_() for one in (a.mean, a.variance + 0.1)]
    assert torch.autograd.gradcheck(lambda m, v: head.log_likelihood(Moments(m, v), x), leaves)


@pytest.mark.parametrize("kind", HEADS)
def test_samples_of_moments_vary_with_both(kind):
    head, a, _ = made(kind)
    one = Moments(a.mean[0, 0].expand(50_000, 5), torch.full((50_000, 5), 0.5, dtype=F64))
    drawn = head.sample(one, torch.Generator().manual_seed(1)).double()
    if kind is GaussianHead:
        torch.testing.assert_close(
            drawn.var(0), 0.5 + head.log_std.exp().square(), rtol=0.05, atol=0
        )
    again = head.sample(one, torch.Generator().manual_seed(1)).double()
    assert torch.equal(drawn, again)


def test_squared_error_is_of_the_mean():
    a, x = some(4, 3), seeded(4, 3, seed=2, dtype=F64)
    torch.testing.assert_close(squared_error(a, x), ((x - a.mean) ** 2).sum(-1))
    torch.testing.assert_close(squared_error(a.mean, x), squared_error(a, x))


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_unscented_probabilities_add_up_to_one(dtype):
    """Also where one class is all but sure and the spread is wide."""
    head = CategoricalHead(2, 3)
    for mean, wide in (([20.0, 0, 0], 100.0), ([1e4, -1e4, 0], 1e8), ([0.0, 0, 0], 0.0)):
        a = Moments(
            torch.tensor(mean, dtype=dtype).expand(3, 3), torch.full((3, 3), wide, dtype=dtype)
        )
        p = head.log_likelihood(a, torch.arange(3)).double().exp()
        assert p.sum().item() == pytest.approx(1.0, abs=0.02 if dtype is torch.bfloat16 else 1e-5)
    with pytest.raises(ValueError, match="one class for each row"):
        head.log_likelihood(a, torch.arange(2))
