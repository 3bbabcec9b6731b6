"""The fused recurrence on CUDA: what it serves, and who takes its steps."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.recurrent import Call, Drawn

if TYPE_CHECKING:
    from noisin.fused.triton_walk import Steps, Walk

persistent = False
"""Whether all steps of a layer are one launch each way, where a GPU can run its programs at once.

Else a step is a launch, which computes the same. One launch has run in Triton's interpreter alone:
where it is not set, a launch a step serves.
"""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(dtype: torch.dtype) -> str:
    """Return why numbers of a type are not served, or ""."""
    if find_spec("triton") is None:
        return "on CUDA the fused recurrence needs Triton, which is not installed"
    if torch.version.hip is not None:
        return "the fused recurrence is for CUDA, not for ROCm"
    if dtype in DTYPES:
        return ""
    return f"on CUDA the fused recurrence is for float32, bfloat16 and float16, not {dtype}"


def is_faster(mode: str, dtype: torch.dtype) -> bool:
    """Return whether torch's own kernel, cuDNN's, would take longer for what both can do: never."""
    return False


def walk(calls: Sequence[Call]) -> Walk | None:
    """Return what takes all steps of some calls at once, or None; arguments as of ``cpu.walk``."""
    from noisin.fused.triton_walk import Walk

    return None if any(isinstance(one.product, Drawn) for one in calls) else Walk(calls, persistent)


def steps(buffers: Buffers, gradients: Gradients | None) -> Steps:
    """Return what takes the steps of a call one by one, besides their matrix products."""
    from noisin.fused.triton_walk import Steps

    return Steps(buffers, gradients)
