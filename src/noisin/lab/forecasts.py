"""Mixtures of predictive laws: their likelihood, their quantiles, and whether these hold.

A forecast under noise is a mixture with equal weights of K laws, one a draw. Its central interval
at level p lies between its quantiles at (1 - p)/2 and (1 + p)/2. An interval holds if it covers a
share p of what comes: that share is its coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, Poisson

from noisin.likelihood import log_normal_poisson
from noisin.propagation import Moments
from noisin.shapes import Float

LEVELS = (0.5, 0.8, 0.95)
HALVINGS = 64  # of a bracket: more than a number in float64 has bits
RATES = 64  # equally probable ones that stand for a log-normal law
MOST = 2.0**50  # largest quantile of counts that is looked for


class Gaussians(NamedTuple):
    """K normal laws at each place.

    Args:
        mean: [K, …].
        std: [K, …].
    """

    mean: Float[Tensor, "K *place"]
    std: Float[Tensor, "K *place"]

    def log_likelihood(self, x: Float[Tensor, "..."]) -> Float[Tensor, "K ..."]:
        """Return the log-density of x under each of the K laws."""
        return Normal(self.mean, self.std, validate_args=False).log_prob(x)

    def cdf(self, x: Float[Tensor, "*place"]) -> Float[Tensor, "*place"]:
        """Return P(X ≤ x) of the mixture."""
        return torch.special.ndtr((x - self.mean) / self.std).mean(0)

    def quantile(self, p: float) -> Float[Tensor, "*place"]:
        """Return x with P(X ≤ x) = p of the mixture, by halving, to the last bits.

        It lies between the least and the greatest of the quantiles of the K laws.

        Args:
            p: within (0, 1).
        """
        own = self.mean + self.std * torch.special.ndtri(self.mean.new_tensor(p))
        low, high = own.amin(0), own.amax(0)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = self.cdf(middle) >= p
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high


class Poissons(NamedTuple):
    """K laws of counts at each place: Poisson, at a rate that is log-normal where it is not known.

    Args:
        mean: of the rates, [K, …].
        variance: of their logarithms, [K, …].
    """

    mean: Float[Tensor, "K *place"]
    variance: Float[Tensor, "K *place"]

    def log_likelihood(self, x: Float[Tensor, "..."]) -> Float[Tensor, "K ..."]:
        """Return the log-probability of the counts x under each of the K laws."""
        if not self.variance.any():
            return Poisson(self.mean, validate_args=False).log_prob(x)
        a = Moments(self.mean.log() - self.variance / 2, self.variance)
        return log_normal_poisson(a, x.expand_as(self.mean))

    def cdf(self, x: Float[Tensor, "*place"]) -> Float[Tensor, "*place"]:
        """Return P(X ≤ x) of the mixture, for x ≥ 0; of unknown rates within 1 / ``RATES``."""
        parts = RATES if self.variance.any() else 1
        std, total = self.variance.sqrt(), torch.zeros(()).to(x)
        for middle in (torch.arange(parts).to(self.mean) + 0.5) / parts:
            rate = self.mean * torch.exp(std * torch.special.ndtri(middle) - self.variance / 2)
            total = total + torch.special.gammaincc(x.floor() + 1, rate).mean(0)
        return total / parts

    def quantile(self, p: float) -> Float[Tensor, "*place"]:
        """Return the least count x with P(X ≤ x) ≥ p of the mixture.

        Args:
            p: within (0, 1).
        """
        high = self.mean.amax(0).clamp(1, MOST).ceil()
        while ((self.cdf(high) < p) & (high < MOST)).any():
            high = 2 * high
        low = torch.full_like(high, -1)  # below which nothing is
        while (high - low > 1).any():
            middle = ((low + high) / 2).floor().clamp(min=0)
            above = self.cdf(middle) >= p
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high


Mixture = Gaussians | Poissons


def interval(mixture: Mixture, level: float) -> tuple[Tensor, Tensor]:
    """Return the ends of the central interval, both within it.

    Of counts it covers at least the level: the quantiles are whole numbers.

    Args:
        mixture: K laws at each place.
        level: within (0, 1).

    Raises:
        ValueError: a level out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be within (0, 1), got {level}")
    return mixture.quantile((1 - level) / 2), mixture.quantile((1 + level) / 2)


@dataclass(frozen=True)
class Coverage:
    """How an interval holds.

    Args:
        level: what it should cover.
        coverage: the share that it covers.
        width: its mean width, in the units of the target.
        count: of how many forecasts.
    """

    level: float
    coverage: float
    width: float
    count: int


def coverages(mixture: Mixture, truth: Float[Tensor, "*place"], level: float) -> list[Coverage]:
    """Return how the intervals hold, one for each column of the last dimension.

    Args:
        mixture: K laws at each place.
        truth: what came.
        level: within (0, 1).
    """
    low, high = interval(mixture, level)
    inside = ((low <= truth) & (truth <= high)).double().flatten(0, -2)
    width = (high - low).double().flatten(0, -2)
    return [
        Coverage(level, share, wide, len(inside))
        for share, wide in zip(inside.mean(0).tolist(), width.mean(0).tolist(), strict=True)
    ]


def merged(parts: Sequence[Coverage]) -> Coverage:
    """Return the coverage of all forecasts of several parts."""
    count = sum(part.count for part in parts)

    def mean(name: str) -> float:
        return sum(getattr(part, name) * part.count for part in parts) / count

    return Coverage(parts[0].level, mean("coverage"), mean("width"), count)
