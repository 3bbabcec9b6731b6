"""Moments of tanh and of the logistic sigmoid, one pass forward and one back.

What ``noisin.propagation`` does in some forty operations of torch, compiled; in float32, on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisin import propagation
from noisin.fused import compiled
from noisin.propagation import Form, Moments
from noisin.tracing import differentiates_again


def tanh(x: Moments, form: Form = "mixture") -> Moments:
    """Return the moments of tanh of normal numbers."""
    return _squashed(form, x, 1.0) if _serves(x) else propagation.tanh(x, form)


def sigmoid(x: Moments, form: Form = "mixture") -> Moments:
    """Return the moments of the logistic sigmoid of normal numbers."""
    return _squashed(form, x, 0.5) if _serves(x) else propagation.sigmoid(x, form)


def _serves(x: Moments) -> bool:
    return x.mean.shape == x.variance.shape and compiled.sees(*x)


def _squashed(form: Form, x: Moments, half: float) -> Moments:
    given = (x.mean.contiguous(), x.variance.contiguous())
    return Moments(*_Squash.apply(form, half, *given))  # pyright: ignore[reportGeneralTypeIssues]


class _Squash(torch.autograd.Function):
    """Half is 1 of tanh, and ½ of the sigmoid, (1 + tanh(a / 2)) / 2."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, half: float, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.form, ctx.half = form, half
        ctx.save_for_backward(mean, variance)
        out, spread = torch.empty_like(mean), torch.empty_like(mean)
        pointers = (one.data_ptr() for one in (mean, variance, out, spread))
        compiled.LIBRARY.squash(compiled.FORMS.index(form), mean.numel(), half, *pointers)
        return out, spread

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None, Tensor, Tensor]:
        mean, variance = ctx.saved_tensors
        if differentiates_again(*grads):  # torch's operations know how
            function = propagation.tanh if ctx.half == 1 else propagation.sigmoid
            with torch.enable_grad():
                # aliases: the graph from here leads to them and not past them
                leaves = [
                    one.view_as(one) if one.requires_grad else one.detach().requires_grad_()
                    for one in (mean, variance)
                ]
                found = function(Moments(*leaves), ctx.form)
                of_mean, of_variance = torch.autograd.grad(found, leaves, grads, create_graph=True)
            return None, None, of_mean, of_variance
        found = torch.empty_like(mean), torch.empty_like(mean)
        given = (mean, variance, *(one.contiguous() for one in grads), *found)
        sizes = compiled.FORMS.index(ctx.form), mean.numel(), ctx.half
        compiled.LIBRARY.squash_back(*sizes, *(one.data_ptr() for one in given))
        return None, None, *found
