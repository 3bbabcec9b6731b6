"""Calls of the recurrence as buffers, for the Triton kernels and what they are compared to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.recurrent import Call, Tied, Untied

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1, "RNN_SIGMOID": 1}


@dataclass
class Called:
    """A call: buffers, and the operands of its products."""

    buffers: Buffers
    gradients: Gradients
    weight: Tensor
    projection: Tensor | None
    factor: Tensor | None
    offset: Tensor | None

    @property
    def product(self):
        """The product of all steps in torch's operations."""
        time, batch, _ = self.buffers.gates.shape
        gates = GATES[self.buffers.mode]
        if self.factor is not None and self.factor.shape[-1] > self.weight.shape[-1]:
            return Untied(self.weight, self.factor, self.offset, gates)
        return Tied(self.weight, self.factor, self.offset, time, batch)

    @property
    def forward(self):
        """The call on its way forward."""
        return Call(self.buffers, None, self.product, self.projection)

    @property
    def backward(self):
        """The call on its way back."""
        return Call(self.buffers, self.gradients, self.product, self.projection)


def called(
    mode,
    sizes,
    dtype=torch.float32,
    *,
    operands=None,
    half=torch.float32,
    device="cpu",
    projected=0,
    noise="",
    zoneout=False,
    lengths=None,
    reverse=False,
):
    """Return a call of the same numbers, whatever its dtypes.

    Args:
        mode: key of ``GATES``.
        sizes: T, B, H.
        dtype: of what is float32 for the kernels.
        operands: dtype of what may be in half precision, ``dtype`` without it.
        half: what the numbers of operands are rounded to.
        device: where.
        projected: P, or 0 without a projection.
        noise: "fresh", "held" or "untied" at all sites, or "" at none.
        zoneout: of h and of an LSTM's c.
        lengths: of the sequences.
        reverse: whether the last step comes first.
    """
    (time, batch, hidden), gates, lstm = sizes, GATES[mode], mode == "LSTM"
    state, generator = projected or hidden, torch.Generator().manual_seed(5)

    def drawn(*shape, scale=1.0, to=dtype, rounded=torch.float32):
        number = scale * torch.randn(shape, generator=generator)
        return number.to(rounded).to(to).to(device)

    def operand(*shape, scale=1.0):
        return drawn(*shape, scale=scale, to=operands or dtype, rounded=half)

    def noisy(width, scale=0.5):
        return operand(1 if noise == "held" else time, batch, width, scale=scale) if noise else None

    def mask(width):
        kept = torch.rand((time, batch, width), generator=generator) < 0.5
        return kept.to(operands or dtype).to(device) if zoneout else None

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device=device)

    draws = gates if noise == "untied" else 1
    states, inner = empty(time, batch, state), empty(batch, hidden)
    apart = lengths is not None or operands not in (None, dtype)
    buffers = Buffers(
        mode=mode,
        reverse=reverse,
        h0=operand(batch, state),
        c0=operand(batch, hidden) if lstm else empty(0),
        gates=drawn(time, batch, gates * hidden),
        cells=empty(time, batch, hidden) if lstm else empty(0),
        extra=empty(time, batch, hidden) if gates > 1 else empty(0),
        states=states,
        out=empty(time, batch, state).to(operands or dtype) if apart else states,
        inner=inner,
        raw=empty(batch, state) if projected else inner,
        lengths=None if lengths is None else torch.tensor(lengths, device=device),
        bias=operand(gates * hidden),
        inner_bias=operand(hidden) if mode == "GRU" else None,
        hidden_factor=noisy(state),
        hidden_offset=noisy(state),
        candidate_factor=noisy(hidden) if gates > 1 else None,
        candidate_offset=noisy(hidden) if gates > 1 else None,
        hidden_kept=mask(state),
        cell_kept=mask(hidden) if lstm else None,
    )
    product, raw = empty(time, batch, gates * hidden), empty(batch, state)
    gradients = Gradients(
        state=drawn(batch, state),
        cell=drawn(batch, hidden) if lstm else empty(0),
        raw=raw,
        inner=empty(batch, hidden) if projected else raw,
        gates=torch.empty_like(product) if mode == "GRU" else product,
        product=product,
        out=operand(time, batch, state),
        states=empty(time, batch, state),
        cells=empty(time, batch, hidden) if lstm else None,
    )
    return Called(
        buffers,
        gradients,
        weight=operand(gates * hidden, state, scale=state**-0.5),
        projection=operand(state, hidden, scale=hidden**-0.5) if projected else None,
        factor=noisy(draws * state, 1.0),
        offset=noisy(draws * state),
    )
