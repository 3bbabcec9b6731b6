"""Moments of tanh and of the logistic sigmoid, one pass forward and one back.

What ``noisin.propagation`` does in some forty operations of torch, compiled; in float32, on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from noisin import propagation
from noisin.fused import compiled
from noisin.propagation import Moments


def tanh(x: Moments) -> Moments:
    """Return by the mixture the moments of tanh of normal numbers."""
    return _squashed(x, 1.0) if _serves(x) else propagation.tanh(x)


def sigmoid(x: Moments) -> Moments:
    """Return by the mixture the moments of the logistic sigmoid of normal numbers."""
    return _squashed(x, 0.5) if _serves(x) else propagation.sigmoid(x)


def _serves(x: Moments) -> bool:
    mean, variance = x
    return (
        compiled.serves(mean.dtype)
        and mean.device.type == "cpu"
        and (mean.shape, mean.dtype) == (variance.shape, variance.dtype)
        and mean.device == variance.device
        and all(type(one) in (Tensor, Parameter) for one in x)  # numbers that lie in memory
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
    )


def _squashed(x: Moments, half: float) -> Moments:
    given = (x.mean.contiguous(), x.variance.contiguous())
    return Moments(*_Squash.apply(half, *given))  # pyright: ignore[reportGeneralTypeIssues]


class _Squash(torch.autograd.Function):
    """Half is 1 of tanh, and ½ of the sigmoid, (1 + tanh(a / 2)) / 2."""

    @staticmethod
    def forward(ctx: Any, half: float, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        ctx.half = half
        ctx.save_for_backward(mean, variance)
        out, spread = torch.empty_like(mean), torch.empty_like(mean)
        pointers = (one.data_ptr() for one in (mean, variance, out, spread))
        compiled.LIBRARY.squash(mean.numel(), half, *pointers)
        return out, spread

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, Tensor, Tensor]:
        mean, variance = ctx.saved_tensors
        batched = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore
        if torch.is_grad_enabled() or any(map(batched, grads)):  # torch's operations know how
            function = propagation.tanh if ctx.half == 1 else propagation.sigmoid
            with torch.enable_grad():
                # aliases: the graph from here leads to them and not past them
                leaves = [
                    one.view_as(one) if one.requires_grad else one.detach().requires_grad_()
                    for one in (mean, variance)
                ]
                found = function(Moments(*leaves))
                of_mean, of_variance = torch.autograd.grad(found, leaves, grads, create_graph=True)
            return None, of_mean, of_variance
        found = torch.empty_like(mean), torch.empty_like(mean)
        given = (mean, variance, *(one.contiguous() for one in grads), *found)
        compiled.LIBRARY.squash_back(mean.numel(), ctx.half, *(one.data_ptr() for one in given))
        return None, *found
