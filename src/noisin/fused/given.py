"""What the operator of the recurrence is given, and what it keeps for its way back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Given(NamedTuple):
    """What the operator is given; T steps, B sequences, H units, P size of h, G gates.

    Args:
        x: [T, B, I], or without ``weight_ih`` W_ih x + b_ih, [T, B, G·H].
        weight_ih: [G·H, I] or None.
        weight_hh: [G·H, P].
        bias_ih: [G·H] or None.
        bias_hh: [G·H] or None.
        weight_hr: [P, H] or None.
        h0: [B, P].
        c0: [B, H] of an LSTM, or None.
        hidden_factor: [T, B, P], or [1, B, P] if held; so at each site.
        hidden_offset: as the factor.
        recurrent_factor: as above; with a draw a gate G·P instead of P.
        recurrent_offset: as the factor.
        candidate_factor: [T, B, H].
        candidate_offset: as the factor.
        hidden_kept: zoneout's mask [T, B, P].
        cell_kept: [T, B, H].
        std: the learned spread of noise drawn in W_hh.
        lengths: [B] or None.
        seeds: one a step, for noise drawn in W_hh.
        term: that noise as text, or "".
        mode: key of ``noisin.reference.STEPS``.
        reverse: whether the last step comes first.
    """

    x: Tensor
    weight_ih: Tensor | None
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    h0: Tensor
    c0: Tensor | None
    hidden_factor: Tensor | None
    hidden_offset: Tensor | None
    recurrent_factor: Tensor | None
    recurrent_offset: Tensor | None
    candidate_factor: Tensor | None
    candidate_offset: Tensor | None
    hidden_kept: Tensor | None
    cell_kept: Tensor | None
    std: Tensor | None
    lengths: Tensor | None
    seeds: Tensor | None
    term: str
    mode: str
    reverse: bool


DIFFERENTIABLE = Given._fields[: Given._fields.index("lengths")]
NOISE = tuple(name for name in DIFFERENTIABLE if name.endswith(("factor", "offset", "kept")))


class Kept(NamedTuple):
    """What the way back needs of the way forward; see ``Buffers``."""

    out: Tensor
    gates: Tensor
    cells: Tensor
    extra: Tensor
    states: Tensor
