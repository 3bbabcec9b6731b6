"""The fused recurrence on a CPU: what it serves, and who takes its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from noisin.fused import compiled
from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.compiled import Compiled, Walk
from noisin.fused.eager import Eager
from noisin.fused.recurrent import Call, Tied


def refusal(dtype: torch.dtype) -> str:
    """Return why numbers of a type are not served, or ""."""
    if dtype in (torch.float32, torch.float64):
        return ""
    return f"on a CPU the fused recurrence is for float32 and float64, not {dtype}"


def is_faster(mode: str, dtype: torch.dtype) -> bool:
    """Return whether torch's own kernel would take longer for what both can do.

    torch has a fast LSTM on CPUs; its GRU and RNN take 1.3 times as long as ours.

    Args:
        mode: key of ``noisin.reference.STEPS``.
        dtype: of the input and the weights.
    """
    return mode != "LSTM" and compiled.serves(dtype)


def walk(calls: Sequence[Call]) -> Walk | None:
    """Return what takes all steps of some calls, or None.

    Args:
        calls: of one shape, in one direction of time.
    """
    tied = all(isinstance(one.product, Tied) for one in calls)
    return Walk(calls) if tied and compiled.walks(calls[0].buffers.out.dtype) else None


def steps(buffers: Buffers, gradients: Gradients | None) -> Compiled | Eager:
    """Return what takes the steps of a call one by one, besides their matrix products."""
    serves = compiled.serves(buffers.out.dtype)
    return (Compiled if serves else Eager)(buffers, gradients)
