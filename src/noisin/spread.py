"""Spreads that are trained with the weights."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from noisin.shapes import Float

Per = Literal["layer", "unit", "weight"]


def positive(owner: str, name: str, value: object) -> float:
    """Return ``value`` as a float, or raise: it must be a finite number above 0."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # an int beyond the largest float
            if 0 < float(value) < math.inf:
                return float(value)
    raise ValueError(f"{owner}: {name} must be a finite number > 0, got {value!r}")


@dataclass(frozen=True, repr=False)
class Learned:
    """A standard deviation that is trained with the weights: std = floor + softplus(ρ).

    Args:
        init: standard deviation at the start, > floor.
        floor: lower bound, >= 0. Unbounded below, training drives the spread to 0 and the
            regularization away.
        per: how many spreads there are: one a ``"layer"`` (and direction), a ``"unit"``, or a
            ``"weight"``.

    Raises:
        ValueError: a number out of range or an unknown ``per``.

    Note:
        ρ is a parameter of the layer whose name begins with ``rho_``. What draws all parameters to
        0, weight decay or a loop that initializes them, draws the spread to floor + log 2: leave
        out those for which ``".rho_" in f".{name}"``.

    Examples:
        >>> spread = Learned(0.5, floor=0.1)
        >>> round(spread.std(torch.tensor(spread.initial())).item(), 6)
        0.5

    References:
        Dieng, Altosaar, Ranganath, Blei: Noise-based regularizers for recurrent neural networks,
        section 3 (why a bound is needed) and section 4 (0.1 added to the spread).
    """

    init: float
    floor: float = 0.0
    per: Per = "layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", positive("Learned", "init", self.init))
        zero = isinstance(self.floor, Real) and not isinstance(self.floor, bool)
        if not (zero and self.floor == 0):
            object.__setattr__(self, "floor", positive("Learned", "floor", self.floor))
        object.__setattr__(self, "floor", float(self.floor))
        if self.init <= self.floor:
            raise ValueError(f"Learned: init must be > floor {self.floor}, got {self.init}")
        if self.per not in get_args(Per):
            raise ValueError(f"Learned: per must be one of {get_args(Per)}, got {self.per!r}")

    def initial(self) -> float:
        """Return ρ with floor + softplus(ρ) = init."""
        gap = self.init - self.floor
        return gap + math.log(-math.expm1(-gap))

    def std(self, rho: Float[Tensor, "*size"]) -> Float[Tensor, "*size"]:
        """Return floor + softplus(ρ)."""
        return self.floor + torch.nn.functional.softplus(rho)

    def __str__(self) -> str:
        floor = f", floor={self.floor}" if self.floor else ""
        per = f', per="{self.per}"' if self.per != "layer" else ""
        return f"Learned({self.init}{floor}{per})"

    __repr__ = __str__
