"""Initialization of recurrent weights: sparse rows and a given spectral radius."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor

from noisin.diagnostics import spectral_radius
from noisin.shapes import Float


@torch.no_grad()
def sparse_(
    weight: Float[Tensor, "out in"],
    nonzeros: int,
    std: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "out in"]:
    """Fill with N(0, std²) and leave each unit ``nonzeros`` incoming connections.

    Args:
        weight: [out, in], changed in place; the incoming connections of a unit are a row.
        nonzeros: ν, connections that a unit keeps, 1 <= ν <= in.
        std: standard deviation of those kept, a finite number > 0.
        generator: source of randomness; torch's default generator without it.

    Raises:
        ValueError: a number out of range.

    Note:
        ``torch.nn.init.sparse_`` takes a fraction, and thins out outgoing connections.

    Examples:
        >>> weight = sparse_(torch.empty(4, 10), nonzeros=3, std=0.1)
        >>> (weight != 0).sum(1).tolist()
        [3, 3, 3, 3]

    References:
        Sutskever et al. (2013); Bayer et al.: On fast dropout …, section 2.3.
    """
    columns = weight.shape[1]
    whole = isinstance(nonzeros, Integral) and not isinstance(nonzeros, bool)
    if not whole or not 1 <= nonzeros <= columns:
        raise ValueError(f"sparse_: nonzeros must be an int within 1 … {columns}, got {nonzeros}")
    if not 0 < std < math.inf:
        raise ValueError(f"sparse_: std must be a finite number > 0, got {std}")
    weight.normal_(0, std, generator=generator)
    rank = torch.rand(weight.shape, generator=generator, device=weight.device).argsort(1)
    return weight.mul_(rank < nonzeros)


@torch.no_grad()
def spectral_radius_(weight_hh: Float[Tensor, "GH H"], radius: float) -> Float[Tensor, "GH H"]:
    """Scale each gate's square block to a spectral radius, in place.

    Args:
        weight_hh: recurrent weights [G·H, H], one block a gate.
        radius: ρ, a finite number > 0.

    Raises:
        ValueError: ``radius`` out of range, or a block whose spectral radius is 0.

    Examples:
        >>> weight = spectral_radius_(torch.randn(8, 8), 1.1)
        >>> round(spectral_radius(weight).item(), 4)
        1.1

    References:
        Sutskever et al. (2013); Bayer et al.: On fast dropout …, section 2.3.
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"spectral_radius_: radius must be a finite number > 0, got {radius}")
    now = spectral_radius(weight_hh)
    if not bool((now > 0).all()):
        raise ValueError(
            f"spectral_radius_: every block must have a radius > 0, got {now.tolist()}"
        )
    size = weight_hh.shape[1]
    return weight_hh.mul_((radius / now).repeat_interleave(size).unsqueeze(1))
