"""Mixtures of laws: likelihood and quantiles against scipy's, and coverage of what is drawn."""

import numpy as np
import pytest
import torch
from scipy import stats

from conftest import assert_close_to_float64, assert_distribution, assert_mean
from noisin.lab.forecasts import (
    LEVELS,
    Coverage,
    Gaussians,
    Poissons,
    coverages,
    interval,
    merged,
)

N = 20_000


def gaussians(draws=5, places=(7, 2)):
    mean, std = torch.randn(draws, *places).double(), torch.rand(draws, *places).double() + 0.2
    return Gaussians(3 * mean, std)


def poissons(draws=5, places=(7, 2)):
    rate = torch.rand(draws, *places).double() * 9 + 0.1
    return Poissons(rate, torch.zeros_like(rate))


def drawn(mixture, count):
    """Draw from a mixture: one of its laws, and a number of it."""
    places = mixture.mean.shape[1:]
    which = torch.randint(len(mixture.mean), (count, *places))
    chosen = [torch.gather(field, 0, which) for field in mixture]
    return torch.normal(*chosen) if isinstance(mixture, Gaussians) else torch.poisson(chosen[0])


def test_likelihood_is_that_of_scipy():
    normal, counts = gaussians(), poissons()
    x, n = torch.randn(7, 2).double(), torch.poisson(5 * torch.rand(7, 2)).double()
    for got, expected in (
        (normal.log_likelihood(x), stats.norm.logpdf(x, normal.mean, normal.std)),
        (counts.log_likelihood(n), stats.poisson.logpmf(n, counts.mean)),
    ):
        expected = torch.from_numpy(expected)
        assert_close_to_float64(got.float(), expected.float(), expected)


def test_a_single_law_has_its_own_quantiles():
    for p in (0.001, 0.1, 0.5, 0.9, 0.975):
        normal, counts = gaussians(draws=1), poissons(draws=1)
        expected = torch.from_numpy(stats.norm.ppf(p, normal.mean[0], normal.std[0]))
        assert_close_to_float64(normal.quantile(p).float(), expected.float(), expected)
        expected = stats.poisson.ppf(p, counts.mean[0])
        assert counts.quantile(p).tolist() == expected.tolist()


def test_quantiles_of_mixtures_are_where_the_distribution_passes_p():
    normal, counts = gaussians(), poissons()
    for p in (0.025, 0.3, 0.5, 0.8, 0.999):
        found = normal.quantile(p)
        assert (normal.cdf(found) >= p).all()
        less = found - 1e-9  # the densities here are far above 1e-6
        assert (normal.cdf(less) < p).all()
        least = counts.quantile(p)
        assert (counts.cdf(least) >= p).all()
        below = torch.where(least > 0, counts.cdf((least - 1).clamp(min=0)), 0)
        assert (below < p).all()


@pytest.mark.parametrize("rate", [1e-12, 1e6, 1e12])
def test_quantiles_of_very_small_and_large_rates(rate):
    law = Poissons(torch.full((3, 4), rate).double(), torch.zeros(3, 4).double())
    low, high = interval(law, 0.95)
    assert (low <= high).all()
    assert (abs(high - rate) <= 6 * rate**0.5 + 1).all()


def test_counts_at_rates_that_are_not_known():
    """Rates are log-normal: likelihood and distribution agree, and with the law's two moments."""
    mean, variance = torch.tensor([[2.0], [7.0]]).double(), torch.tensor([[0.5], [0.1]]).double()
    law, counts = Poissons(mean, variance), torch.arange(400).double()
    wide = Poissons(mean.expand(-1, 400), variance.expand(-1, 400))
    probability = wide.log_likelihood(counts).exp()
    torch.testing.assert_close(probability.sum(1), torch.ones(2).double())
    torch.testing.assert_close(probability @ counts, mean[:, 0])
    spread = mean + mean.square() * torch.expm1(variance)
    torch.testing.assert_close((probability * (counts - mean).square()).sum(1), spread[:, 0])
    assert (wide.cdf(counts) - probability.mean(0).cumsum(0)).abs().max() < 1 / 64
    low, high = interval(law, 0.95)
    inside = probability.mean(0)[int(low) : int(high) + 1].sum().item()
    assert 0.94 < inside < 0.98
    assert high > interval(Poissons(mean, 0 * variance), 0.95)[1]


def test_cdf_is_that_of_what_is_drawn():
    mixture = gaussians(places=())
    where = torch.from_numpy
    assert_distribution(
        drawn(mixture, N), lambda x: Gaussians(*(f[:, None] for f in mixture)).cdf(where(x)).numpy()
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [gaussians, poissons])
def test_intervals_cover_what_they_say(make, level):
    """Of numbers drawn from the mixture itself; of counts as much as lies between the ends."""
    mixture = make(places=(2,))
    low, high = interval(mixture, level)
    expected = torch.full((2,), level).double()
    if isinstance(mixture, Poissons):
        below = torch.where(low > 0, mixture.cdf((low - 1).clamp(min=0)), 0)
        expected = mixture.cdf(high) - below
        assert (expected >= level).all()
    truth = drawn(mixture, N)
    inside = (low <= truth) & (truth <= high)
    assert_mean(inside, expected, (expected * (1 - expected)).sqrt())
    laws = type(mixture)(*(field[:, None].expand(-1, N, -1) for field in mixture))
    found = coverages(laws, truth, level)
    assert [one.coverage for one in found] == inside.double().mean(0).tolist()
    assert [one.count for one in found] == [N, N]
    width = (high - low).expand(N, 2).mean(0)
    assert [f"{one.width:.9g}" for one in found] == [f"{one:.9g}" for one in width.tolist()]


def test_too_narrow_laws_are_found_out():
    narrow = Gaussians(torch.zeros(1, N, 1).double(), torch.full((1, N, 1), 0.5).double())
    (found,) = coverages(narrow, torch.randn(N, 1).double(), 0.95)
    assert 0.5 < found.coverage < 0.8


def test_parts_are_weighted_by_their_size():
    whole = merged([Coverage(0.5, 1.0, 2.0, 30), Coverage(0.5, 0.2, 6.0, 10)])
    assert whole == Coverage(0.5, 0.8, 3.0, 40)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_levels_out_of_range_are_refused(level):
    with pytest.raises(ValueError, match="level must be within \\(0, 1\\), got"):
        interval(gaussians(), level)


def test_more_draws_widen_a_mixture():
    """The laws apart from each other: the mixture is wider than each of them."""
    mixture = Gaussians(torch.tensor([[-3.0], [3.0]]).double(), torch.ones(2, 1).double())
    low, high = interval(mixture, 0.9)
    assert (high - low).item() > 2 * np.diff(stats.norm.interval(0.9))[0]
