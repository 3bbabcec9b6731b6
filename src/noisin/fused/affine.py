"""W x + b for a large W, by the library that multiplies fastest here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd

from noisin.fused import products
from noisin.fused.products import multiply
from noisin.tracing import differentiates_again, unwatched

SMALLEST = 2**20  # numbers of W; below it torch's own linear is as fast


def pays(x: Any, weight: Tensor) -> bool:
    """Return whether another library than torch's own would multiply faster.

    Args:
        x: the input.
        weight: W.
    """
    return (
        isinstance(x, Tensor)
        and weight.numel() >= SMALLEST
        and x.shape[-1:] == weight.shape[1:]  # else torch says what is wrong
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and unwatched()
        and products.library() == "onednn"
    )


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return W x + b, differentiable any number of times.

    Args:
        x: [..., I].
        weight: W [O, I].
        bias: b [O] or None.
    """
    rows = _Affine.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))  # pyright: ignore[reportOptionalMemberAccess]


class _Affine(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        found = multiply(x, weight.t())
        return found if bias is None else found.add_(bias)

    @staticmethod
    @custom_bwd(device_type="cpu")  # its products as those of the forward pass, not autocast's
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,), (of_x, of_weight, of_bias) = grads, ctx.needs_input_grad
        product = torch.matmul if differentiates_again(grad) else multiply
        return (
            product(grad, weight) if of_x else None,
            product(grad.t(), x) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
