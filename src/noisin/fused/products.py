"""Matrix products by the fastest library at hand.

torch's ``mm`` is near the limit of Intel's processors and far from that of others, where oneDNN is
near it. For the few rows of one step with a weight that is packed once MKL has a product of its own
on Intel's processors, and ``noisin.fused.own`` on others. Which library serves is a rule and no
measurement, so that the same call gives the same bits on the same machine. oneDNN is reached by
operations of torch that are not public: they are tried once, and ``mm`` serves where they are
missing.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from noisin.fused import blas, own
from noisin.fused.blas import is_intel

Library = Literal["onednn", "mkl", "own", "torch"]

STEPS = 16  # a weight that serves fewer steps is not worth packing
_DENSE = ("none", [], "")  # nothing follows the product


@cache
def library() -> Library:
    """Return what multiplies in float32: torch's ``mm`` on Intel's processors, else oneDNN."""
    return "onednn" if not is_intel() and _works() else "torch"


def _works() -> bool:
    """Return whether oneDNN is there and multiplies as torch does."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight = torch.arange(12.0, dtype=torch.float32, device="cpu").view(4, 3)
    x = torch.ones_like(weight)[:2]
    try:
        found = Repeated(weight, len(x), STEPS, "onednn").forward(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found, x @ weight.t())


def _for_steps() -> Library:
    """Return what multiplies a few rows with a weight that is packed once."""
    return "mkl" if blas.address() else "own" if own.serves() else library()


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two large matrices, [N, K] and [K, M]."""
    single = a.dtype == torch.float32 and a.device.type == "cpu"
    if single and a.numel() > 0 and library() == "onednn":  # which has no product of nothing
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, *_DENSE)
    return torch.mm(a, b)


class Repeated:
    """The products of one weight W [O, I] with a few rows, many times over.

    Args:
        weight: W, contiguous.
        rows: B, how many rows each time.
        times: how often.
        by: library, ``library()`` without it.
    """

    def __init__(self, weight: Tensor, rows: int, times: int, by: Library | None = None) -> None:
        self.weight, self._rows = weight, rows
        single = weight.dtype == torch.float32 and weight.device.type == "cpu"
        packing = single and times >= STEPS and weight.numel() > 0
        self._by: Library = (by or _for_steps()) if packing else "torch"
        self._packed: Tensor | None = None
        self._packed_back: Tensor | None = None

    def _pack(self, matrix: Tensor) -> Tensor:
        """Return a matrix [O, I] for products with its transpose."""
        if self._by == "onednn":
            return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), self._rows)
        if self._by == "own":
            return own.packed(matrix.t())
        return blas.packed(matrix.t(), self._rows)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return W x for each row, [B, I] to [B, O], in ``out`` if given."""
        if out is None:
            out = x.new_empty(len(x), len(self.weight))
        if self._by == "torch":
            return torch.mm(x, self.weight.t(), out=out)
        if self._packed is None:
            self._packed = self._pack(self.weight)
        return self._multiply(x.contiguous(), self._packed, out)

    def sent(self, grad: Tensor, out: Tensor) -> Tensor:
        """Return Wᵀ d for each row d, [B, O] to [B, I], in ``out``."""
        if self._by == "torch":
            return torch.mm(grad, self.weight, out=out)
        if self._packed_back is None:
            self._packed_back = self._pack(self.weight.t())
        return self._multiply(grad.contiguous(), self._packed_back, out)

    def backward(self, grad: Tensor, carry: Tensor) -> None:
        """Add Wᵀ d for each row d to ``carry``, [B, O] to [B, I]."""
        if self._by == "torch":
            carry.addmm_(grad, self.weight)
        else:
            carry += self.sent(grad, torch.empty_like(carry))

    def _multiply(self, x: Tensor, packed: Tensor, out: Tensor) -> Tensor:
        if self._by == "mkl":
            return blas.multiply(x, packed, out)
        if self._by == "own":
            return own.multiply(x, packed, out)
        return out.copy_(torch.ops.mkldnn._linear_pointwise(x, packed, None, *_DENSE))
