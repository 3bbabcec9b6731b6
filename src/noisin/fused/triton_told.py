"""What the Triton kernels are told of a call: where its numbers lie, and how it is computed.

Importing this module imports Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from triton.language import constexpr

from noisin.fused.buffers import Buffers, Gradients


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

    @property
    def kind(self) -> tuple[Any, ...] | None:
        """What decides how Triton compiles what reads them."""
        if self.at is None:
            return None
        aligned = self.at.data_ptr() % 16 == 0
        return self.at.dtype, aligned, *kind(self.apart), self.width.value, self.held.value

    @property
    def address(self) -> tuple[int | None, int, constexpr, constexpr]:
        """Themselves, with an address for the tensor."""
        return None if self.at is None else self.at.data_ptr(), *self[1:]


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


def kind(number: int) -> tuple[bool, bool, bool]:
    """Return what of a number decides how Triton compiles: its size, 1, multiples of 16."""
    return number.bit_length() > 31, number == 1, number % 16 == 0


class Arguments:
    """What several launches are told, as Triton takes it.

    Args:
        told: what they are told.
    """

    def __init__(self, told: Told) -> None:
        self.told = told

    @cached_property
    def kinds(self) -> tuple[Any, ...]:
        """What decides how Triton compiles a kernel that is told this."""
        told = cast("tuple[Any, ...]", self.told)
        return (
            *(one.kind for one in told[:_ROWS]),
            *(kind(one) for one in told[_ROWS:_CONSTANTS]),
            *(one.value for one in told[_CONSTANTS:]),
        )

    @cached_property
    def addresses(self) -> tuple[Any, ...]:
        """The same, with addresses for tensors."""
        told = cast("tuple[Any, ...]", self.told)
        return *(one.address for one in told[:_ROWS]), *told[_ROWS:]


# fields of ``Told``: ``Rows``, then numbers, then constants
_ROWS, _CONSTANTS = Told._fields.index("batch"), Told._fields.index("hidden")
_GIVEN = (
    *("hidden_factor", "hidden_offset", "candidate_factor", "candidate_offset", "hidden_kept"),
    *("cell_kept", "lengths", "bias", "inner_bias", "inner", "raw"),
)
_MADE = ("gates", "cells", "extra", "states")
_MADE_BACK = ("state", "cell", "gates", "product", "states", "cells")
_GIVEN_BACK = ("raw", "inner", "out")
_PRODUCT = ("weight", "projection", "recurrent_factor", "recurrent_offset")


def told_of(buffers: Sequence[Buffers], gradients: Sequence[Gradients | None]) -> Told:
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
            rows[prefix + name] = rows_of([getattr(one, name, None) for one in where], made)
    hidden = first.inner.shape[-1]
    same = first.out is first.states
    return Told(
        **rows,
        h0=rows_of([one.h0.float() for one in buffers]),
        c0=rows_of([one.c0.float() for one in buffers]),
        out=NOTHING if same else rows_of([one.out for one in buffers], made=True),
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


def rows_of(tensors: Sequence[Tensor | None], made: bool = False) -> Rows:
    """Return contiguous tensors, one a replica, as the kernels read them.

    Args:
        tensors: all there, or all missing or without numbers.
        made: whether the kernels write what is read elsewhere. Then the tensors must lie one
            behind the other; those that do not, and are not all the same, are copied otherwise.
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
        if len({one.untyped_storage().data_ptr() for one in there}) > 1:
            steps = {None}  # only what the first is a part of is kept
        # no other distance, or Triton would compile anew as memory happens to be had
        apart = 0 if steps == {0} else first.numel()
        if apart and steps != {first.nbytes}:
            assert not made
            first = torch.stack(there)[0]
    held = first.dim() < 3 or len(first) == 1
    return Rows(first, apart, constexpr(first.shape[-1]), constexpr(held))


def _allows_tf32() -> bool:
    """Return whether torch's own products of float32 matrices may round them to TF32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9, where the older name may raise
        return matmul.fp32_precision == "tf32"
    return bool(matmul.allow_tf32)
