"""W_hh z_{t-1} under noise, step by step, and its gradients.

The noise of ``recurrent`` comes as one factor and one offset, [T, B, P], or [1, B, P] if held; with
a draw a gate G·P instead of P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from noisin.fused.buffers import Buffers, Gradients, held, now, perturbed
from noisin.fused.products import Repeated, multiply
from noisin.product import Fresh


@dataclass
class Found:
    """Gradients of a call; None where nothing of the kind is there.

    Args:
        weight: of W_hh.
        factor: of the noise's factor.
        offset: of its offset.
        std: of the learned spread of noise drawn in W_hh.
    """

    weight: Tensor
    factor: Tensor | None = None
    offset: Tensor | None = None
    std: Tensor | None = None


class Recurrent(Protocol):
    """The product of all steps of one call."""

    weight: Tensor
    factor: Tensor | None
    offset: Tensor | None

    def forward(self, t: int, z: Tensor) -> Tensor:
        """Return W_hh z_{t-1} of step t, [B, P] to [B, G·H]."""
        ...

    def backward(self, t: int, z: Tensor, grad: Tensor, carry: Tensor) -> None:
        """Add what step t sends back to z_{t-1} to ``carry``."""
        ...

    def gradients(self, z: Tensor, grad: Tensor, noise: bool) -> Found:
        """Return the gradients of a whole call.

        Args:
            z: z_{t-1} of all steps, [T, B, P].
            grad: what arrived at the products, [T, B, G·H].
            noise: whether those of the noise are wanted.
        """
        ...


@dataclass
class Call:
    """One layer and direction on its way, forward or back; of replicas there are several at once.

    Args:
        buffers: of the way forward.
        gradients: of the way back, None on the way forward.
        product: W_hh z_{t-1} under noise.
        projection: W_hr [P, H] or None.
    """

    buffers: Buffers
    gradients: Gradients | None
    product: Recurrent
    projection: Tensor | None = None


class Tied:
    """One matrix for all steps, and noise that all gates share.

    Args:
        weight: W_hh [G·H, P].
        factor: of z, or None.
        offset: of z, or None.
        time: T.
        batch: B.
    """

    def __init__(
        self, weight: Tensor, factor: Tensor | None, offset: Tensor | None, time: int, batch: int
    ) -> None:
        self.weight, self.factor, self.offset = weight, factor, offset
        self._product = Repeated(weight, batch, time)

    def forward(self, t: int, z: Tensor) -> Tensor:
        """Return the product of step t."""
        seen = perturbed(z, now(self.factor, t), now(self.offset, t))
        return self._product.forward(seen.to(self.weight.dtype))

    def backward(self, t: int, z: Tensor, grad: Tensor, carry: Tensor) -> None:
        """Add what step t sends back."""
        factor, grad = now(self.factor, t), grad.to(self.weight.dtype)
        if factor is None and grad.dtype == carry.dtype:
            self._product.backward(grad, carry)
            return
        sent = torch.zeros_like(carry, dtype=grad.dtype)
        self._product.backward(grad, sent)
        carry += sent if factor is None else sent.to(carry.dtype) * factor

    def gradients(self, z: Tensor, grad: Tensor, noise: bool) -> Found:
        """Return the gradients of a whole call."""
        seen = perturbed(z, self.factor, self.offset).to(self.weight.dtype)
        flat = grad.flatten(0, 1).to(self.weight.dtype)
        found = Found(multiply(flat.t(), seen.flatten(0, 1)))
        if noise:
            sent = multiply(flat, self.weight).view_as(z)
            found.factor = held(sent * z, self.factor)
            found.offset = held(sent, self.offset)
        return found


class Untied:
    """Noise of its own for what each gate sees.

    Args:
        weight: W_hh [G·H, P].
        factor: [T, B, G·P] or held, or None.
        offset: likewise.
        gates: G.
    """

    def __init__(
        self, weight: Tensor, factor: Tensor | None, offset: Tensor | None, gates: int
    ) -> None:
        self.weight, self.factor, self.offset = weight, factor, offset
        self._gates = gates
        self._blocks = weight.unflatten(0, (gates, -1))  # [G, H, P]

    def forward(self, t: int, z: Tensor) -> Tensor:
        """Return the product of step t."""
        seen = self._seen(z, now(self.factor, t), now(self.offset, t))
        return torch.bmm(seen, self._blocks.mT).transpose(0, 1).flatten(1).contiguous()

    def backward(self, t: int, z: Tensor, grad: Tensor, carry: Tensor) -> None:
        """Add what step t sends back."""
        sent = torch.bmm(self._by_gate(grad).to(self._blocks.dtype), self._blocks)
        factor = now(self.factor, t)
        carry += (sent if factor is None else sent * self._by_gate(factor)).sum(0)

    def gradients(self, z: Tensor, grad: Tensor, noise: bool) -> Found:
        """Return the gradients of a whole call."""
        flat = self._by_gate(grad.flatten(0, 1)).to(self._blocks.dtype)
        whole = [
            None if one is None else one.expand(len(z), -1, -1).flatten(0, 1)
            for one in (self.factor, self.offset)
        ]
        found = Found(torch.bmm(flat.mT, self._seen(z.flatten(0, 1), *whole)).flatten(0, 1))
        if noise:
            sent = torch.bmm(flat, self._blocks).transpose(0, 1).flatten(1)
            sent = sent.unflatten(0, z.shape[:2])
            found.factor = held(sent * z.repeat(1, 1, self._gates), self.factor)
            found.offset = held(sent, self.offset)
        return found

    def _by_gate(self, rows: Tensor) -> Tensor:
        """Return rows [N, G·F] as [G, N, F]."""
        width = rows.shape[-1] // self._gates
        return rows.reshape(len(rows), self._gates, width).transpose(0, 1)

    def _seen(self, z: Tensor, factor: Tensor | None, offset: Tensor | None) -> Tensor:
        """Return what each gate sees of rows z, [G, N, P]."""
        pair = [None if one is None else self._by_gate(one) for one in (factor, offset)]
        return perturbed(z, *pair).to(self._blocks.dtype).expand(self._gates, -1, -1)


class Drawn:
    """Another matrix at each step, drawn from a seed, and drawn again on the way back.

    Args:
        weight: W_hh [G·H, P].
        fresh: the noise in it.
        factor: of z, or None.
        offset: of z, or None.
    """

    def __init__(
        self, weight: Tensor, fresh: Fresh, factor: Tensor | None, offset: Tensor | None
    ) -> None:
        self.weight, self._fresh = weight, fresh
        self.factor, self.offset = factor, offset
        self._found = Found(torch.zeros_like(weight))
        self._matrix = torch.empty_like(weight)
        if fresh.std is not None:
            self._found.std = torch.zeros_like(fresh.std, dtype=torch.float64)

    def forward(self, t: int, z: Tensor) -> Tensor:
        """Return the product of step t."""
        seen = perturbed(z, now(self.factor, t), now(self.offset, t))
        return torch.mm(seen.to(self.weight.dtype), self._at(self._final(t)).t())

    def backward(self, t: int, z: Tensor, grad: Tensor, carry: Tensor) -> None:
        """Add what step t sends back, and its share of the gradients of W_hh and the spread."""
        factor, offset = now(self.factor, t), now(self.offset, t)
        grad, final = grad.to(self.weight.dtype), self._final(t)
        sent = torch.mm(grad, self._at(final))
        carry += sent if factor is None else sent * factor
        seen = perturbed(z, factor, offset).to(grad.dtype)
        if self._times:
            of_matrix = torch.mm(grad.t(), seen, out=self._matrix)
            self._found.weight.addcmul_(of_matrix, final)
        else:
            self._found.weight.addmm_(grad.t(), seen)
        if self._found.std is not None:  # a sum of many terms of either sign
            of_matrix = torch.mm(grad.t().double(), seen.double())
            slope = self._fresh.standard(t, self.weight)
            slope = slope * self.weight if self._times else slope
            self._found.std += (of_matrix * slope).sum_to_size(self._found.std.shape)

    def gradients(self, z: Tensor, grad: Tensor, noise: bool) -> Found:
        """Return the gradients of a whole call."""
        if noise:
            grad = grad.to(self.weight.dtype)
            sent = [torch.mm(one, self._at(self._final(t))) for t, one in enumerate(grad)]
            sent = torch.stack(sent)
            self._found.factor = held(sent * z, self.factor)
            self._found.offset = held(sent, self.offset)
        if self._found.std is not None:
            self._found.std = self._found.std.to(z.dtype)
        return self._found

    @property
    def _times(self) -> bool:
        return self._fresh.operator == "*"

    def _final(self, t: int) -> Tensor:
        return self._fresh.final(t, self.weight)

    def _at(self, final: Tensor) -> Tensor:
        """Return the matrix under this factor or offset, until the next one is asked for."""
        act = torch.mul if self._times else torch.add
        return act(self.weight, final, out=self._matrix)
