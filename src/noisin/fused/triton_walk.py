"""The recurrence by the Triton kernels of ``noisin.fused.kernels``.

``Steps`` is one step without its matrix products, ``Walk`` all steps with them: a launch a step and
way, or two with a projection, and one more at the end of the way back. Importing this module
imports Triton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv
from triton.language import constexpr

from noisin.fused import kernels
from noisin.fused.buffers import Buffers, Gradients


class Rows(NamedTuple):
    """A tensor as the kernels read it.

    Args:
        at: [T, B, width]; [1, B, width] or [B, width] where all steps share it; None: not there.
        width: numbers of a row.
        held: whether all steps share it.
    """

    at: Tensor | None
    width: constexpr
    held: constexpr


NOTHING = Rows(None, constexpr(0), constexpr(True))


class Call(NamedTuple):
    """What the kernels are told of one call; what has no word here is a field of ``Buffers``.

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
    lengths: Tensor | None
    bias: Tensor | None
    inner_bias: Tensor | None
    batch: int
    steps: int
    hidden: constexpr
    state: constexpr
    gate_count: constexpr
    draws: constexpr
    precision: constexpr
    mode: constexpr
    reverse: constexpr


_FORWARD = (
    *("gates", "cells", "extra", "states", "inner", "raw", "hidden_factor", "hidden_offset"),
    *("candidate_factor", "candidate_offset", "hidden_kept", "cell_kept"),
)
_BACKWARD = ("state", "cell", "raw", "inner", "gates", "product", "out", "states", "cells")
_GIVEN = ("lengths", "bias", "inner_bias")
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
        call = _told(buffers, gradients)
        self._forward = _Launch(kernels.forward, call, call.hidden, _POINTWISE)
        self._emit = _Launch(kernels.emit_state, call, call.state, _POINTWISE)
        self._absorb = _Launch(kernels.absorb_state, call, call.state, _POINTWISE)
        self._backward = _Launch(kernels.backward, call, call.hidden, _POINTWISE)

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
    """All steps of one call.

    Args:
        buffers: of the way forward, in float32; biases, noise, h0, c0 and ``out`` may be in half
            precision.
        gradients: of the way back, in float32; ``out`` may be in half precision.
        weight: W_hh [G·H, P]; what it is multiplied with is rounded to its dtype.
        projection: W_hr [P, H] or None; likewise.
        factor: of the noise of ``recurrent``, [T, B, P] or held, or None; with a draw a gate G·P
            instead of P.
        offset: likewise, and as wide as the factor.
    """

    def __init__(
        self,
        buffers: Buffers,
        gradients: Gradients | None,
        weight: Tensor,
        projection: Tensor | None,
        factor: Tensor | None,
        offset: Tensor | None,
    ) -> None:
        noise = [one for one in (factor, offset) if one is not None]
        draws = max([one.shape[-1] // weight.shape[-1] for one in noise], default=1)
        self._noises = draws * len(noise)
        self._steps = buffers.steps
        self._call = _told(buffers, gradients)._replace(
            draws=constexpr(draws),
            weight=_contiguous(weight),
            projection=_contiguous(projection),
            recurrent_factor=_contiguous(factor),
            recurrent_offset=_contiguous(offset),
        )

    def forward(self) -> None:
        """From W_ih x and the first state to the outputs and the last state."""
        call, gates = self._call, self._call.gate_count.value
        launches = [_walking(kernels.step, call, call.hidden, call.weight, gates, self._noises)]
        if call.projection.at is not None:
            launches.append(_walking(kernels.project, call, call.state, call.projection))
        _run(launches, self._steps)

    def backward(self) -> None:
        """From the gradients of those to what arrives at the products of each step."""
        call = self._call
        launches = [_walking(kernels.step_back, call, call.state, call.weight)]
        if call.projection.at is not None:
            launches.append(_walking(kernels.project_back, call, call.hidden, call.projection))
        _run(launches, self._steps[::-1])
        _run([_walking(kernels.send_back, call, call.state, call.weight)], self._steps[:1])


class _Launch:
    """A kernel that one call launches again and again.

    At the first launch Triton looks at every argument and picks what it compiled for such. Nothing
    of that changes with the step, so the others take it from there, and addresses for tensors.

    Args:
        kernel: of ``noisin.fused.kernels``.
        call: what it reads and writes.
        units: which programs share among them, H or P.
        options: blocks of the kernel, in its order, and how it is compiled.
    """

    def __init__(
        self, kernel: Any, call: Call, units: constexpr, options: dict[str, int | bool]
    ) -> None:
        rows, columns = options["BLOCK_B"], options["BLOCK_H"]
        self._grid = cdiv(call.batch, rows), cdiv(units.value, columns), 1
        self._kernel, self._call, self._options = kernel, call, options
        self._blocks = [size for name, size in options.items() if name.startswith("BLOCK")]
        self._compiled = self._addresses = None

    def __call__(self, t: int, *more: Tensor) -> None:
        states = self._call.states.at
        if states is None:  # no sequences
            return
        with torch.cuda.device_of(states):
            if self._compiled is None:
                compiled = self._kernel[self._grid](self._call, t, *more, **self._options)
                if compiled is not None:  # Triton's interpreter has nothing to show
                    self._compiled = compiled[self._grid]
                    self._addresses = _addresses(self._call)
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
    if isinstance(value, Rows | Call):
        return type(value)(*map(_addresses, value))
    return value


_POINTWISE = {"BLOCK_B": 2, "BLOCK_H": 64, "num_warps": 1, "enable_fp_fusion": True}
_TILES = ((32, 64), (32, 32), (16, 32), (16, 16))  # 16: what a product of tiles takes at least
_ENOUGH = 66  # programs, half of the multiprocessors of an H100
_SHARED = 88 * 1024  # bytes of shared memory for tiles; all devices from sm_80 on have 99 KiB


def _walking(
    kernel: Any,
    call: Call,
    units: constexpr,
    matrix: Rows,
    products: int = 1,
    noises: int = 0,
) -> _Launch:
    """Return the launch of a kernel with a product.

    Args:
        kernel: of ``noisin.fused.kernels``.
        call: what it reads and writes.
        units: which programs share among them, H or P.
        matrix: what is multiplied with.
        products: how many products a program makes at once.
        noises: how many factors and offsets act on what the matrix is multiplied with.
    """
    assert matrix.at is not None
    column, row = products * matrix.at.element_size(), 4 * (1 + noises)
    return _Launch(kernel, call, units, blocks(call.batch, units.value, column, row))


def blocks(batch: int, units: int, column: int, row: int) -> dict[str, int | bool]:
    """Return which tile a program has, and how it is computed.

    It is the largest whose programs occupy half of a large GPU, or else the smallest.

    Args:
        batch: B.
        units: which programs share among them.
        column: bytes a unit brings to each addend of its products.
        row: bytes a sequence brings.
    """
    rows, columns = next(
        (tile for tile in _TILES if cdiv(batch, tile[0]) * cdiv(units, tile[1]) >= _ENOUGH),
        _TILES[-1],
    )
    addend = 2 * (rows * row + columns * column)  # two tiles at a time, one on its way
    return {
        "BLOCK_B": rows,
        "BLOCK_H": columns,
        "BLOCK_K": next((depth for depth in (128, 64, 32) if addend * depth <= _SHARED), 16),
        "num_warps": 4 if rows * columns <= 512 else 8,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def _told(buffers: Buffers, gradients: Gradients | None) -> Call:
    """Return what the kernels are told of a call without its products."""
    hidden = buffers.inner.shape[-1]
    rows = {name: _rows(getattr(buffers, name)) for name in _FORWARD}
    rows |= {f"grad_{name}": _rows(getattr(gradients, name, None)) for name in _BACKWARD}
    rows |= dict.fromkeys(_PRODUCT, NOTHING)
    given: dict[str, Any] = {name: getattr(buffers, name) for name in _GIVEN}
    return Call(
        **rows,
        **given,
        h0=_rows(buffers.h0.float()),
        c0=_rows(buffers.c0.float()),
        out=NOTHING if buffers.out is buffers.states else _rows(buffers.out),
        batch=len(buffers.h0),
        steps=len(buffers.gates),
        hidden=constexpr(hidden),
        state=constexpr(buffers.h0.shape[-1]),
        gate_count=constexpr(buffers.gates.shape[-1] // hidden),
        draws=constexpr(1),
        precision=constexpr("tf32" if _allows_tf32() else "ieee"),
        mode=constexpr(buffers.mode),
        reverse=constexpr(buffers.reverse),
    )


def _contiguous(tensor: Tensor | None) -> Rows:
    return NOTHING if tensor is None else _rows(tensor.contiguous())


def _rows(tensor: Tensor | None) -> Rows:
    """Return a contiguous tensor as the kernels read it; nothing without numbers."""
    if tensor is None or not tensor.numel():
        return NOTHING
    assert tensor.is_contiguous()
    held = tensor.dim() == 2 or len(tensor) == 1
    return Rows(tensor, constexpr(tensor.shape[-1]), constexpr(held))


def _allows_tf32() -> bool:
    """Return whether torch's own products of float32 matrices may round them to TF32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9, where the older name may raise
        return matmul.fp32_precision == "tf32"
    return bool(matmul.allow_tf32)
