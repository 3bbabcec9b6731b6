"""A step besides its matrix products in torch's operations: what ``recurrence.c`` computes."""

from __future__ import annotations

import torch
from torch import Tensor

from noisin.fused.buffers import Buffers, Gradients, now, perturbed


class Eager:
    """The steps of one call, each in place on the buffers.

    Args:
        buffers: of the way forward.
        gradients: of the way back.
    """

    def __init__(self, buffers: Buffers, gradients: Gradients | None = None) -> None:
        self.buffers = buffers
        self.gradients = gradients
        self._cell = {"LSTM": _LSTM, "GRU": _GRU}.get(buffers.mode, _Elman)
        lengths = buffers.lengths
        steps = torch.arange(len(buffers.gates), device=buffers.gates.device)
        self._valid = None if lengths is None else (steps[:, None] < lengths).unsqueeze(-1)

    def forward(self, t: int, product: Tensor) -> None:
        """From W_hh h_{t-1} to h_t before a projection."""
        self._cell.forward(self.buffers, t, product)
        if self.buffers.mode == "LSTM":
            self._keep(self.buffers.cells[t], self.buffers.before(t)[1], t)
            if self._valid is not None:
                self.buffers.extra[t].mul_(self._valid[t])

    def emit(self, t: int) -> None:
        """z_t: h_t under the noise of ``hidden`` and zoneout."""
        b, old = self.buffers, self.buffers.before(t)[0]
        z = perturbed(b.raw, now(b.hidden_factor, t), now(b.hidden_offset, t))
        kept = now(b.hidden_kept, t)
        b.states[t] = z if kept is None else torch.lerp(z, old, kept.to(z.dtype))
        self._keep(b.states[t], old, t)
        if b.out is not b.states:
            b.out[t] = (
                b.states[t] if self._valid is None else torch.where(self._valid[t], b.states[t], 0)
            )

    def absorb(self, t: int) -> None:
        """The gradient of h_t before noise from what arrives at z_t."""
        b, g = self.buffers, self._gradients
        total = g.state.clone() if g.out is None else g.state + g.out[t]
        skips, kept = torch.zeros_like(total), now(b.hidden_kept, t)
        inside = total
        if kept is not None:
            skips, inside = kept * total, total - kept * total
        factor = now(b.hidden_factor, t)
        inside = inside if factor is None else inside * factor
        if self._valid is not None:
            valid = self._valid[t]
            total, inside = torch.where(valid, total, 0), torch.where(valid, inside, 0)
            skips = torch.where(valid, skips, g.state)
        g.raw.copy_(inside)
        g.state.copy_(skips)
        if g.states is not None:
            g.states[t] = total

    def backward(self, t: int) -> None:
        """The gradients of both products from that of h_t before a projection."""
        g, carried = self._gradients, None
        if self._valid is not None:
            carried = g.cell.clone()
        if g.cells is not None:
            g.cells[t] = g.cell
        self._cell.backward(self.buffers, g, t)
        if self._valid is None:
            return
        valid = self._valid[t]
        for gradient in {id(one): one for one in (g.gates, g.product)}.values():
            gradient[t] = torch.where(valid, gradient[t], 0)
        if g.cell.numel():
            g.cell.copy_(torch.where(valid, g.cell, carried))  # pyright: ignore
        if g.cells is not None:
            g.cells[t] = torch.where(valid, g.cells[t], 0)

    @property
    def _gradients(self) -> Gradients:
        assert self.gradients is not None
        return self.gradients

    def _keep(self, new: Tensor, old: Tensor, t: int) -> None:
        """Leave the old values behind the end of a sequence."""
        if self._valid is not None:
            new.copy_(torch.where(self._valid[t], new, old))


def _candidate(b: Buffers, t: int, value: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the candidate under its noise, and the slope of that."""
    factor = now(b.candidate_factor, t)
    noisy = perturbed(value, factor, now(b.candidate_offset, t))
    return noisy, 1.0 if factor is None else factor


def _biased(b: Buffers, t: int) -> Tensor:
    return b.gates[t] if b.bias is None else b.gates[t].add_(b.bias)


class _LSTM:
    @staticmethod
    def forward(b: Buffers, t: int, product: Tensor) -> None:
        i, f, g, o = _biased(b, t).add_(product).chunk(4, -1)
        for gate in (i, f, o):
            gate.sigmoid_()
        old = b.before(t)[1]
        cell = f * old + i * _candidate(b, t, g.tanh_())[0]
        torch.tanh(cell, out=b.extra[t])
        torch.mul(o, b.extra[t], out=b.inner)
        kept = now(b.cell_kept, t)
        b.cells[t] = cell if kept is None else torch.lerp(cell, old, kept.to(cell.dtype))

    @staticmethod
    def backward(b: Buffers, grads: Gradients, t: int) -> None:
        i, f, g, o = b.gates[t].chunk(4, -1)
        old, bounded, dh = b.before(t)[1], b.extra[t], grads.inner
        new, slope = _candidate(b, t, g)
        kept = now(b.cell_kept, t)
        skips = 0.0 if kept is None else kept * grads.cell
        cell = grads.cell - skips + dh * o * (1 - bounded**2)
        found = (
            cell * new * i * (1 - i),
            cell * old * f * (1 - f),
            cell * i * slope * (1 - g**2),
            dh * bounded * o * (1 - o),
        )
        torch.cat(found, -1, out=grads.gates[t])
        grads.cell.copy_(cell * f + skips)


class _GRU:
    @staticmethod
    def forward(b: Buffers, t: int, product: Tensor) -> None:
        r, z, n = _biased(b, t).chunk(3, -1)
        ur, uz, un = product.chunk(3, -1)
        b.extra[t] = un if b.inner_bias is None else un + b.inner_bias
        r.add_(ur).sigmoid_()
        z.add_(uz).sigmoid_()
        n.add_(r * b.extra[t]).tanh_()
        new, _ = _candidate(b, t, n)
        b.inner.copy_(new + z * (b.before(t)[0] - new))

    @staticmethod
    def backward(b: Buffers, grads: Gradients, t: int) -> None:
        r, z, n = b.gates[t].chunk(3, -1)
        dh, (new, slope) = grads.inner, _candidate(b, t, n)
        inner = dh * (1 - z) * slope * (1 - n**2)
        reset = inner * b.extra[t] * r * (1 - r)
        update = dh * (b.before(t)[0] - new) * z * (1 - z)
        torch.cat((reset, update, inner), -1, out=grads.gates[t])
        torch.cat((reset, update, inner * r), -1, out=grads.product[t])
        grads.state.add_(dh * z)


class _Elman:
    @staticmethod
    def forward(b: Buffers, t: int, product: Tensor) -> None:
        a = _biased(b, t).add_(product)
        {"RNN_TANH": a.tanh_, "RNN_RELU": a.relu_, "RNN_SIGMOID": a.sigmoid_}[b.mode]()
        b.inner.copy_(a)

    @staticmethod
    def backward(b: Buffers, grads: Gradients, t: int) -> None:
        h = b.gates[t]
        slope = {
            "RNN_TANH": lambda: 1 - h**2,
            "RNN_RELU": lambda: (~(h <= 0)).to(h.dtype),
            "RNN_SIGMOID": lambda: h * (1 - h),
        }[b.mode]()
        torch.mul(grads.inner, slope, out=grads.gates[t])
