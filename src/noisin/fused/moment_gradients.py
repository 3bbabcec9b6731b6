"""Gradients over moments that need no order of steps, from what arrived at each product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noisin.fused.moment_call import Call, Pair, Tensors
from noisin.fused.products import multiply


def seen_input(call: Call, given: Tensors) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return E[x], V[x] under noise and E[x]² by row; no variance where it is 0."""
    mean = given.x.flatten(0, 1)
    variance = None if given.x_variance is None else given.x_variance.flatten(0, 1)
    added = call.added("input", given.x)
    if added is not None and (variance is not None or call.noise["input"]):
        variance = added.at(mean, variance)
    return mean, variance, mean.square()


def of_inputs(
    call: Call, given: Tensors, arrived: Pair, wants: dict[str, bool]
) -> dict[str, Tensor | None]:
    """Return the gradients of the product with the input, from what arrived at it."""
    of_mean, of_variance = (one.flatten(0, 1) for one in arrived)
    seen, variance, second = seen_input(call, given)
    found: dict[str, Tensor | None] = {}
    if wants["ih"]:
        found["ih"] = multiply(of_mean.t(), seen)
    if wants["ih_square"] and variance is not None:
        found["ih_square"] = multiply(of_variance.t(), variance)
    if wants["ih_variance"]:
        found["ih_variance"] = multiply(of_variance.t(), second)
    if wants["bias_ih"]:
        found["bias_ih"] = of_mean.sum(0)
    if not wants["x"] and not wants["x_variance"]:
        return found
    of_x, added = multiply(of_mean, given.ih), call.added("input", given.x)
    if given.ih_variance is not None:
        of_x.addcmul_(multiply(of_variance, given.ih_variance), seen, value=2)
    if variance is not None:
        sent = multiply(of_variance, given.ih_square)
        if added is not None:
            of_x.addcmul_(added.square * seen, sent, value=2)
            sent = sent * added.own
        if wants["x_variance"]:
            found["x_variance"] = sent.view_as(given.x)
    found["x"] = of_x.view_as(given.x)
    return found


def of_recurrent(
    call: Call, given: Tensors, states: Sequence[Tensor], arrived: Pair, wants: dict[str, bool]
) -> dict[str, Tensor | None]:
    """Return the gradients of the recurrent weights, from what arrived at their product."""
    of_mean, of_variance = (one.flatten(0, 1) for one in arrived)
    mean, variance = (
        torch.cat((one[1:], first[None]) if call.reverse else (first[None], one[:-1])).flatten(0, 1)
        for one, first in zip(states, (given.h, given.h_variance), strict=True)
    )
    found: dict[str, Tensor | None] = {}
    if wants["hh"]:
        found["hh"] = multiply(of_mean.t(), mean)
        if call.scale != 1:
            found["hh"] *= call.scale
    if wants["hh_square"]:
        added = call.added("recurrent", given.h)
        seen = variance if added is None else added.at(mean, variance)
        found["hh_square"] = multiply(of_variance.t(), seen)
    if wants["hh_variance"]:
        found["hh_variance"] = multiply(of_variance.t(), mean.square())
    if wants["bias_hh"]:
        found["bias_hh"] = of_mean.sum(0)
    return found
