"""Random numbers that are drawn again and again from a seed, fast on a CPU.

torch's generator for CPUs makes one number after another, and a matrix of noise at each step then
takes longer than the product with it. Here number n of a seed is a function of n, Threefry-2x32 of
20 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011), which processors take
eight or sixteen at a time and threads share.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisin import native

Device = torch.device | str | None
LONGEST = 2**33  # numbers of a draw that a counter of 32 bits tells apart, two at a time


def _load() -> Any:
    """Return the function of ``draws.c``, or None."""
    function = getattr(native.extension(), "noisin_draw", None)
    if function is not None:
        function.argtypes = (
            *(ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
        )
        function.restype = None
    return function


_DRAW = _load()


class Stream(torch.Generator):
    """A generator of one seed, whose uniform and normal float32 on a CPU come from a counter.

    To all other functions of torch it is an ordinary generator of that seed, and its state is that
    of this one alone.

    Args:
        device: where to draw.
        seed: 0 <= seed < 2^64; of two streams of one seed the same calls give the same numbers.
    """

    def __new__(cls, device: torch.device, seed: int) -> Stream:
        """Make torch's generator, which takes the device alone."""
        return super().__new__(cls, device)  # pyright: ignore[reportCallIssue]

    def __init__(self, device: torch.device, seed: int) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Stream:
        """Begin anew."""
        super().manual_seed(seed)
        self._seed, self._calls = seed, 0
        return self

    def rand(self, size: Sequence[int], dtype: torch.dtype, device: Device = None) -> Tensor:
        """Draw U[0, 1), multiples of 2^-24 as torch's."""
        return self._filled(0, size, dtype, device)

    def randn(self, size: Sequence[int], dtype: torch.dtype, device: Device = None) -> Tensor:
        """Draw N(0, 1) by Box and Muller's transform."""
        return self._filled(1, size, dtype, device)

    def _filled(
        self, normal: int, size: Sequence[int], dtype: torch.dtype, device: Device
    ) -> Tensor:
        device = self.device if device is None else torch.device(device)
        served = dtype == torch.float32 and device.type == self.device.type == "cpu"
        if _DRAW is None or not served or math.prod(size) > LONGEST:
            draw = torch.randn if normal else torch.rand
            return draw(tuple(size), generator=self, dtype=dtype, device=device)
        drawn = torch.empty(tuple(size), dtype=dtype, device=device)
        if type(drawn) is Tensor:  # and none without numbers
            at = self._seed, self._calls, normal, drawn.numel(), drawn.data_ptr()
            _DRAW(*at, *native.in_threads().values())
        self._calls += 1
        return drawn
