"""Noise laws: distributions of mean 0 and variance 1, times a standard deviation.

Every law draws a standardized variable ξ (E[ξ] = 0, V[ξ] = 1) and scales it: ε = std · ξ. So
``std`` means the same for all of them: two laws of equal ``std`` inject the same variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

from noisin.shapes import Float
from noisin.spread import Learned, positive
from noisin.variates import floating, gamma, log_gamma, numbers, uniform, wide


@dataclass(frozen=True, repr=False)
class Law(ABC):
    """A distribution of noise ε with E[ε] = 0 and V[ε] = std².

    Args:
        std: standard deviation, a finite number > 0, or ``Learned``.

    Raises:
        ValueError: a standard deviation out of range.
    """

    std: float | Learned

    # numpy would otherwise spread an array over the law instead of asking __rmul__
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        if not isinstance(self.std, Learned):
            object.__setattr__(self, "std", positive(type(self).__name__, "std", self.std))

    @property
    def mean(self) -> float:
        """E[ε], 0 for every law."""
        return 0.0

    @property
    def variance(self) -> float:
        """V[ε] = std²; of a learned spread, its square at the start."""
        std = self.std.init if isinstance(self.std, Learned) else self.std
        return std**2

    def scaled(self, factor: float) -> Law:
        """Return the law of standard deviation ``factor`` > 0 times this; a learned one is left."""
        if isinstance(self.std, Learned):
            return self
        return replace(self, std=max(self.std * factor, math.ulp(0.0)))  # above 0

    @abstractmethod
    def standard(
        self,
        size: Sequence[int],
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """Draw ξ with mean 0 and variance 1; ``dtype`` is float32 or float64."""

    def sample(
        self,
        size: Sequence[int],
        *,
        std: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, ...]:
        """Draw the offset ε = std · ξ.

        Args:
            size: shape of the result.
            std: the current value of a learned spread, broadcastable to ``size``; only then.
            generator: source of randomness; torch's default generator without it.
            dtype: floating type of the result; 16-bit types are drawn in float32 and rounded.
            device: where to draw.

        Raises:
            ValueError: the law's spread is learned and ``std`` is missing, or the reverse.
            TypeError: ``dtype`` is not a floating type.
        """
        dtype = floating(self, dtype)
        return self._offset(size, std, generator, dtype, device).to(dtype)

    def factor(
        self,
        size: Sequence[int],
        *,
        std: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "..."]:
        """Draw the factor 1 + ε; arguments as in ``sample``."""
        dtype = floating(self, dtype)
        return self._offset(size, std, generator, dtype, device).add_(1).to(dtype)

    def _offset(
        self,
        size: Sequence[int],
        std: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        """Draw ε in float32, or in float64 if that is asked for."""
        scale = self._scale(std)
        device = torch.device(device) if device is not None else torch.get_default_device()
        standard = self.standard(size, generator, wide(dtype), device)
        return standard * scale if isinstance(scale, Tensor) else standard.mul_(scale)

    def _scale(self, std: Tensor | None) -> float | Tensor:
        if isinstance(self.std, Learned):
            if std is None:
                raise ValueError(f"{self}: a learned spread is drawn with its value, std=")
            return std
        if std is not None:
            raise ValueError(f"{self}: std= is for learned spreads, this one is {self.std}")
        return self.std

    def _refuse(self, other: object) -> NoReturn:
        raise TypeError(
            "a law acts at a site: write at.hidden * law or at.hidden + law, the site first "
            f"(did a name such as `hidden` get bound to something else?); got {self} with "
            f"{type(other).__name__}"
        )

    __mul__ = __rmul__ = __add__ = __radd__ = __and__ = _refuse

    def __str__(self) -> str:
        shape = "".join(
            f", {f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name != "std" and getattr(self, f.name) != f.default
        )
        return f"{type(self).__name__}({self.std}{shape})"

    def __repr__(self) -> str:
        return str(self)


class Gaussian(Law):
    """ε ~ N(0, std²).

    Args:
        std: standard deviation, a finite number > 0, or ``Learned``.

    Examples:
        >>> Gaussian(0.5).variance
        0.25
    """

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw N(0, 1)."""
        return numbers("randn", size, generator, dtype, device)


class Logistic(Law):
    """ε = std · (√3/π) · log(u / (1 - u)): the logistic distribution.

    Args:
        std: standard deviation, a finite number > 0, or ``Learned``.

    Examples:
        >>> Logistic(0.5).variance
        0.25
    """

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw the logit of a uniform, over its standard deviation π/√3."""
        return torch.logit(uniform(size, generator, dtype, device)) * (math.sqrt(3) / math.pi)


class Laplace(Law):
    """ε = std · L/√2 with L the double exponential distribution of scale 1.

    Args:
        std: standard deviation, a finite number > 0, or ``Learned``.

    Examples:
        >>> Laplace(0.5).variance
        0.25
    """

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw the difference of two exponential variables, log(u / v), over √2."""
        u = uniform(size, generator, dtype, device)
        v = uniform(size, generator, dtype, device)
        return u.div_(v).log_().mul_(math.sqrt(0.5))


class Gumbel(Law):
    """ε = std · (G - γ)·√6/π with G = -log(-log u), γ Euler's constant; skewed to the right.

    Args:
        std: standard deviation, a finite number > 0, or ``Learned``.

    Examples:
        >>> Gumbel(0.5).variance
        0.25
    """

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw G, less its mean γ, over its standard deviation π/√6."""
        gumbel = -torch.log(-torch.log(uniform(size, generator, dtype, device)))
        return (gumbel - 0.5772156649015329) * (math.sqrt(6) / math.pi)


class Uniform(Law):
    """ε uniform on [-√3·std, √3·std].

    Args:
        std: standard deviation, a finite number > 0, or ``Learned``.

    Examples:
        >>> Uniform(0.5).variance
        0.25
    """

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw uniform on [-√3, √3]."""
        u = numbers("rand", size, generator, dtype, device)
        return u.mul_(2).sub_(1).mul_(math.sqrt(3))


@dataclass(frozen=True, repr=False)
class Gamma(Law):
    """ε = std · (G - a)/√a with G ~ Gamma(a, 1); skewness 2/√a.

    Args:
        std: standard deviation, > 0, or ``Learned``.
        shape: a, > 0. The paper does not state its value; 2 is ours.

    Examples:
        >>> Gamma(0.5, shape=4.0)
        Gamma(0.5, shape=4.0)
    """

    shape: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", positive("Gamma", "shape", self.shape))

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw Gamma(a, 1), less its mean a, over its standard deviation √a; 2 is -log(u v)."""
        if self.shape == 2:
            u = uniform(size, generator, dtype, device)
            v = uniform(size, generator, dtype, device)
            return u.mul_(v).log_().add_(2).mul_(-math.sqrt(0.5))
        drawn = gamma(self.shape, size, generator, dtype, device)
        return (drawn - self.shape) / math.sqrt(self.shape)


@dataclass(frozen=True, repr=False)
class ChiSquare(Law):
    """ε = std · (X - k)/√(2k) with X ~ χ² of k degrees of freedom; skewness √(8/k).

    Args:
        std: standard deviation, > 0, or ``Learned``.
        df: k, > 0. The paper does not state its value; 1 is ours (with 4 it is ``Gamma`` of 2).

    Examples:
        >>> ChiSquare(0.5).sample((2, 3)).shape
        torch.Size([2, 3])
    """

    df: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "df", positive("ChiSquare", "df", self.df))

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw 2 · Gamma(k/2, 1), less its mean k, over its standard deviation √(2k); 1 is Z²."""
        if self.df == 1:
            z = numbers("randn", size, generator, dtype, device)
            return z.square_().sub_(1).mul_(math.sqrt(0.5))
        chi2 = 2 * gamma(self.df / 2, size, generator, dtype, device)
        return (chi2 - self.df) / math.sqrt(2 * self.df)


@dataclass(frozen=True, repr=False)
class Beta(Law):
    """ε = std · (X - m)/s with X ~ Beta(a, b) of mean m and standard deviation s.

    Bounded: with a = b = ½ (the arcsine law) ε stays within ±√2·std.

    Args:
        std: standard deviation, > 0, or ``Learned``.
        a: first shape parameter, > 0. The paper does not state its values; ½, ½ are ours.
        b: second shape parameter, > 0.

    Examples:
        >>> bool(Beta(0.5).sample((100,)).abs().max() <= 0.5 * 2**0.5)
        True
    """

    a: float = 0.5
    b: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "a", positive("Beta", "a", self.a))
        object.__setattr__(self, "b", positive("Beta", "b", self.b))

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw X = G₁/(G₁ + G₂) from two gammas, standardized; for ½, ½ that is √2·cos(πu)."""
        if self.a == self.b == 0.5:
            u = numbers("rand", size, generator, dtype, device)
            return torch.cos(math.pi * u) * math.sqrt(2)
        total = self.a + self.b
        odds = log_gamma(self.a, size, generator, dtype, device)
        odds = odds - log_gamma(self.b, size, generator, dtype, device)
        std = math.sqrt(self.a * self.b / (total + 1)) / total
        return (torch.sigmoid(odds) - self.a / total) / std


@dataclass(frozen=True, repr=False, init=False)
class Bernoulli(Law):
    """1 + ε = b/p with b ~ Bernoulli(p): dropout that keeps a unit with probability p.

    The factor is exactly 0 or 1/p. The standard deviation, √((1 - p)/p), follows from p.

    Args:
        keep: p, the probability that a unit is kept, 0 < p < 1.

    Raises:
        ValueError: ``keep`` out of range.

    Note:
        The γ of the NOISIN tables is p, not a standard deviation, for this law alone.

    Examples:
        >>> Bernoulli(keep=0.5).std
        1.0
        >>> sorted(set(Bernoulli(keep=0.25).factor((100,)).tolist()))
        [0.0, 4.0]
    """

    keep: float = field(default=math.nan)

    def __init__(self, *, keep: float) -> None:
        if isinstance(keep, Learned):
            raise ValueError(
                f"Bernoulli: keep cannot be learned, since b/p has no gradient for p; got {keep}"
            )
        number = isinstance(keep, Real) and not isinstance(keep, bool)
        if not number or not 0 < keep < 1:
            raise ValueError(f"Bernoulli: keep must be a number with 0 < keep < 1, got {keep!r}")
        object.__setattr__(self, "keep", float(keep))
        object.__setattr__(self, "std", math.sqrt((1 - keep) / keep))
        self.__post_init__()

    def scaled(self, factor: float) -> Bernoulli:
        """Return the law of standard deviation factor · √((1 - p)/p), whose p is another."""
        keep = self.keep / (self.keep + factor**2 * (1 - self.keep))
        return Bernoulli(keep=min(keep, math.nextafter(1, 0)))  # below 1

    def standard(self, size, generator, dtype, device) -> Tensor:
        """Draw (b/p - 1) over its standard deviation."""
        return (self._mask(size, generator, dtype, device) - 1) * math.sqrt(
            self.keep / (1 - self.keep)
        )

    def factor(self, size, *, std=None, generator=None, dtype=None, device=None) -> Tensor:
        """Draw the factor b/p; arguments as in ``Law.sample``."""
        self._scale(std)
        dtype = floating(self, dtype)
        return self._mask(size, generator, wide(dtype), device).to(dtype)

    def _offset(self, size, std, generator, dtype, device) -> Tensor:
        """Draw b/p - 1."""
        self._scale(std)
        return self._mask(size, generator, wide(dtype), device) - 1

    def _mask(self, size: Sequence[int], generator: Any, dtype: torch.dtype, device: Any) -> Tensor:
        """Draw b/p."""
        u = numbers("rand", size, generator, dtype, device)
        return u.lt_(self.keep).div_(self.keep)

    def __str__(self) -> str:
        return f"Bernoulli(keep={self.keep})"


LAWS: dict[str, type[Law]] = {
    law.__name__: law
    for law in (Gaussian, Logistic, Laplace, Gamma, Bernoulli, Gumbel, Beta, ChiSquare, Uniform)
}
