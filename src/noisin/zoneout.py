"""Zoneout: units that keep their old value instead of taking the new one."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from noisin.noise import Term


@dataclass(frozen=True, repr=False)
class Zoneout(Term):
    """Keep the old value of a unit with a given probability, at each step.

    h_t ← m ⊙ h_{t-1} + (1 - m) ⊙ h_t with m ~ Bernoulli(hidden), and the same for the cell
    state c_t. Unlike every ``Noise`` this changes the mean: in evaluation m is replaced by its
    expectation, so the network is not the plain one.

    Args:
        hidden: probability that a unit of h keeps its value, 0 <= hidden < 1.
        cell: the same for c of an LSTM, 0 <= cell < 1.

    Raises:
        ValueError: a probability out of range, or both 0.

    Examples:
        >>> Zoneout(hidden=0.05, cell=0.5)
        Zoneout(hidden=0.05, cell=0.5)

    References:
        Krueger et al. (2017): Zoneout: regularizing RNNs by randomly preserving hidden activations.
    """

    hidden: float = 0.0
    cell: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hidden", "cell"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 <= value < 1:  # pyright: ignore[reportOperatorIssue]
                raise ValueError(
                    f"Zoneout: {name} must be a number with 0 <= {name} < 1, got {value!r}"
                )
            object.__setattr__(self, name, float(value))
        if self.hidden == self.cell == 0:
            raise ValueError("Zoneout: hidden or cell must be > 0, got 0 for both")

    def __str__(self) -> str:
        given = [f"{n}={getattr(self, n)}" for n in ("hidden", "cell") if getattr(self, n)]
        return f"Zoneout({', '.join(given)})"
