"""Mean and variance of a random tensor, carried through operations.

Only the first two moments of each number are kept, and the numbers of one tensor are taken to be
independent of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisin.noise import Operator
from noisin.shapes import Float

Variance = float | Tensor


def added_variance(
    mean: Float[Tensor, "*size"],
    variance: Float[Tensor, "*size"],
    operator: Operator,
    noise: Variance,
) -> Float[Tensor, "*size"]:
    """Return what independent noise of mean 0 adds to the variance of a random tensor.

    V[t (1 + ε)] - V[t] = V[ε] (E[t]² + V[t]), and V[t + ε] - V[t] = V[ε]: exact for any law.

    Args:
        mean: E[t].
        variance: V[t].
        operator: how the noise acts.
        noise: V[ε], a number or a tensor that broadcasts to t.
    """
    if operator == "*":
        return noise * (mean.square() + variance)
    return torch.as_tensor(noise, dtype=mean.dtype, device=mean.device).expand_as(mean)


def deviation(variance: Tensor) -> Tensor:
    """Return the square root, with a gradient of 0 where the variance is 0."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)
