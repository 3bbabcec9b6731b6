"""A matrix product that C can call: the one in torch's own library, with a packed matrix.

torch's builds for x86 on Linux carry MKL and export its functions; they are found by name, tried
once, and not used where they are missing or the processor is another's than Intel's (where oneDNN
is faster, see ``noisin.fused.products``).
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisin.native import torch_library

_BY_ROWS, _PLAIN, _TURNED, _PACKED, _SECOND = 101, 111, 112, 151, 162
_INT, _FLOATS = ctypes.c_int64, ctypes.c_void_p
_MEMORY: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are


def is_intel() -> bool:
    """Return whether the processor is Intel's."""
    described = Path("/proc/cpuinfo")
    text = described.read_text() if described.exists() else platform.processor()
    return "GenuineIntel" in text


@cache
def _library() -> Any:
    """Return torch's library with the signatures of MKL's packed product, or None."""
    library = torch_library()
    if library is None or not torch.backends.mkl.is_available() or not is_intel():
        return None
    try:
        size, pack = library.cblas_sgemm_pack_get_size, library.cblas_sgemm_pack
        compute = library.cblas_sgemm_compute
    except AttributeError:
        return None
    size.argtypes, size.restype = (_INT,) * 4, ctypes.c_size_t
    pack.argtypes = (*(_INT,) * 6, ctypes.c_float, _FLOATS, _INT, _FLOATS)
    compute.argtypes = (
        *(*(_INT,) * 6, _FLOATS, _INT, _FLOATS, _INT),
        *(ctypes.c_float, _FLOATS, _INT),
    )
    return library if _multiplies(library) else None


def _multiplies(library: Any) -> bool:
    """Return whether the functions do what their names say."""
    x, weight = (torch.arange(float(n), **_MEMORY).view(-1, 3) for n in (6, 12))
    result, b = torch.ones(2, 4, **_MEMORY), _packed(library, weight.t(), 2)
    library.cblas_sgemm_compute(
        *(_BY_ROWS, _PLAIN, _PACKED, 2, 4, 3, x.data_ptr(), 3, b.data_ptr(), 4),
        *(1.0, result.data_ptr(), 4),
    )
    return torch.equal(result, x @ weight.t() + 1)


def _packed(library: Any, matrix: Tensor, rows: int) -> Tensor:
    inner, columns = matrix.shape
    turned = matrix.stride(-1) != 1
    source = matrix.t() if turned else matrix
    size = library.cblas_sgemm_pack_get_size(_SECOND, rows, columns, inner)
    target = torch.empty((size + 3) // 4, **_MEMORY)
    library.cblas_sgemm_pack(
        *(_BY_ROWS, _SECOND, _TURNED if turned else _PLAIN, rows, columns, inner, 1.0),
        *(source.data_ptr(), max(source.stride(0), source.shape[1]), target.data_ptr()),
    )
    return target


def packed(matrix: Tensor, rows: int) -> Tensor:
    """Return a matrix B in the layout of the product A B, A of so many rows.

    Args:
        matrix: B, float32, by rows or by columns.
        rows: those of A.
    """
    return _packed(_library(), matrix, rows)


def multiply(x: Tensor, matrix: Tensor, out: Tensor) -> Tensor:
    """Return the product of rows with a packed matrix, in ``out``.

    Args:
        x: [N, K], contiguous.
        matrix: [K, M] as ``packed`` returned it.
        out: [N, M], contiguous.
    """
    rows, inner = x.shape
    columns = out.shape[1]
    _library().cblas_sgemm_compute(
        *(_BY_ROWS, _PLAIN, _PACKED, rows, columns, inner, x.data_ptr(), inner),
        *(matrix.data_ptr(), columns, 0.0, out.data_ptr(), columns),
    )
    return out


@cache
def address() -> int | None:
    """Return where the product is, or None: it is not to be had."""
    if _library() is None:
        return None
    return ctypes.cast(_library().cblas_sgemm_compute, ctypes.c_void_p).value
