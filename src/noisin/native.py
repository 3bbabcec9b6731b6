"""Compiled code: this package's own, and what torch's library lends to it.

The extension is optional: without a compiler at installation there is none, and torch's operations
run instead.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


def extension() -> ctypes.CDLL | None:
    """Return the C functions of ``noisin.fused``, or None: there are none for this machine."""
    found = find_spec("noisin.fused._recurrence")
    if found is None or found.origin is None:
        return None
    try:
        return ctypes.CDLL(found.origin)
    except OSError:  # compiled for another machine
        return None


@cache
def torch_library() -> ctypes.CDLL | None:
    """Return the library with torch's own code for CPUs, or None: it is not where Linux has it."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path)) if sys.platform == "linux" and path.exists() else None
    except OSError:
        return None


@cache
def parallel() -> int | None:
    """Return where the function is that runs another in torch's threads, or None: not to be had.

    torch's builds for Linux run their own threads by GNU's OpenMP; the function is found by name in
    what torch's library brings along. A second set of threads would fight the first for the cores.
    Where the function is missing one thread does all.
    """
    library = torch_library()
    if library is None or "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:
        return None


def in_threads() -> dict[str, int | None]:
    """Return what C is told of torch's threads."""
    return {"parallel": parallel(), "threads": torch.get_num_threads()}
