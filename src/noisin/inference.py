"""Averaging over noise: K draws folded into the batch, and predictions averaged over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noisin.noisy import Noisy
from noisin.shapes import Float


@contextmanager
def sampling(model: nn.Module) -> Iterator[nn.Module]:
    """Keep the noise of every layer of ``model`` on in evaluation, torch's ``dropout=`` with it.

    Example:
        >>> import noisin
        >>> layer = noisin.LSTM(4, 8, noise="hidden * Gaussian(1)").eval()
        >>> x = torch.randn(5, 3, 4)
        >>> with sampling(layer):
        ...     noisy, _ = layer(x)
        >>> bool((noisy == layer(x)[0]).all())
        False
    """
    layers = [module for module in model.modules() if isinstance(module, Noisy)]
    before = [layer.sampling for layer in layers]
    try:
        for layer in layers:
            layer.sampling = True
        yield model
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.sampling = value


def fold(x: Tensor, samples: int, dim: int = 1) -> Tensor:
    """Repeat the batch K times, so that one call carries K independent draws.

    Args:
        x: any tensor with a batch dimension.
        samples: K >= 1.
        dim: which dimension is the batch.

    Returns:
        The tensor with B replaced by K·B, all of the batch for each draw in turn.

    Raises:
        ValueError: K below 1.
    """
    _at_least_one(samples)
    repeats = [1] * x.dim()
    repeats[dim] = samples
    return x.repeat(repeats)


def unfold(x: Tensor, samples: int, dim: int = 1) -> Tensor:
    """Undo ``fold``: split the batch dimension and bring K to the front: [K, …, B, …].

    Args:
        x: a tensor whose batch dimension is K·B.
        samples: K >= 1.
        dim: which dimension is the batch.

    Raises:
        ValueError: K below 1, or a batch that is no multiple of it.
    """
    _at_least_one(samples)
    if x.shape[dim] % samples:
        raise ValueError(f"the batch must be a multiple of samples = {samples}, got {x.shape[dim]}")
    dim %= x.dim()
    return x.unflatten(dim, (samples, -1)).movedim(dim, 0)


def _at_least_one(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")


def predictive(log_likelihoods: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
    """Average predictive distributions: log (1/K) Σ_k exp log p(x | z^k).

    By Jensen's inequality this is at least the mean of the log-likelihoods, which is what
    training maximizes.

    Args:
        log_likelihoods: log p(x | z^k), the draws first.
    """
    return torch.logsumexp(log_likelihoods, 0) - math.log(len(log_likelihoods))
