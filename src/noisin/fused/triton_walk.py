"""The recurrence by the Triton kernels of ``noisin.fused.kernels``.

``Steps`` is one step without its matrix products, ``Walk`` all steps with them: a launch a step and
way, or two with a projection, and one more at the end of the way back; or else one launch each way,
*persistent*, where the GPU has room for all its programs at once. A walk may take several calls of
one shape at once, *replicas*, in the same number of launches. Importing this module imports Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.language import constexpr

from noisin.fused import kernels
from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.recurrent import Call
from noisin.fused.triton_launch import POINTWISE, Launch, blocks, multiprocessors, run


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
        self._forward = Launch(kernels.forward, told, told.hidden, POINTWISE)
        self._emit = Launch(kernels.emit_state, told, told.state, POINTWISE)
        self._absorb = Launch(kernels.absorb_state, told, told.state, POINTWISE)
        self._backward = Launch(kernels.backward, told, told.hidden, POINTWISE)

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
        persistent: whether all steps are one launch where its programs can run at once.
    """

    def __init__(self, calls: Sequence[Call], persistent: bool = False) -> None:
        products = [call.product for call in calls]
        first = products[0]
        noise = [one for one in (first.factor, first.offset) if one is not None]
        draws = max([one.shape[-1] // first.weight.shape[-1] for one in noise], default=1)
        self._noises, self._replicas, self._persistent = draws * len(noise), len(calls), persistent
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
        if self._at_once(kernels.all_steps, gates, self._noises):
            return
        launches = [self._launch(kernels.step, told.hidden, told.weight, gates, self._noises)]
        if told.projection.at is not None:
            launches.append(self._launch(kernels.project, told.state, told.projection))
        run(launches, self._steps)

    def backward(self) -> None:
        """From the gradients of those to what arrives at the products of each step."""
        told = self._told
        if self._at_once(kernels.all_steps_back):
            return
        launches = [self._launch(kernels.step_back, told.state, told.weight)]
        if told.projection.at is not None:
            launches.append(self._launch(kernels.project_back, told.hidden, told.projection))
        run(launches, self._steps[::-1])
        run([self._launch(kernels.send_back, told.state, told.weight)], self._steps[:1])

    def _at_once(self, kernel: Any, products: int = 1, noises: int = 0) -> bool:
        """Take all steps in one launch, or return that there is no room for its programs."""
        told = self._told
        if not self._persistent or told.states.at is None:
            return False
        device = told.states.at.device
        widest = max(told.hidden, told.state, key=lambda units: units.value)
        matrix = told.weight if told.projection.at is None else told.projection  # never narrower
        room = multiprocessors(device)
        launch = self._launch(kernel, widest, matrix, products, noises, room)
        if launch.programs > room:
            return False
        launch(torch.zeros(self._replicas, dtype=torch.int32, device=device))
        return True

    def _launch(
        self,
        kernel: Any,
        units: constexpr,
        matrix: Rows,
        products: int = 1,
        noises: int = 0,
        room: int = 0,
    ) -> Launch:
        """Return the launch of a kernel with a product.

        Args:
            kernel: of ``noisin.fused.kernels``.
            units: which programs share among them, H or P.
            matrix: what is multiplied with, its numbers as wide as any.
            products: how many products a program makes at once.
            noises: how many factors and offsets act on what the matrix is multiplied with.
            room: how many programs run at once, where they wait for each other.
        """
        assert matrix.at is not None
        column, row = products * matrix.at.element_size(), 4 * (1 + noises)
        tile = blocks(self._told.batch, units.value, column, row, self._replicas, room)
        return Launch(kernel, self._told, units, tile, self._replicas)


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
