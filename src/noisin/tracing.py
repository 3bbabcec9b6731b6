"""Who looks on: torch.compile, tracers, transforms, gradients of many at once, autocast."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as one that dynamo calls and does not look into.

    Dynamo takes a second or two to import and is left alone where nobody has imported it.
    """
    hidden = _disable_dynamo(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (hidden if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return call


def constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let dynamo call a function of constants while it compiles, and keep what it returns."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def transformed() -> bool:
    """Return whether ``torch.func`` or forward differentiation looks on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def unwatched() -> bool:
    """Return whether nothing but ordinary differentiation looks on: numbers may leave torch."""
    return (
        not transformed()
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
    )


def batched(*grads: Tensor | None) -> bool:
    """Return whether gradients come for many at once, as ``is_grads_batched`` has them."""
    stacked = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]
    return any(one is not None and stacked(one) for one in grads)


def differentiates_again(*grads: Tensor | None) -> bool:
    """Return whether a backward pass shall be differentiable itself, or runs for many at once."""
    return torch.is_grad_enabled() or batched(*grads)


def autocasting(device: torch.device) -> bool:
    """Return whether autocast is on for a device; some know none."""
    known = torch.amp.is_autocast_available(device.type)
    return known and torch.is_autocast_enabled(device.type)


def computing(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast, for what has been cast already."""
    if not autocasting(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
