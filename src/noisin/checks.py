"""What the input, the weights and the state of a stack of layers must be like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisin.propagation import Moments, mean_of
from noisin.stack import Stack
from noisin.tracing import autocasting


def check_call(
    stack: Stack,
    weights: Sequence[Sequence[Tensor]],
    x: Tensor,
    state: Sequence[Tensor | Moments],
) -> None:
    """Refuse what would only broadcast to the right shape, or be read beyond its end.

    Args:
        stack: shape of the layers.
        weights: for each layer and direction, torch's parameters in torch's order.
        x: input, [T, B, I].
        state: (h_0,) or (h_0, c_0).

    Raises:
        ValueError: a shape or a dtype that the stack does not have.
    """
    if x.dim() != 3 or x.shape[2] != stack.input_size:
        raise ValueError(f"x must be [T, B, {stack.input_size}], got {list(x.shape)}")
    if not len(x):
        raise ValueError(f"x must have at least one step, got {list(x.shape)}")
    suffixes, casts = stack.directions, autocasting(x.device)
    if len(weights) != stack.num_layers * len(suffixes):
        raise ValueError(
            f"weights must have {stack.num_layers * len(suffixes)} groups, one a layer and "
            f"direction; got {len(weights)}"
        )
    biases = len(weights[0]) > 2 + bool(stack.proj_size)
    for index, group in enumerate(weights):
        place = f"_l{index // len(suffixes)}{suffixes[index % len(suffixes)]}"
        shapes = stack.weight_shapes(place, biases)
        got = [tuple(one.shape) for one in group]
        if got != shapes:
            raise ValueError(f"the weights of {place[1:]} must have shapes {shapes}, got {got}")
        if not casts:
            _check_dtype(f"the weights of {place[1:]}", group, x)
    sizes = stack.state_shapes(x.shape[1])
    means = [mean_of(one) for one in state]
    got = [tuple(one.shape) for one in means]
    if got != sizes:
        raise ValueError(f"the state of {stack.mode} must have shapes {sizes}, got {got}")
    if not casts:
        _check_dtype("the state", means, x)


def _check_dtype(name: str, tensors: Sequence[Tensor], x: Tensor) -> None:
    for one in tensors:
        if one.dtype != x.dtype:
            raise ValueError(f"{name} must be in x's {x.dtype}, got {one.dtype}")


def check_finite(input: Any, hx: Any) -> None:
    """Refuse NaN and infinity in an input and the state given with it."""
    given: dict[str, Any] = {"input": input}
    if hx is not None:
        one = isinstance(hx, Tensor | Moments)
        given |= {"hx": hx} if one else dict(zip(("h", "c"), hx, strict=False))
    for name, values in list(given.items()):
        if isinstance(values, Moments):
            del given[name]
            given |= {f"{part} of {name}": getattr(values, part) for part in values._fields}
    given = {name: one.data for name, one in given.items()}
    for name, tensor in given.items():
        wrong = (~torch.isfinite(tensor)).nonzero()
        if len(wrong):
            where = wrong[0].tolist()
            raise ValueError(
                f"{name} must be finite; got {tensor[tuple(where)].item()} at {where}, and "
                f"{len(wrong)} such numbers in all"
            )


class Ends(NamedTuple):
    """Where sequences end.

    Args:
        lengths: [B], on the CPU.
        here: [B] int64, the same where the input is.
        valid: which steps belong to a sequence, [T, B, 1].
    """

    lengths: Tensor
    here: Tensor
    valid: Tensor


def ends_of(x: Tensor, lengths: Tensor) -> Ends:
    """Return where sequences end, brought to the device once for all layers.

    Args:
        x: the input, [T, B, I].
        lengths: [B], on the CPU.

    Raises:
        ValueError: no lengths of these sequences.
    """
    time, batch, _ = x.shape
    rule = f"lengths must be {batch} whole numbers within 1 … {time}, a tensor of them"
    if not isinstance(lengths, Tensor):
        raise ValueError(f"{rule}; got {lengths!r}")
    whole = lengths.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    inside = lengths.shape == (batch,) and bool(((lengths >= 1) & (lengths <= time)).all())
    if not whole or not inside:
        raise ValueError(f"{rule}; got {lengths.tolist()}, {lengths.dtype}")
    here = lengths.to(x.device, torch.int64).contiguous()
    steps = torch.arange(time, device=x.device)
    return Ends(lengths, here, (steps[:, None] < here).unsqueeze(-1))
