"""Draws inside ``torch.func.vmap``: what it runs as one call stands for several models.

vmap refuses what is drawn inside, or draws it for all at once. Here each of them has its own.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what a function gives for each member of a batch of vmap, as such a batch.

    Args:
        function: of a tensor, which runs outside of vmap; it may draw, and look at numbers.
        x: what it is called with; a tensor outside of all batches is its own only member.
    """
    functorch, batches = torch._C._functorch, []
    while functorch.is_batchedtensor(x) or functorch.is_gradtrackingtensor(x):
        if functorch.is_batchedtensor(x):
            batches.append((functorch.maybe_get_level(x), functorch.maybe_get_bdim(x)))
        x = functorch.get_unwrapped(x)
    batches.reverse()  # from the outermost call of vmap to the innermost
    with torch._C._DisableFuncTorch():
        if not batches:
            return function(x)
        for at, (_, dim) in enumerate(batches):
            x = x.movedim(at + dim, at)
        sizes = x.shape[: len(batches)]
        members = x.reshape(-1, *x.shape[len(batches) :]).unbind(0)
        result = torch.stack([function(one) for one in members]).unflatten(0, sizes)
    for level, _ in batches:
        result = functorch._add_batch_dim(result, 0, level)
    return result


def joined(functions: Sequence[Callable[[], Any]]) -> Any:
    """Return what several functions give, one for each member of the innermost vmap.

    Args:
        functions: which run outside of vmap, and return tensors in dicts and tuples of one form.
    """
    functorch = torch._C._functorch
    with torch._C._DisableFuncTorch():
        parts = [function() for function in functions]
        whole = tree_map(lambda *tensors: torch.stack(tensors), *parts)
    level = functorch.maybe_current_level()
    return tree_map(lambda one: functorch._add_batch_dim(one, 0, level), whole)
