"""The recurrence by the C functions of ``recurrence.c``, in float32.

The extension is optional: without a compiler at installation there is none, and
``noisin.fused.eager`` runs instead. ``Compiled`` is one step without its matrix products,
``Walk`` all steps with them, where ``noisin.fused.blas`` has a product to hand over.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from noisin.fused import blas, threads
from noisin.fused.buffers import Buffers, Gradients

NONLINEARITIES = {"RNN_TANH": 0, "RNN_RELU": 1, "RNN_SIGMOID": 2}
CELLS = ("rnn", "gru", "lstm")


class _Noise(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("stride", ctypes.c_int64))


_SIZES = (
    *("batch", "hidden", "state", "steps", "first", "direction"),
    *("cell", "gates_size", "nonlinearity"),
)
_FORWARD = (
    *("lengths", "h0", "c0", "bias", "inner_bias", "gates"),
    *("cells", "extra", "states", "out", "inner", "raw"),
)
_NOISE = (
    *("hidden_factor", "hidden_offset", "candidate_factor", "candidate_offset"),
    *("hidden_kept", "cell_kept"),
)
_BACKWARD = ("out", "state", "cell", "raw", "inner", "gates", "product", "states", "cells")


class _Pass(ctypes.Structure):
    """``Pass`` of recurrence.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _FORWARD),
        *((name, _Noise) for name in _NOISE),
        *((f"grad_{name}", ctypes.c_void_p) for name in _BACKWARD),
        ("parallel", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("multiply", "weight", "weight_back", "projection")),
        *((name, _Noise) for name in ("recurrent_factor", "recurrent_offset")),
        *((name, ctypes.c_void_p) for name in ("product", "seen")),
    )


def _described(buffers: Buffers, gradients: Gradients | None) -> _Pass:
    """Return what C is told of a call: sizes and addresses."""
    cell = {"LSTM": "lstm", "GRU": "gru"}.get(buffers.mode, "rnn")
    described = _Pass(
        batch=buffers.h0.shape[0],
        hidden=buffers.inner.shape[-1],
        state=buffers.h0.shape[-1],
        steps=len(buffers.gates),
        first=buffers.steps[0],
        direction=-1 if buffers.reverse else 1,
        cell=CELLS.index(cell),
        gates_size=buffers.gates.shape[-1],
        nonlinearity=NONLINEARITIES.get(buffers.mode, 0),
        parallel=threads.address(),
        threads=torch.get_num_threads(),
        **{name: _address(getattr(buffers, name)) for name in _FORWARD},
        **{name: _noise(getattr(buffers, name)) for name in _NOISE},
    )
    for name in _BACKWARD if gradients is not None else ():
        setattr(described, f"grad_{name}", _address(getattr(gradients, name)))
    return described


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None or not tensor.numel():
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _noise(tensor: Tensor | None) -> _Noise:
    if tensor is None:
        return _Noise(None, 0)
    return _Noise(_address(tensor), tensor[0].numel() if len(tensor) > 1 else 0)


class Compiled:
    """The steps of one call; methods as those of ``Eager``, which also says what they compute.

    Args:
        buffers: of the way forward.
        gradients: of the way back.
    """

    def __init__(self, buffers: Buffers, gradients: Gradients | None = None) -> None:
        self._tensors = buffers, gradients  # kept alive: C sees their addresses alone
        self._pass = _described(buffers, gradients)
        self._at = ctypes.addressof(self._pass)

    def forward(self, t: int, product: Tensor) -> None:
        """From W_hh h_{t-1} to h_t before a projection."""
        LIBRARY.forward(self._at, t, _address(product))

    def emit(self, t: int) -> None:
        """z_t: h_t under the noise of ``hidden`` and zoneout."""
        LIBRARY.emit(self._at, t)

    def absorb(self, t: int) -> None:
        """The gradient of h_t before noise from what arrives at z_t."""
        LIBRARY.absorb(self._at, t)

    def backward(self, t: int) -> None:
        """The gradients of both products from that of h_t before a projection."""
        LIBRARY.backward(self._at, t)


class Walk:
    """All steps of one call, without a return to Python between them.

    Args:
        buffers: of the way forward.
        gradients: of the way back.
        weight: W_hh [G·H, P].
        projection: W_hr [P, H] or None.
        factor: of the noise of ``recurrent``, [T, B, P] or held, or None.
        offset: likewise.
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
        described, rows = _described(buffers, gradients), len(buffers.h0)
        noise = [None if one is None else one.contiguous() for one in (factor, offset)]
        projection = None if projection is None else projection.contiguous()
        seen = torch.empty_like(buffers.h0) if any(one is not None for one in noise) else None
        if gradients is None:
            packed = blas.packed(weight.t(), rows)
            product = buffers.gates.new_empty(buffers.gates.shape[1:])
            described.weight, described.product = _address(packed), _address(product)
        else:
            packed, product = blas.packed(weight, rows), None
            described.weight_back = _address(packed)
        described.multiply = blas.address()
        described.projection, described.seen = _address(projection), _address(seen)
        described.recurrent_factor, described.recurrent_offset = map(_noise, noise)
        self._tensors = buffers, gradients, noise, projection, seen, packed, product
        self._pass = described

    def forward(self) -> None:
        """From W_ih x and the first state to the outputs and the last state."""
        LIBRARY.walk_forward(ctypes.addressof(self._pass))

    def backward(self) -> None:
        """From the gradients of those to what arrives at the products of each step."""
        LIBRARY.walk_backward(ctypes.addressof(self._pass))


def load() -> Any:
    """Return the compiled functions, or None: there are none that fit this code."""
    found = find_spec("noisin.fused._recurrence")
    if found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin)
        library.pass_size.restype = ctypes.c_int64
        if library.pass_size() != ctypes.sizeof(_Pass):
            return None  # compiled from another version of recurrence.c
    except (OSError, AttributeError):  # compiled for another machine; something else entirely
        return None
    step = (ctypes.c_void_p, ctypes.c_int64)
    library.forward.argtypes = (*step, ctypes.c_void_p)
    library.backward.argtypes = library.emit.argtypes = library.absorb.argtypes = step
    numbers = (ctypes.c_int64, ctypes.c_float)
    library.squash.argtypes = (*numbers, *(ctypes.c_void_p,) * 4)
    library.squash_back.argtypes = (*numbers, *(ctypes.c_void_p,) * 6)
    library.walk_forward.argtypes = library.walk_backward.argtypes = (ctypes.c_void_p,)
    return library


LIBRARY = load()


def serves(dtype: torch.dtype) -> bool:
    """Return whether the compiled functions are there and take this dtype."""
    return LIBRARY is not None and dtype == torch.float32


def walks(dtype: torch.dtype) -> bool:
    """Return whether whole walks are there and take this dtype."""
    return serves(dtype) and blas.address() is not None
