"""The recurrence by the Triton kernels of ``noisin.fused.kernels``.

``Steps`` is one step without its matrix products, ``Walk`` all steps with them: a launch a step and
way, or two with a projection, and one more at the end of the way back. A walk may take several
calls of one shape at once, *replicas*, in the same number of launches. Importing this module
imports Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv
from triton.language import constexpr

from noisin.fused import kernels
from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.recurrent import Call


class Rows(NamedTuple):
    """A tensor as the kernels read it.

    Args:
        at: [T, B, width] of the first replica; less where all steps share it; None: not there.
        apart: numbers from there to the next replica's.
        width: numbers of a row.
        held: whether all steps share it.
    """

    at: Tensor | None
    apart: int
    width: constexpr
    held: constexpr


NOTHING = Rows(None, 0, constexpr(0), constexpr(True))


class Told(NamedTuple):
    """What the kernels are told; what has no word here is a field of ``Buffers``.

    Numbers come last: of a tuple in a tuple, Triton 3.5 and 3.6 forget constants inside loops
    where none of the outer tuple follows.

    Args:
        out: nothing where it is ``states``.
        weight: W_hh [G·H, P].
        projection: W_hr [P, H].
        recurrent_factor: [T, B, P], with a draw a gate G·P instead of P.
        recurrent_offset: likewise.
        grad_state: the field ``state`` of ``Gradients``, and so on.
        batch: B.
        steps: T.
        hidden: H.
        state: P.
        gate_count: G.
        draws: of the noise of ``recurrent``, G where each gate has its own, or else 1.
        precision: of products with float32 matrices, "ieee" or "tf32".
    """

    h0: Rows
    c0: Rows
    gates: Rows
    cells: Rows
    extra: Rows
    states: Rows
    out: Rows
    inner: Rows
    raw: Rows
    hidden_factor: Rows
    hidden_offset: Rows
    candidate_factor: Rows
    candidate_offset: Rows
    hidden_kept: Rows
    cell_kept: Rows
    weight: Rows
    projection: Rows
    recurrent_factor: Rows
    recurrent_offset: Rows
    grad_state: Rows
    grad_cell: Rows
    grad_raw: Rows
    grad_inner: Rows
    grad_gates: Rows
    grad_product: Rows
    grad_out: Rows
    grad_states: Rows
    grad_cells: Rows
    lengths: Rows
    bias: Rows
    inner_bias: Rows
    batch: int
    steps: int
    hidden: constexpr
    state: constexpr
    gate_count: constexpr
    draws: constexpr
    precision: constexpr
    mode: constexpr
    reverse: constexpr


_GIVEN = (
    *("hidden_factor", "hidden_offset", "candidate_factor", "candidate_offset", "hidden_kept"),
    *("cell_kept", "lengths", "bias", "inner_bias", "inner", "raw"),
)
_MADE = ("gates", "cells", "extra", "states")
_MADE_BACK = ("state", "cell", "gates", "product", "states", "cells")
_GIVEN_BACK = ("raw", "inner", "out")
_PRODUCT = ("weight", "projection", "recurrent_factor", "recurrent_offset")


def serves(dtype: torch.dtype) -> bool:
    """Return whether the kernels take buffers of this dtype."""
    return dtype == torch.float32


class Steps:
    """The steps of one call; methods as those of ``Eager``, which also says what they compute.

    Args:
        buffers: of the way forward.
        gradients: of the way back.
    """

    def __init__(self, buffers: Buffers, gradients: Gradients | None = None) -> None:
        told = _told([buffers], [gradients])
        self._forward = _Launch(kernels.forward, told, told.hidden, _POINTWISE)
        self._emit = _Launch(kernels.emit_state, told, told.state, _POINTWISE)
        self._absorb = _Launch(kernels.absorb_state, told, told.state, _POINTWISE)
        self._backward = _Launch(kernels.backward, told, told.hidden, _POINTWISE)

    def forward(self, t: int, product: Tensor) -> None:
        """From W_hh h_{t-1} to h_t before a projection."""
        self._forward(t, product.contiguous())

    def emit(self, t: int) -> None:
        """z_t: h_t under the noise of ``hidden`` and zoneout."""
        self._emit(t)

    def absorb(self, t: int) -> None:
        """The gradient of h_t before noise from what arrives at z_t."""
        self._absorb(t)

    def backward(self, t: int) -> None:
        """The gradients of both products from that of h_t before a projection."""
        self._backward(t)


class Walk:
    """All steps of one call, or of several at once.

    Args:
        calls: of one shape, with the same kinds of noise. Buffers and gradients are in float32;
            biases, noise, h0, c0 and ``out`` may be in half precision. What a matrix is multiplied
            with is rounded to its dtype.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        products = [call.product for call in calls]
        first = products[0]
        noise = [one for one in (first.factor, first.offset) if one is not None]
        draws = max([one.shape[-1] // first.weight.shape[-1] for one in noise], default=1)
        self._noises, self._replicas = draws * len(noise), len(calls)
        self._steps = calls[0].buffers.steps
        told = _told([call.buffers for call in calls], [call.gradients for call in calls])
        self._told = told._replace(
            draws=constexpr(draws),
            weight=_rows([_contiguous(one.weight) for one in products]),
            projection=_rows([_contiguous(call.projection) for call in calls]),
            recurrent_factor=_rows([_contiguous(one.factor) for one in products]),
            recurrent_offset=_rows([_contiguous(one.offset) for one in products]),
        )

    def forward(self) -> None:
        """From W_ih x and the first state to the outputs and the last state."""
        told, gates = self._told, self._told.gate_count.value
        launches = [self._launch(kernels.step, told.hidden, told.weight, gates, self._noises)]
        if told.projection.at is not None:
            launches.append(self._launch(kernels.project, told.state, told.projection))
        _run(launches, self._steps)

    def backward(self) -> None:
        """From the gradients of those to what arrives at the products of each step."""
        told = self._told
        launches = [self._launch(kernels.step_back, told.state, told.weight)]
        if told.projection.at is not None:
            launches.append(self._launch(kernels.project_back, told.hidden, told.projection))
        _run(launches, self._steps[::-1])
        _run([self._launch(kernels.send_back, told.state, told.weight)], self._steps[:1])

    def _launch(
        self, kernel: Any, units: constexpr, matrix: Rows, products: int = 1, noises: int = 0
    ) -> _Launch:
        """Return the launch of a kernel with a product.

        Args:
            kernel: of ``noisin.fused.kernels``.
            units: which programs share among them, H or P.
            matrix: what is multiplied with.
            products: how many products a program makes at once.
            noises: how many factors and offsets act on what the matrix is multiplied with.
        """
        assert matrix.at is not None
        column, row = products * matrix.at.element_size(), 4 * (1 + noises)
        tile = blocks(self._told.batch, units.value, column, row, self._replicas)
        return _Launch(kernel, self._told, units, tile, self._replicas)


class _Launch:
    """A kernel that one call launches again and again.

    At the first launch Triton looks at every argument and picks what it compiled for such. Nothing
    of that changes with the step, so the others take it from there, and addresses for tensors.

    Args:
        kernel: of ``noisin.fused.kernels``.
        told: what it reads and writes.
        units: which programs share among them, H or P.
        options: blocks of the kernel, in its order, and how it is compiled.
        replicas: how many calls this is.
    """

    def __init__(
        self,
        kernel: Any,
        told: Told,
        units: constexpr,
        options: dict[str, int | bool],
        replicas: int = 1,
    ) -> None:
        rows, columns = options["BLOCK_B"], options["BLOCK_H"]
        self._grid = cdiv(told.batch, rows), cdiv(units.value, columns), replicas
        self._kernel, self._told, self._options = kernel, told, options
        self._blocks = [size for name, size in options.items() if name.startswith("BLOCK")]
        self._compiled = self._addresses = None

    def __call__(self, t: int, *more: Tensor) -> None:
        states = self._told.states.at
        if states is None:  # no sequences
            return
        with torch.cuda.device_of(states):
            if self._compiled is None:
                compiled = self._kernel[self._grid](self._told, t, *more, **self._options)
                if compiled is not None:  # Triton's interpreter has nothing to show
                    self._compiled = compiled[self._grid]
                    self._addresses = _addresses(self._told)
            else:
                self._compiled(self._addresses, t, *more, *self._blocks)


def _run(launches: list[_Launch], steps: range) -> None:
    for t in steps:
        for launch in launches:
            launch(t)


def _addresses(value: Any) -> Any:
    """Return nested tuples with an address for each tensor in them."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, Rows | Told):
        return type(value)(*map(_addresses, value))
    return value


_POINTWISE = {"BLOCK_B": 2, "BLOCK_H": 64, "num_warps": 1, "enable_fp_fusion": True}
_TILES = ((32, 64), (32, 32), (16, 32), (16, 16))  # 16: what a product of tiles takes at least
_ENOUGH = 66  # programs, half of the multiprocessors of an H100
_SHARED = 88 * 1024  # bytes of shared memory for tiles; all devices from sm_80 on have 99 KiB


def blocks(
    batch: int, units: int, column: int, row: int, replicas: int = 1
) -> dict[str, int | bool]:
    """Return which tile a program has, and how it is computed.

    It is the largest whose programs occupy half of a large GPU, or else the smallest.

    Args:
        batch: B.
        units: which programs share among them.
        column: bytes a unit brings to each addend of its products.
        row: bytes a sequence brings.
        replicas: calls at once.
    """

    def programs(tile: tuple[int, int]) -> int:
        return -(-batch // tile[0]) * -(-units // tile[1]) * replicas

    rows, columns = next((tile for tile in _TILES if programs(tile) >= _ENOUGH), _TILES[-1])
    addend = 2 * (rows * row + columns * column)  # two tiles at a time, one on its way
    return {
        "BLOCK_B": rows,
        "BLOCK_H": columns,
        "BLOCK_K": next((depth for depth in (128, 64, 32) if addend * depth <= _SHARED), 16),
        "num_warps": 4 if rows * columns <= 512 else 8,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def _told(buffers: Sequence[Buffers], gradients: Sequence[Gradients | None]) -> Told:
    """Return what the kernels are told of calls without their products."""
    first = buffers[0]
    rows: dict[str, Rows] = dict.fromkeys(_PRODUCT, NOTHING)
    for names, where, prefix, made in (
        (_MADE, buffers, "", True),
        (_GIVEN, buffers, "", False),
        (_MADE_BACK, gradients, "grad_", True),
        (_GIVEN_BACK, gradients, "grad_", False),
    ):
        for name in names:
            rows[prefix + name] = _rows([getattr(one, name, None) for one in where], made)
    hidden = first.inner.shape[-1]
    same = first.out is first.states
    return Told(
        **rows,
        h0=_rows([one.h0.float() for one in buffers]),
        c0=_rows([one.c0.float() for one in buffers]),
        out=NOTHING if same else _rows([one.out for one in buffers], made=True),
        batch=len(first.h0),
        steps=len(first.gates),
        hidden=constexpr(hidden),
        state=constexpr(first.h0.shape[-1]),
        gate_count=constexpr(first.gates.shape[-1] // hidden),
        draws=constexpr(1),
        precision=constexpr("tf32" if _allows_tf32() else "ieee"),
        mode=constexpr(first.mode),
        reverse=constexpr(first.reverse),
    )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows(tensors: Sequence[Tensor | None], made: bool = False) -> Rows:
    """Return contiguous tensors, one a replica, as the kernels read them.

    Args:
        tensors: all there, or all missing or without numbers.
        made: whether the kernels write what is read elsewhere. Then the tensors must lie one like
            the other, each as far behind the one before; others are copied where they do not.
    """
    there = [one for one in tensors if one is not None and one.numel()]
    if not there:
        return NOTHING
    first, apart = there[0], 0
    assert len(there) == len(tensors)
    assert all(one.is_contiguous() for one in there)
    if len(there) > 1:
        addresses = [one.data_ptr() for one in there]
        steps = {b - a for a, b in pairwise(addresses)}
        if len(steps) > 1 or min(steps) < 0:
            assert not made
            whole = torch.stack(there)
            first, apart = whole[0], first.numel()
        else:
            apart = steps.pop() // first.element_size()
    held = first.dim() < 3 or len(first) == 1
    return Rows(first, apart, constexpr(first.shape[-1]), constexpr(held))


def _allows_tf32() -> bool:
    """Return whether torch's own products of float32 matrices may round them to TF32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9, where the older name may raise
        return matmul.fp32_precision == "tf32"
    return bool(matmul.allow_tf32)
