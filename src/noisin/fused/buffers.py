"""What one layer and direction reads and writes in one call of the recurrence.

Letters: T steps, B sequences, H hidden units, P size of h (H without a projection), G gates. All
tensors are contiguous and of one dtype. What a cell does not have is empty; what a call does not
have is None. A factor, an offset or a mask may be [1, B, …], held for the call.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Buffers:
    """The way forward.

    Args:
        mode: key of ``noisin.reference.STEPS``.
        reverse: whether the last step comes first.
        h0: [B, P].
        c0: [B, H], of an LSTM.
        gates: [T, B, G·H]; before a step W_ih x_t, after it i, f, g, o or r, z, n or h.
        cells: [T, B, H], c_t as the next step sees it.
        extra: [T, B, H]; tanh(c_t) of an LSTM, W_hn h_{t-1} + b_hn of a GRU.
        states: [T, B, P], z_t as the next step sees it.
        out: [T, B, P], z_t, and 0 behind the end of a sequence; may be ``states``.
        inner: [B, H], h_t before a projection.
        raw: [B, P], h_t before noise; ``inner`` without a projection.
        lengths: [B] int64, steps of each sequence, where they differ.
        bias: [G·H], b_ih + b_hh, but b_in alone for the candidate of a GRU.
        inner_bias: [H], b_hn of a GRU.
        hidden_factor: [T, B, P].
        hidden_offset: [T, B, P].
        candidate_factor: [T, B, H].
        candidate_offset: [T, B, H].
        hidden_kept: [T, B, P], zoneout's mask: 1 where the old value stays.
        cell_kept: [T, B, H].
    """

    mode: str
    reverse: bool
    h0: Tensor
    c0: Tensor
    gates: Tensor
    cells: Tensor
    extra: Tensor
    states: Tensor
    out: Tensor
    inner: Tensor
    raw: Tensor
    lengths: Tensor | None = None
    bias: Tensor | None = None
    inner_bias: Tensor | None = None
    hidden_factor: Tensor | None = None
    hidden_offset: Tensor | None = None
    candidate_factor: Tensor | None = None
    candidate_offset: Tensor | None = None
    hidden_kept: Tensor | None = None
    cell_kept: Tensor | None = None

    @property
    def steps(self) -> range:
        """The steps in the order of the recurrence."""
        steps = range(len(self.gates))
        return steps[::-1] if self.reverse else steps

    def before(self, t: int) -> tuple[Tensor, Tensor]:
        """Return the state that step t starts from, z and c."""
        last = t + 1 if self.reverse else t - 1
        if not 0 <= last < len(self.gates):
            return self.h0, self.c0
        return self.states[last], self.cells[last] if len(self.cells) else self.c0


@dataclass
class Gradients:
    """The way back.

    Args:
        state: [B, P]; gradient of z_t, and after the step of z_{t-1} as far as it does not pass
            the recurrent product.
        cell: [B, H], likewise of c_t.
        raw: [B, P], of h_t before noise.
        inner: [B, H], before a projection; ``raw`` without one.
        gates: [T, B, G·H], of W_ih x_t + b_ih.
        product: [T, B, G·H], of W_hh h_{t-1} + b_hh; ``gates`` but in a GRU.
        out: [T, B, P], of the output.
        states: [T, B, P], what arrived at z_t in all, where noise wants its gradient.
        cells: [T, B, H], what arrived at c_t.
    """

    state: Tensor
    cell: Tensor
    raw: Tensor
    inner: Tensor
    gates: Tensor
    product: Tensor
    out: Tensor | None = None
    states: Tensor | None = None
    cells: Tensor | None = None


def now(noise: Tensor | None, t: int) -> Tensor | None:
    """Return the noise of step t."""
    if noise is None:
        return None
    return noise[t] if len(noise) > 1 else noise[0]


def perturbed(x: Tensor, factor: Tensor | None, offset: Tensor | None) -> Tensor:
    """Return x ⊙ factor + offset."""
    x = x if factor is None else x * factor
    return x if offset is None else x + offset


def held(gradient: Tensor, like: Tensor | None) -> Tensor | None:
    """Return the gradient of noise that may be held, from that of each step."""
    if like is None:
        return None
    return gradient if len(like) == len(gradient) else gradient.sum(0, keepdim=True)
