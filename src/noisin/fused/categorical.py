"""The log-probability of one class of many, with one tensor as large as the logits, its gradient.

torch's ``log_softmax`` and ``gather`` keep a second copy of the logits, and their way back makes
two more. Where there are thousands of classes, memory is what they take their time for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from noisin.tracing import autocasting, differentiates_again, unwatched

SMALLEST = 2**20  # numbers; below it torch's functions are as fast
_BLOCK = 2**18  # numbers that are worked on at a time, to stay near the processor


def log_probability(logits: Tensor, index: Tensor) -> Tensor:
    """Return log softmax of the last dimension, at one index each.

    Args:
        logits: [..., V].
        index: [...], of 0 to V - 1.

    Returns:
        [...], a_x - max a - log Σ_v exp(a_v - max a).

    Raises:
        ValueError: not as many classes as rows.
    """
    if index.shape != logits.shape[:-1]:
        raise ValueError(
            f"there must be one class for each row of the logits, {list(logits.shape[:-1])}; "
            f"got {list(index.shape)}"
        )
    if autocasting(logits.device) and logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # as torch's own losses do
    if _pays(logits):
        rows = logits.reshape(-1, logits.shape[-1])
        return _LogProbability.apply(rows, index.reshape(-1)).view(index.shape)  # pyright: ignore
    return logits.log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _pays(logits: Tensor) -> bool:
    return (
        logits.numel() >= SMALLEST
        and logits.device.type == "cpu"
        and logits.dtype in (torch.float32, torch.float64)
        and unwatched()
    )


class _LogProbability(torch.autograd.Function):
    """The same, rows in blocks; what is kept is the logits and two numbers a row."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, index: Tensor) -> Tensor:
        index = index.unsqueeze(-1)
        found = logits.gather(-1, index)  # refuses what is no class, before any work
        peak, total = torch.empty_like(found), torch.empty_like(found)
        for rows, top, sum_ in zip(*_blocks(logits, peak, total), strict=True):
            torch.amax(rows, -1, keepdim=True, out=top)
            torch.sum((rows - top).exp_(), -1, keepdim=True, out=sum_)
        ctx.save_for_backward(logits, index, peak, total)
        return (found - peak - total.log()).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        logits, index, peak, total = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        if differentiates_again(grad):
            at = torch.zeros_like(logits).scatter(-1, index, 1.0)
            return grad * (at - logits.softmax(-1)), None
        found, scale = torch.empty_like(logits), -grad / total
        for out, rows, top, by in zip(*_blocks(found, logits, peak, scale), strict=True):
            torch.sub(rows, top, out=out).exp_().mul_(by)
        return found.scatter_add_(-1, index, grad), None


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return each tensor in blocks of as many rows, few enough to stay near the processor."""
    rows = max(1, _BLOCK // max(one.shape[-1] for one in tensors))
    return [one.split(rows) for one in tensors]
