"""The threads of torch, for C to share rows among.

torch's builds for Linux run their own threads by GNU's OpenMP; the function that runs another
function in all of them is found by name in what torch's library brings along. A second set of
threads would fight the first for the cores. Where the function is missing one thread does all.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

import torch


@cache
def torch_library() -> ctypes.CDLL | None:
    """Return the library with torch's own code for CPUs, or None: it is not where Linux has it."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path)) if sys.platform == "linux" and path.exists() else None
    except OSError:
        return None


@cache
def address() -> int | None:
    """Return where the function is that runs threads, or None: it is not to be had."""
    library = torch_library()
    if library is None or "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:
        return None
