"""The C functions of ``recurrence.c`` and ``moments.c``, in float32.

The extension is optional: without a compiler at installation there is none, and
``noisin.fused.eager`` runs instead. ``Compiled`` is one step without its matrix products,
``Walk`` all steps with them, by the product of ``noisin.fused.blas`` or of ``noisin.fused.own``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from noisin import native
from noisin.fused import blas, own
from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.recurrent import Call
from noisin.tracing import unwatched

NONLINEARITIES = {"RNN_TANH": 0, "RNN_RELU": 1, "RNN_SIGMOID": 2}
CELLS = ("rnn", "gru", "lstm")
FORMS = ("mixture", "closed", "wang-manning")


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
    """``Pass`` of pass.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _FORWARD),
        *((name, _Noise) for name in _NOISE),
        *((f"grad_{name}", ctypes.c_void_p) for name in _BACKWARD),
        ("parallel", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("multiply", "weight", "projection")),
        *((name, _Noise) for name in ("recurrent_factor", "recurrent_offset")),
        *((name, ctypes.c_void_p) for name in ("product", "seen")),
    )


class Spread(ctypes.Structure):
    """``Spread`` of moments.c, field by field."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("own", "square", "plain"))


_PAIR = ctypes.c_void_p * 2


class Propagation(ctypes.Structure):
    """``Propagation`` of moments.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "units", "first", "direction")),
        *((name, ctypes.c_int64) for name in ("cell", "form", "gates_size")),
        *((name, ctypes.c_int64) for name in ("sigmoid", "noisy_weight")),
        *((name, _PAIR) for name in ("h0", "c0")),
        ("bias", ctypes.c_void_p),
        *((name, _PAIR) for name in ("gates", "inner", "cells", "states")),
        *((name, Spread) for name in ("recurrent", "hidden", "candidate")),
        *((name, _PAIR) for name in ("product", "seen", "grad_out", "grad_state")),
        *((name, _PAIR) for name in ("grad_cell", "grad_gates", "grad_new")),
        ("parallel", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("scale", ctypes.c_float),
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
        **native.in_threads(),
        **{name: address(getattr(buffers, name)) for name in _FORWARD},
        **{name: _noise(getattr(buffers, name)) for name in _NOISE},
    )
    for name in _BACKWARD if gradients is not None else ():
        setattr(described, f"grad_{name}", address(getattr(gradients, name)))
    return described


def address(tensor: Tensor | None) -> int | None:
    """Return where the numbers of a contiguous tensor lie, or None: there are none."""
    if tensor is None or not tensor.numel():
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _noise(tensor: Tensor | None) -> _Noise:
    if tensor is None:
        return _Noise(None, 0)
    return _Noise(address(tensor), tensor[0].numel() if len(tensor) > 1 else 0)


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
        LIBRARY.forward(self._at, t, address(product))

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
    """All steps of some calls, without a return to Python between them.

    Args:
        calls: taken one after another.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self._walks = [_Walk(call) for call in calls]

    def forward(self) -> None:
        """From W_ih x and the first state to the outputs and the last state."""
        for walk in self._walks:
            LIBRARY.walk_forward(walk.at)

    def backward(self) -> None:
        """From the gradients of those to what arrives at the products of each step."""
        for walk in self._walks:
            LIBRARY.walk_backward(walk.at)


class _Walk:
    """What the compiled code is told of one call, and what it must find in memory."""

    def __init__(self, call: Call) -> None:
        buffers, gradients, weight = call.buffers, call.gradients, call.product.weight
        described, rows = _described(buffers, gradients), len(buffers.h0)
        noise = [
            None if one is None else one.contiguous()
            for one in (call.product.factor, call.product.offset)
        ]
        matrices = [weight, call.projection]
        if gradients is None:
            matrices = [None if one is None else one.t() for one in matrices]
        packed = [None if one is None else _packed(one, rows) for one in matrices]
        seen = torch.empty_like(buffers.h0) if any(one is not None for one in noise) else None
        product = None
        if gradients is None:
            product = buffers.gates.new_empty(buffers.gates.shape[1:])
        described.weight, described.projection = map(address, packed)
        described.multiply, described.product = blas.address(), address(product)
        described.seen = address(seen)
        described.recurrent_factor, described.recurrent_offset = map(_noise, noise)
        self._tensors = buffers, gradients, noise, seen, packed, product
        self._pass = described
        self.at = ctypes.addressof(described)


def _packed(matrix: Tensor, rows: int) -> Tensor:
    """Return a matrix in the layout of the product that a walk takes."""
    return own.packed(matrix) if blas.address() is None else blas.packed(matrix, rows)


def load() -> Any:
    """Return the compiled functions, or None: there are none that fit this code."""
    library: Any = native.extension()
    if library is None:
        return None
    try:
        library.pass_size.restype = ctypes.c_int64
        library.propagation_size.restype = ctypes.c_int64
        if (library.pass_size(), library.propagation_size()) != tuple(
            map(ctypes.sizeof, (_Pass, Propagation))
        ):
            return None  # compiled from another version of the C files
    except AttributeError:  # something else entirely
        return None
    step = (ctypes.c_void_p, ctypes.c_int64)
    library.forward.argtypes = (*step, ctypes.c_void_p)
    library.backward.argtypes = library.emit.argtypes = library.absorb.argtypes = step
    for name in ("see", "forward", "backward", "send_back"):
        getattr(library, f"moments_{name}").argtypes = step
    numbers = (ctypes.c_int64, ctypes.c_int64, ctypes.c_float)
    library.squash.argtypes = (*numbers, *(ctypes.c_void_p,) * 4)
    library.squash_back.argtypes = (*numbers, *(ctypes.c_void_p,) * 6)
    library.walk_forward.argtypes = library.walk_backward.argtypes = (ctypes.c_void_p,)
    return library


LIBRARY = load()


def serves(dtype: torch.dtype) -> bool:
    """Return whether the compiled functions are there and take this dtype."""
    return LIBRARY is not None and dtype == torch.float32


def sees(*tensors: Tensor) -> bool:
    """Return whether C can run on tensors: numbers that lie in memory, and nothing looks on."""
    return (
        all(
            serves(one.dtype) and one.device.type == "cpu" and type(one) in (Tensor, Parameter)
            for one in tensors
        )
        and unwatched()
    )


def walks(dtype: torch.dtype) -> bool:
    """Return whether whole walks are there and take this dtype."""
    return serves(dtype) and (blas.address() is not None or own.serves())
