"""Likelihoods of the exponential family: p(x_t | z_t) with natural parameters V z_t + b.

Each head is a ``Linear`` layer that reads the hidden state, and the distribution it parametrizes.
``log_likelihood`` sums over the features of one time step and over nothing else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from noisin.dense import Linear
from noisin.fused.categorical import log_probability
from noisin.shapes import Float, Int


class Head(Linear, ABC):
    """A linear read-out and the distribution of x_t that it parametrizes.

    Args:
        in_features: H, size of the hidden state.
        out_features: number of observed features, or classes.
        **kwargs: as ``noisin.Linear``; ``noise`` acts at ``input`` or ``weight``.
    """

    @abstractmethod
    def log_likelihood(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x_t | z_t), summed over features.

        Args:
            parameters: V z_t + b, what calling the head gives.
            x: the observations.
        """

    @abstractmethod
    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x_t ~ p(x_t | z_t)."""


class BernoulliHead(Head):
    """Independent binary features: P(x_i = 1) = σ(V z + b)_i. ``x`` is [..., F] of 0 and 1."""

    def log_likelihood(
        self, parameters: Float[Tensor, "*size F"], x: Float[Tensor, "*size F"]
    ) -> Float[Tensor, "*size"]:
        """Return Σ_i x_i log p_i + (1 - x_i) log (1 - p_i)."""
        return -binary_cross_entropy_with_logits(parameters, x, reduction="none").sum(-1)

    def sample(
        self, parameters: Float[Tensor, "*size F"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*size F"]:
        """Draw each feature on its own."""
        return torch.bernoulli(torch.sigmoid(parameters), generator=generator)


class CategoricalHead(Head):
    """One of V classes: p(x) = softmax(V z + b)_x. ``x`` holds class indices."""

    def log_likelihood(
        self, parameters: Float[Tensor, "*size V"], x: Int[Tensor, "*size"]
    ) -> Float[Tensor, "*size"]:
        """Return log softmax at x."""
        return log_probability(parameters, x)

    def sample(
        self, parameters: Float[Tensor, "*size V"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "*size"]:
        """Draw one class."""
        flat = torch.softmax(parameters, -1).view(-1, parameters.shape[-1])
        return torch.multinomial(flat, 1, generator=generator).view(parameters.shape[:-1])


class GaussianHead(Head):
    """Independent real features: x_i ~ N((V z + b)_i, σ_i²) with a trained σ_i a feature.

    Args:
        in_features: H, size of the hidden state.
        out_features: number of observed features.
        **kwargs: as ``noisin.Linear``.
    """

    def __init__(self, in_features: int, out_features: int, **kwargs) -> None:
        super().__init__(in_features, out_features, **kwargs)
        self.log_std = nn.Parameter(torch.zeros_like(self.weight[:, 0]))

    def log_likelihood(
        self, parameters: Float[Tensor, "*size F"], x: Float[Tensor, "*size F"]
    ) -> Float[Tensor, "*size"]:
        """Return Σ_i -½ ((x_i - μ_i)/σ_i)² - log σ_i - ½ log 2π."""
        score = (x - parameters) * torch.exp(-self.log_std)
        return -(0.5 * score**2 + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(
        self, parameters: Float[Tensor, "*size F"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*size F"]:
        """Draw each feature on its own."""
        noise = torch.randn(
            parameters.shape,
            generator=generator,
            dtype=parameters.dtype,
            device=parameters.device,
        )
        return parameters + torch.exp(self.log_std) * noise


class PoissonHead(Head):
    """Independent counts: x_i ~ Poisson(exp(V z + b)_i). ``x`` is [..., F] of counts."""

    def log_likelihood(
        self, parameters: Float[Tensor, "*size F"], x: Float[Tensor, "*size F"]
    ) -> Float[Tensor, "*size"]:
        """Return Σ_i x_i η_i - exp η_i - log x_i!."""
        return (x * parameters - torch.exp(parameters) - torch.lgamma(x + 1)).sum(-1)

    def sample(
        self, parameters: Float[Tensor, "*size F"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*size F"]:
        """Draw each count on its own."""
        return torch.poisson(torch.exp(parameters), generator=generator)
