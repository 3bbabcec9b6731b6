"""Times and peak memory of functions that are compared, interleaved in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def times(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm: int = 2
) -> dict[str, float]:
    """Return the median time of each function in milliseconds; each round runs all in turn."""
    for _ in range(warm):
        for function in functions.values():
            function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def table(found: Mapping[str, float], against: str) -> str:
    """Return lines of name, median and ratio to one of them."""
    width = max(map(len, found))
    return "\n".join(
        f"  {name:{width}s} {value:9.2f} ms {value / found[against]:6.2f}"
        for name, value in found.items()
    )
