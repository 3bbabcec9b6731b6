"""Standard random variables that torch draws with no generator, or not at all, and their types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from noisin.streams import Stream


def source(generator: torch.Generator | None) -> dict[str, Any]:
    """Return the keyword for a generator, if there is one: dynamo cannot trace a None."""
    return {} if generator is None else {"generator": generator}


def numbers(
    kind: Literal["rand", "randn"],
    size: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw U[0, 1) or N(0, 1), as torch's function of that name does."""
    if isinstance(generator, Stream):
        return getattr(generator, kind)(size, dtype, device)
    return getattr(torch, kind)(tuple(size), **source(generator), dtype=dtype, device=device)


def uniform(
    size: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw U(0, 1) without 0 and 1, so that logarithms of u and 1 - u are finite."""
    u = numbers("rand", size, generator, dtype, device)
    return u.clamp_(min=torch.finfo(dtype).eps / 4)


def gamma(
    shape: float,
    size: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw Gamma(shape, rate 1)."""
    alpha = torch.full(tuple(size), shape, dtype=dtype, device=device)
    # the public torch.distributions.Gamma takes no generator
    return torch._standard_gamma(alpha, generator=generator)  # pyright: ignore[reportPrivateImportUsage]


def log_gamma(
    shape: float,
    size: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw log G with G ~ Gamma(shape, 1), as log(G' u^(1/shape)), G' ~ Gamma(shape + 1, 1).

    A small shape puts most of G below the smallest number; its logarithm stays exact.
    """
    larger = gamma(shape + 1, size, generator, dtype, device)
    return larger.log() + uniform(size, generator, dtype, device).log() / shape


def floating(owner: object, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type to draw, or raise: it must be a floating type."""
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise TypeError(f"{owner}: dtype must be a floating type, got {dtype}")
    return dtype


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: 16-bit draws are rounded once, at the end."""
    return dtype if dtype == torch.float64 else torch.float32
