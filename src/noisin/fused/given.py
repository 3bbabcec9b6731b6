"""What the operator of the recurrence is given, and what it keeps for its way back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Given(NamedTuple):
    """What the operator is given; T steps, B sequences, H units, P size of h, G gates.

    Several calls of one shape, *replicas*, are one call of tensors with an axis R in front.

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


def replicas(given: Given) -> list[Given]:
    """Return the call of each replica, where all tensors have an axis of replicas in front.

    Raises:
        ValueError: a tensor without that axis, or of another length.
    """
    if given.x.dim() == 3:
        return [checked(given)]
    count = len(given.x)
    tensors = {name: one for name, one in given._asdict().items() if isinstance(one, Tensor)}
    for name, tensor in tensors.items():
        if tensor.dim() == 0 or len(tensor) != count:
            raise ValueError(
                f"{name} must have {count} replicas in front, as x; got {list(tensor.shape)}"
            )
    return [
        checked(given._replace(**{name: one[r] for name, one in tensors.items()}))
        for r in range(count)
    ]


DIFFERENTIABLE = Given._fields[: Given._fields.index("lengths")]
NOISE = tuple(name for name in DIFFERENTIABLE if name.endswith(("factor", "offset", "kept")))


class Kept(NamedTuple):
    """What the way back needs of the way forward; see ``Buffers``."""

    out: Tensor
    gates: Tensor
    cells: Tensor
    extra: Tensor
    states: Tensor


_CELLS = {
    **dict.fromkeys(("RNN_TANH", "RNN_RELU", "RNN_SIGMOID"), ("recurrent", "hidden")),
    "GRU": ("recurrent", "hidden", "candidate"),
    "LSTM": ("recurrent", "hidden", "candidate", "cell", "weight_hr", "c0"),
}
"""What each cell may be given besides what all have."""


def _check_parts(given: Given) -> None:
    """Refuse another mode, and tensors that its step does not read."""
    if given.mode not in _CELLS:
        raise ValueError(f"mode must be one of {', '.join(_CELLS)}; got {given.mode!r}")
    for name in (*NOISE, "weight_hr", "c0"):
        there = getattr(given, name) is not None
        if there and not name.startswith(_CELLS[given.mode]):
            raise ValueError(f"{name} is not for {given.mode}, and was given")
    if given.mode == "LSTM" and given.c0 is None:
        raise ValueError("c0 must be given for LSTM, got None")
    factor, offset = given.recurrent_factor, given.recurrent_offset
    if factor is not None and offset is not None and factor.shape[-1] != offset.shape[-1]:
        raise ValueError(
            "recurrent_factor and recurrent_offset must be as wide, got "
            f"{factor.shape[-1]} and {offset.shape[-1]}"
        )


def checked(given: Given) -> Given:
    """Return what is given, or refuse what the compiled code would read as something else.

    Raises:
        ValueError: no such cell, a tensor that it has not or lacks, or a shape, dtype or device
            that does not fit the input and W_hh.
    """
    _check_parts(given)
    (time, batch, size), (rows, state) = given.x.shape, given.weight_hh.shape
    gates = {"LSTM": 4, "GRU": 3}.get(given.mode, 1)
    hidden = rows // gates
    wide = gates * state
    rule = {
        "x": [(time, batch, size if given.weight_ih is not None else rows)],
        "weight_ih": [(rows, size)],
        "weight_hh": [(gates * hidden, state if given.weight_hr is not None else hidden)],
        "bias_ih": [(rows,)],
        "bias_hh": [(rows,)],
        "weight_hr": [(state, hidden)],
        "h0": [(batch, state)],
        "c0": [(batch, hidden)],
        "lengths": [(batch,)],
    }
    for name in NOISE:
        units = [hidden] if name.startswith(("candidate", "cell")) else [state]
        units += [wide] if name.startswith("recurrent") else []
        rule[name] = [(steps, batch, unit) for steps in (time, 1) for unit in units]
    for name, shapes in rule.items():
        tensor = getattr(given, name)
        if tensor is None:
            continue
        kind = torch.int64 if name == "lengths" else given.x.dtype, given.x.device
        if tuple(tensor.shape) not in shapes or (tensor.dtype, tensor.device) != kind:
            raise ValueError(
                f"{name} must be {' or '.join(str(list(shape)) for shape in shapes)} in {kind[0]} "
                f"on {kind[1]}; got {list(tensor.shape)} in {tensor.dtype} on {tensor.device}"
            )
    return given
