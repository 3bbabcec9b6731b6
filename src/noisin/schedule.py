"""The strength of noise over training: ramps and decays, as for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from noisin.noise import terms_of
from noisin.noisy import Noisy
from noisin.strength import is_learned, scaled


def linear(start: float, end: float, steps: int) -> Callable[[int], float]:
    """Return the strength that goes from ``start`` to ``end`` in a straight line, and stays.

    Args:
        start: at step 0, a finite number >= 0.
        end: from step ``steps`` on, a finite number >= 0.
        steps: above 0.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> [linear(0.0, 1.0, 4)(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if steps <= 0:
        raise ValueError(f"linear: steps must be > 0, got {steps}")
    for name, value in (("start", start), ("end", end)):
        if not 0 <= value < math.inf:
            raise ValueError(f"linear: {name} must be a finite number >= 0, got {value}")

    def strength(step: int) -> float:
        done = min(step / steps, 1.0)
        return start * (1 - done) + end * done

    return strength


class StrengthSchedule:
    """Sets the strength of all noise in a model, step by step.

    At step k every standard deviation σ that is not learned becomes s(k) · σ: of a
    ``Bernoulli(keep=p)``, where σ² = (1 - p)/p, that is another p; of a ``Zoneout`` its
    probabilities are multiplied. At s = 0 all of these are off; torch's ``dropout=`` is not.

    Args:
        model: its ``noisin`` layers are set, now and at every ``step()``.
        strength: s, from the number of steps done to a finite number >= 0, and > 0 in a layer that
            has learned spreads beside fixed ones.

    Raises:
        ValueError: no layer of the model has noise that is not learned, or a strength that is not
            possible.

    Note:
        The strength is no part of the model's ``state_dict``: keep the schedule's beside it, as
        that of a learning rate. A copy, such as ``AveragedModel`` makes, stays at the strength it
        was copied at, which ``Zoneout`` and ``@ moments`` follow in evaluation: give it a schedule
        of its own, or the model's strength. What torch compiled is compiled anew for another
        strength.

    Examples:
        >>> from noisin import LSTM
        >>> layer = LSTM(4, 8, noise="hidden * Gaussian(0.5)")
        >>> schedule = StrengthSchedule(layer, linear(0.0, 1.0, 100))
        >>> layer.strength
        0.0
        >>> for _ in range(50):
        ...     schedule.step()
        >>> layer.strength
        0.5
    """

    def __init__(self, model: nn.Module, strength: Callable[[int], float]) -> None:
        self._layers = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, Noisy) and not all(map(is_learned, terms_of(module.noise)))
        ]
        if not self._layers:
            raise ValueError(
                "StrengthSchedule: the model must have a layer with noise whose standard deviation "
                f"is not learned, got {type(model).__name__}"
            )
        self._strength = strength
        self._set(0)

    @property
    def strength(self) -> float:
        """The strength at this step."""
        return self._strength(self.steps)

    def step(self) -> None:
        """Count one step, and set the strength that follows.

        Raises:
            ValueError: it is not possible in some layer; then nothing is changed.
        """
        self._set(self.steps + 1)

    def _set(self, steps: int) -> None:
        strength = self._strength(steps)
        for name, layer in self._layers:
            try:
                scaled(layer.noise, strength)
            except ValueError as error:
                raise ValueError(f"{name or 'the model'}, step {steps}: {error}") from None
        for _, layer in self._layers:
            layer.strength = strength
        self.steps = steps

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps done."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the step that ``state_dict`` gave."""
        self._set(state["steps"])
