"""Likelihoods of the exponential family: p(x_t | z_t) with natural parameters V z_t + b.

Each head is a ``Linear`` layer that reads the hidden state, and the distribution it parametrizes.
``log_likelihood`` sums over the features of one time step and over nothing else. The parameters
may be ``Moments`` of normal a: then x_t has the distribution that averages over them, feature by
feature.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from noisin.dense import Linear
from noisin.fused import affine
from noisin.fused.categorical import log_probability
from noisin.propagation import Moments, checked, deviation, mean_of
from noisin.shapes import Float, Int
from noisin.tracing import autocasting


class Head(Linear, ABC):
    """A linear read-out and the distribution of x_t that it parametrizes.

    Args:
        in_features: H, size of the hidden state.
        out_features: number of observed features, or classes.
        **kwargs: as ``noisin.Linear``; ``noise`` acts at ``input`` or ``weight``.
    """

    @abstractmethod
    def log_likelihood(self, parameters: Any, x: Tensor) -> Tensor:
        """Return log p(x_t | z_t), summed over features.

        Args:
            parameters: V z_t + b, what calling the head gives: a tensor or ``Moments``.
            x: the observations.
        """

    @abstractmethod
    def sample(self, parameters: Any, generator: torch.Generator | None = None) -> Tensor:
        """Draw x_t ~ p(x_t | z_t)."""


def squared_error(
    output: Float[Tensor, "*size F"] | Moments, x: Float[Tensor, "*size F"]
) -> Float[Tensor, "*size"]:
    """Return Σ_i (x_i - E[y_i])²: the variance of an output does not enter.

    Args:
        output: y, a tensor or ``Moments``.
        x: the observations.
    """
    mean = mean_of(output)
    _check_alike(mean, x)
    return (x - mean).square().sum(-1)


def _check_alike(parameters: Tensor | Moments, x: Tensor) -> None:
    """Raise a ValueError for observations that would be broadcast."""
    shape = mean_of(parameters).shape
    if x.shape != shape:
        raise ValueError(
            f"observations must have the shape of the parameters, {list(shape)}; "
            f"got {list(x.shape)}"
        )


class BernoulliHead(Head):
    """Independent binary features: P(x_i = 1) = σ(V z + b)_i. ``x`` is [..., F] of 0 and 1.

    Of ``Moments`` p = E σ(a) ≈ σ(E[a] / √(1 + π V[a] / 8)), which errs by at most 0.016 and whose
    logarithm is finite at any size.

    Examples:
        >>> head = BernoulliHead(8, 88)
        >>> parameters = head(torch.randn(5, 3, 8))
        >>> head.log_likelihood(parameters, torch.ones(5, 3, 88)).shape
        torch.Size([5, 3])
    """

    def log_likelihood(
        self, parameters: Float[Tensor, "*size F"] | Moments, x: Float[Tensor, "*size F"]
    ) -> Float[Tensor, "*size"]:
        """Return Σ_i x_i log p_i + (1 - x_i) log (1 - p_i)."""
        return self.each(parameters, x).sum(-1)

    def each(
        self, parameters: Float[Tensor, "*size F"] | Moments, x: Float[Tensor, "*size F"]
    ) -> Float[Tensor, "*size F"]:
        """Return x_i log p_i + (1 - x_i) log (1 - p_i), of each feature on its own."""
        _check_alike(parameters, x)
        parameters = _logits(parameters)
        x = x if x.is_floating_point() else x.to(parameters.dtype)
        return -binary_cross_entropy_with_logits(parameters, x, reduction="none")

    def sample(
        self,
        parameters: Float[Tensor, "*size F"] | Moments,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*size F"]:
        """Draw each feature on its own."""
        return torch.bernoulli(torch.sigmoid(_logits(parameters)), generator=generator)


def _logits(parameters: Tensor | Moments) -> Tensor:
    """Return a with σ(a) = E σ(parameters)."""
    if not isinstance(parameters, Moments):
        return parameters
    return parameters.mean / (1 + math.pi / 8 * parameters.variance).sqrt()


class CategoricalHead(Head):
    """One of V classes: p(x) = softmax(V z + b)_x. ``x`` holds class indices.

    Of ``Moments`` p(x) = E softmax(a)_x by an unscented transform: the average over 2 V + 1 points
    with the mean and variances of a, E[a] with weight 1 / (V + 1), and E[a] ± √((V + 1) V[a_j]) in
    one class j each; or by draws of a.

    Examples:
        >>> head = CategoricalHead(8, 10)
        >>> parameters = head(torch.randn(5, 3, 8))
        >>> head.log_likelihood(parameters, torch.zeros(5, 3, dtype=torch.long)).shape
        torch.Size([5, 3])

    References:
        Julier, Uhlmann (1997): A new extension of the Kalman filter to nonlinear systems.
    """

    def _plain(self, input: Tensor) -> Tensor:
        if affine.pays(input, self.weight):
            return affine.affine(input, self.weight, self.bias)
        return super()._plain(input)

    def log_likelihood(
        self,
        parameters: Float[Tensor, "*size V"] | Moments,
        x: Int[Tensor, "*size"],
        *,
        samples: int = 0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*size"]:
        """Return log p(x).

        Args:
            parameters: a, a tensor or ``Moments``.
            x: class indices.
            samples: of ``Moments``, average over so many draws of a, each with a gradient; 0 is
                the unscented transform.
            generator: source of the draws.

        Raises:
            ValueError: samples below 0; not as many classes as rows.
        """
        if samples < 0:
            raise ValueError(f"samples must be >= 0, got {samples}")
        if not isinstance(parameters, Moments):
            return log_probability(parameters, x)
        if not samples:
            return _unscented(parameters, x)
        found = [log_probability(_drawn(parameters, generator), x) for _ in range(samples)]
        return torch.logsumexp(torch.stack(found), 0) - math.log(samples)

    def sample(
        self,
        parameters: Float[Tensor, "*size V"] | Moments,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "*size"]:
        """Draw one class; of ``Moments`` from the softmax of one draw of a."""
        if isinstance(parameters, Moments):
            parameters = _drawn(parameters, generator)
        flat = torch.softmax(parameters, -1).view(-1, parameters.shape[-1])
        return torch.multinomial(flat, 1, generator=generator).view(parameters.shape[:-1])


def _of_type(found: Tensor, dtype: torch.dtype) -> Tensor:
    """Return log-likelihoods in a type; under autocast in float32, as torch's losses are."""
    return found if autocasting(found.device) else found.to(dtype)


def _unscented(parameters: Moments, x: Tensor) -> Tensor:
    """Return log E softmax(a)_x; a point that moves class j changes the sum by that class alone."""
    checked(parameters)
    dtype = parameters.mean.dtype
    if dtype in (torch.bfloat16, torch.float16):
        parameters = Moments(*(one.float() for one in parameters))
    plain = parameters.mean.log_softmax(-1)
    if x.shape != plain.shape[:-1]:
        raise ValueError(
            f"there must be one class for each row of the logits, {list(plain.shape[:-1])}; "
            f"got {list(x.shape)}"
        )
    classes = plain.shape[-1]
    at = x.unsqueeze(-1)
    here, move = plain.gather(-1, at), deviation((classes + 1) * parameters.variance)
    top = plain.argmax(-1, keepdim=True)  # log (1 - p) of the others is safe
    others = plain.scatter(-1, top, -torch.inf)
    small = others.exp()
    rest = torch.log1p(-small).scatter(-1, top, others.logsumexp(-1, keepdim=True))
    parts = [here - math.log(classes + 1)]
    for sign in (1, -1):
        sums = torch.logaddexp(rest, plain + sign * move)
        moved = torch.zeros_like(plain).scatter(-1, at, sign * move.gather(-1, at))
        parts.append(here + moved - sums - math.log(2 * (classes + 1)))
    return _of_type(torch.logsumexp(torch.cat(parts, -1), -1), dtype)


class GaussianHead(Head):
    """Independent real features: x_i ~ N((V z + b)_i, σ_i²) with a trained σ_i a feature.

    Of ``Moments`` the mean is E[a] and the variance V[a] + σ².

    Args:
        in_features: H, size of the hidden state.
        out_features: number of observed features.
        **kwargs: as ``noisin.Linear``.

    Examples:
        >>> head = GaussianHead(8, 2)
        >>> head.sample(head(torch.randn(5, 3, 8))).shape
        torch.Size([5, 3, 2])
    """

    def __init__(self, in_features: int, out_features: int, **kwargs) -> None:
        super().__init__(in_features, out_features, **kwargs)
        self.log_std = nn.Parameter(self.weight.new_zeros(out_features))

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set every σ_i to 1."""
        super().reset_parameters()
        if hasattr(self, "log_std"):  # torch's layer calls this before there is one
            nn.init.zeros_(self.log_std)

    def log_likelihood(
        self, parameters: Float[Tensor, "*size F"] | Moments, x: Float[Tensor, "*size F"]
    ) -> Float[Tensor, "*size"]:
        """Return Σ_i -½ ((x_i - μ_i)/σ_i)² - log σ_i - ½ log 2π."""
        _check_alike(parameters, x)
        if isinstance(parameters, Moments):
            variance = parameters.variance + torch.exp(2 * self.log_std)
            score = (x - parameters.mean).square() / variance
            return -0.5 * (score + variance.log() + math.log(2 * math.pi)).sum(-1)
        score = (x - parameters) * torch.exp(-self.log_std)
        return -(0.5 * score**2 + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(
        self,
        parameters: Float[Tensor, "*size F"] | Moments,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*size F"]:
        """Draw each feature on its own."""
        std = torch.exp(self.log_std)
        if isinstance(parameters, Moments):
            parameters, std = parameters.mean, (parameters.variance + std.square()).sqrt()
        noise = torch.randn(
            parameters.shape,
            generator=generator,
            dtype=parameters.dtype,
            device=parameters.device,
        )
        return parameters + std * noise


class PoissonHead(Head):
    """Independent counts: x_i ~ Poisson(exp(V z + b)_i). ``x`` is [..., F] of counts.

    Of ``Moments`` p(x) = E Poisson(x; exp(a)): the rate is log-normal, and counts vary more.

    Examples:
        >>> head = PoissonHead(8, 2)
        >>> bool((head.sample(head(torch.randn(5, 3, 8))) >= 0).all())
        True
    """

    def log_likelihood(
        self, parameters: Float[Tensor, "*size F"] | Moments, x: Float[Tensor, "*size F"]
    ) -> Float[Tensor, "*size"]:
        """Return Σ_i x_i η_i - exp η_i - log x_i!."""
        _check_alike(parameters, x)
        if isinstance(parameters, Moments):
            return log_normal_poisson(parameters, x).sum(-1)
        return (x * parameters - torch.exp(parameters) - torch.lgamma(x + 1)).sum(-1)

    def sample(
        self,
        parameters: Float[Tensor, "*size F"] | Moments,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*size F"]:
        """Draw each count on its own; of ``Moments`` at the rate of one draw of a."""
        if isinstance(parameters, Moments):
            parameters = _drawn(parameters, generator)
        return torch.poisson(torch.exp(parameters), generator=generator)


def log_normal_poisson(
    a: Moments, x: Float[Tensor, "*size"], nodes: int = 32
) -> Float[Tensor, "*size"]:
    """Return log E Poisson(x; exp(a)) of normal a, by element.

    By Gauss and Hermite's quadrature, which stands where Poisson(x; e^a) N(a) is largest and is as
    wide as it is there: within 1e-5 for V[a] <= 4, within 0.005 for V[a] <= 50.

    Args:
        a: logarithms of the rates.
        x: counts.
        nodes: of the quadrature.
    """
    dtype = a.mean.dtype
    if dtype in (torch.bfloat16, torch.float16):
        a, x = Moments(*(one.float() for one in a)), x.float()
    mean, variance = (one.unsqueeze(-1) for one in a)
    x, std = x.unsqueeze(-1), deviation(variance)
    z, log_weight = (one.to(mean) for one in _hermite(nodes))
    with torch.no_grad():  # where the nodes stand does not change the integral
        least = torch.finfo(mean.dtype).tiny
        at_least = variance.clamp(min=least)
        steepness = _omega((at_least.log() + mean + variance * x).clamp(min=math.log(least)))
        width = (1 + steepness).rsqrt()
        u = std * (x - steepness / at_least) + width * z
    eta = mean + std * u
    exponent = log_weight + (z.square() - u.square()) / 2 + x * eta - torch.exp(eta)
    found = torch.logsumexp(exponent + width.log(), -1) - torch.lgamma(x + 1).squeeze(-1)
    return _of_type(found, dtype)


@cache
def _hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and log-weights of E f(z), z ~ N(0, 1): Golub and Welsch (1969)."""
    beside = torch.arange(1, nodes, dtype=torch.float64, device="cpu").sqrt()
    z, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return z, vectors[0].square().log()


def _omega(x: Tensor) -> Tensor:
    """Return Wright's ω, y + log y = x, by Newton's method."""
    y = torch.where(x > 1, x, x.clamp(max=1).exp())
    for _ in range(4):
        y = y * (1 + x - y.log()) / (1 + y)
    return y


def _drawn(parameters: Moments, generator: torch.Generator | None) -> Tensor:
    """Draw a ~ N(E[a], V[a])."""
    mean, std = parameters.mean, deviation(parameters.variance)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + std * noise
