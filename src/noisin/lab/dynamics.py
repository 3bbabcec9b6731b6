"""Series from public formulas: chaotic systems, sampled and observed with noise.

They are integrated by the classical Runge-Kutta method with additions, multiplications and
divisions alone, which round alike on every machine; the noise has a seed. So every machine has the
same series, though the systems amplify the smallest difference.

References:
    Lorenz (1963): Deterministic nonperiodic flow.
    Mackey, Glass (1977): Oscillation and chaos in physiological control systems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Point = tuple[float, float, float]

SEED = 1  # of the observation noise
BEFORE = 500  # steps that are left out at the start, until the system is on its attractor


class Example(NamedTuple):
    """A system.

    Args:
        columns: names of what is observed.
        clean: returns so many steps of it without noise, [N, F].
        steps: how many there are.
        noise: standard deviation of the observation noise, a share of each column's own.
    """

    columns: tuple[str, ...]
    clean: Callable[[int], Values]
    steps: int
    noise: float


def lorenz(steps: int, spacing: float = 0.05, substeps: int = 10) -> Values:
    """Return x, y, z of the Lorenz system, [N, 3].

    dx/dt = 10 (y - x), dy/dt = x (28 - z) - y, dz/dt = x y - 8/3 z.

    Args:
        steps: N.
        spacing: time from a step to the next.
        substeps: steps of Runge-Kutta in between.
    """

    def slope(x: float, y: float, z: float) -> Point:
        return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z

    dt = spacing / substeps
    point: Point = (1.0, 1.0, 20.0)
    found = np.empty((steps + BEFORE, 3))
    for step in range(steps + BEFORE):
        found[step] = point
        for _ in range(substeps):
            first = slope(*point)
            second = slope(*_moved(point, first, dt / 2))
            third = slope(*_moved(point, second, dt / 2))
            last = slope(*_moved(point, third, dt))
            for part, share in ((first, 1), (second, 2), (third, 2), (last, 1)):
                point = _moved(point, part, share * dt / 6)
    return found[BEFORE:]


def _moved(point: Point, slope: Point, time: float) -> Point:
    (x, y, z), (a, b, c) = point, slope
    return x + time * a, y + time * b, z + time * c


def mackey_glass(steps: int, delay: int = 17, substeps: int = 10) -> Values:
    """Return x of the Mackey-Glass equation at whole times, [N, 1].

    dx/dt = 0.2 x(t - τ) / (1 + x(t - τ)¹⁰) - 0.1 x(t).

    Args:
        steps: N.
        delay: τ.
        substeps: steps of Runge-Kutta a unit of time; x(t - τ) between them is the mean of both.
    """

    def slope(x: float, before: float) -> float:
        square = before * before
        fourth = square * square
        return 0.2 * before / (1 + fourth * fourth * square) - 0.1 * x

    dt = 1 / substeps
    past = [1.2] * (delay * substeps + 1)  # x(t - τ) … x(t)
    for _ in range((steps + BEFORE) * substeps):
        x, here = past[-1], len(past) - 1 - delay * substeps
        start, end = past[here], past[here + 1]
        middle = (start + end) / 2
        first = slope(x, start)
        second = slope(x + dt / 2 * first, middle)
        third = slope(x + dt / 2 * second, middle)
        last = slope(x + dt * third, end)
        past.append(x + dt / 6 * (first + 2 * second + 2 * third + last))
    return np.array(past[-1 - (steps - 1) * substeps :: substeps])[:, None]


EXAMPLES = {
    "lorenz": Example(("x", "y", "z"), lorenz, 1500, 0.1),
    "mackey-glass": Example(("x",), mackey_glass, 1500, 0.2),
}


def observed(name: str) -> Values:
    """Return an example with its observation noise, [N, F].

    Args:
        name: a key of ``EXAMPLES``.
    """
    example = EXAMPLES[name]
    clean = example.clean(example.steps)
    noise = np.random.default_rng(SEED).standard_normal(clean.shape)
    return clean + example.noise * clean.std(0) * noise
