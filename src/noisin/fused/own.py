"""The product of ``product.c``: a few rows with a packed matrix, in float32.

It serves where torch's library lends none (``noisin.fused.blas``), on x86 with AVX2. Beside oneDNN
it takes a third of the time at 64 units, three quarters at 200 and nearly the same at 650, on the
one processor where it was measured, and it needs no return to Python.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from noisin import native

PANEL = 16  # columns that lie together


class _Product(ctypes.Structure):
    """``Product`` of product.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "inner")),
        *(("a", ctypes.c_void_p), ("b", ctypes.c_void_p)),
        *(("beta", ctypes.c_float), ("c", ctypes.c_void_p)),
        *(("parallel", ctypes.c_void_p), ("threads", ctypes.c_int64)),
    )


@cache
def _library() -> Any:
    """Return the compiled functions, or None: there are none that fit, or the processor is slow."""
    library: Any = native.extension()
    try:
        library.product_size.restype = library.product_serves.restype = ctypes.c_int64
        fits = library.product_size() == ctypes.sizeof(_Product)
        if not fits or not library.product_serves():
            return None
    except AttributeError:  # no extension, or one from before there was a product
        return None
    size, numbers = ctypes.c_int64, ctypes.c_void_p
    library.product_pack.argtypes = (size, size, numbers, size, size, numbers)
    library.product.argtypes = (ctypes.c_void_p,)
    return library


def serves() -> bool:
    """Return whether there is such a product on this machine."""
    return _library() is not None


def packed(matrix: Tensor) -> Tensor:
    """Return a matrix B in the layout of the product A B.

    Args:
        matrix: B [K, M], float32, of any strides.
    """
    inner, columns = matrix.shape
    panels = (columns + PANEL - 1) // PANEL
    target = torch.empty(panels * PANEL * inner, dtype=torch.float32, device="cpu")
    _library().product_pack(
        *(inner, columns, matrix.data_ptr(), *matrix.stride(), target.data_ptr())
    )
    return target


def multiply(x: Tensor, matrix: Tensor, out: Tensor) -> Tensor:
    """Return the product of rows with a packed matrix, in ``out``.

    Args:
        x: [N, K], contiguous.
        matrix: [K, M] as ``packed`` returned it.
        out: [N, M], contiguous.
    """
    rows, inner = x.shape
    of = native.in_threads()
    described = _Product(
        *(rows, out.shape[1], inner, x.data_ptr(), matrix.data_ptr(), 0.0, out.data_ptr()),
        *(of["parallel"], of["threads"]),
    )
    _library().product(ctypes.addressof(described))
    return out
