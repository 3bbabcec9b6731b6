"""Launches of Triton kernels: which tile a program has, and one launch again and again."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from triton import JITFunction
from triton.language import constexpr

from noisin.fused import kernels

if TYPE_CHECKING:
    from noisin.fused.triton_told import Arguments


_COMPILED: dict[Any, Any] = {}
"""What Triton compiled, by kernel, device, options and kinds of arguments."""


class Launch:
    """A kernel that one call launches again and again.

    Triton looks at every argument to pick what it compiled for such, which takes longer than many
    a step. That is picked by fewer questions here, once for all launches, and given addresses for
    tensors: nothing but the step changes from one to the next.

    Args:
        kernel: of ``noisin.fused.kernels``.
        arguments: what it reads and writes.
        units: which programs share among them, H or P.
        options: blocks of the kernel, in its order, and how it is compiled.
        replicas: how many calls this is.
    """

    def __init__(
        self,
        kernel: Any,
        arguments: Arguments,
        units: constexpr,
        options: dict[str, int | bool],
        replicas: int = 1,
    ) -> None:
        rows, columns = options["BLOCK_B"], options["BLOCK_H"]
        self._grid = -(-arguments.told.batch // rows), -(-units.value // columns), replicas
        self._kernel, self._arguments, self._options = kernel, arguments, options
        self._blocks = [size for name, size in options.items() if name.startswith("BLOCK")]
        self._compiled: Any = None

    @property
    def programs(self) -> int:
        """How many programs it starts."""
        return prod(self._grid)

    def __call__(self, *given: int | Tensor) -> None:
        """Launch it, with a step or with what all programs count on."""
        told = self._arguments.told
        if told.states.at is None:  # no sequences
            return
        with torch.cuda.device_of(told.states.at):
            if not isinstance(self._kernel, JITFunction):  # the interpreter's
                self._kernel[self._grid](told, *given, **self._options)
                return
            if self._compiled is None:
                self._compiled = self._found(told.states.at.device, given)[self._grid]
            self._compiled(self._arguments.addresses, *given, *self._blocks)

    def _found(self, device: torch.device, given: tuple[int | Tensor, ...]) -> Any:
        """Return what Triton compiles for such arguments."""
        types = [one.dtype for one in given if isinstance(one, Tensor)]
        key = self._kernel, device, *self._options.values(), self._arguments.kinds, *types
        if key not in _COMPILED:
            told, options = self._arguments.told, self._options
            _COMPILED[key] = self._kernel.warmup(told, *given, grid=self._grid, **options)
        return _COMPILED[key]


def run(launches: list[Launch], steps: range) -> None:
    """Launch all of a step, one step after the other."""
    for t in steps:
        for launch in launches:
            launch(t)


POINTWISE = {"BLOCK_B": 2, "BLOCK_H": 64, "num_warps": 1, "enable_fp_fusion": True}
_TILES = ((32, 64), (32, 32), (16, 32), (16, 16))  # 16: what a product of tiles takes at least
_ENOUGH = 66  # programs, half of the multiprocessors of an H100
_SHARED = 88 * 1024  # bytes of shared memory for tiles; all devices from sm_80 on have 99 KiB


def multiprocessors(device: torch.device) -> int:
    """Return how many programs run at once at the least: Triton's interpreter runs one by one."""
    if not isinstance(kernels.step, JITFunction):
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def blocks(
    batch: int, units: int, column: int, row: int, replicas: int = 1, room: int = 0
) -> dict[str, int | bool]:
    """Return which tile a program has, and how it is computed.

    It is the largest whose programs occupy half of a large GPU, or else the smallest. Of programs
    that wait for each other it is the smallest for which there is room, or else the largest.

    Args:
        batch: B.
        units: which programs share among them.
        column: bytes a unit brings to each addend of its products.
        row: bytes a sequence brings.
        replicas: calls at once.
        room: how many programs run at once, where they wait for each other.
    """

    def programs(tile: tuple[int, int]) -> int:
        return -(-batch // tile[0]) * -(-units // tile[1]) * replicas

    if room:
        tile = next((tile for tile in reversed(_TILES) if programs(tile) <= room), _TILES[0])
    else:
        tile = next((tile for tile in _TILES if programs(tile) >= _ENOUGH), _TILES[-1])
    rows, columns = tile
    addend = 2 * (rows * row + columns * column)  # two tiles at a time, one on its way
    return {
        "BLOCK_B": rows,
        "BLOCK_H": columns,
        "BLOCK_K": next((depth for depth in (128, 64, 32) if addend * depth <= _SHARED), 16),
        # a program that others wait for has the registers of a multiprocessor to itself
        "num_warps": 4 if rows * columns <= 512 and not room else 8,
        "num_stages": 3,
        "enable_fp_fusion": True,
        "launch_cooperative_grid": bool(room),
    }
