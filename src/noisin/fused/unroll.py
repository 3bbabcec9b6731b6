"""One layer in one direction by the fused recurrence: what it serves, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noisin.fused import operator
from noisin.laws import LAWS, Law
from noisin.noise import Noise
from noisin.product import Acting, Fresh, Perturbation, multiply_all, perturb_held
from noisin.reference import Inside, State, Weights
from noisin.stack import Places, Stack, is_held
from noisin.tracing import constant


def refusal(
    stack: Stack, found: Places, layer: int, dtype: torch.dtype, device: torch.device
) -> str:
    """Return why the fused recurrence cannot run a layer, or ""; arguments as ``path_of``."""
    if device.type not in operator.DEVICES:
        return f"the fused recurrence is for {' and '.join(operator.DEVICES)}, not {device.type}"
    if unserved := operator.DEVICES[device.type].refusal(dtype):
        return unserved
    for direction in stack.directions:
        recurrent = found.get(f"recurrent_l{layer}{direction}", ())
        in_weight = found.get(f"weight_hh_l{layer}{direction}", ())
        terms = [one for one in (*recurrent, *in_weight) if isinstance(one, Noise)]
        if any(one.estimate != "sample" for one in terms):
            return "only the plain loop knows the formulas of @ preactivation in the recurrence"
        if is_held(in_weight):
            continue
        *kept, last = in_weight
        if LAWS.get(type(last.law).__name__) is not type(last.law):  # pyright: ignore
            return "only the plain loop draws a law of your own for weight_hh at each step"
        if not is_held(kept) or last.hold == "cumulative":  # pyright: ignore
            return "only the plain loop makes several matrices of weight_hh a step, or keeps them"
        if any(one.gates == "untied" for one in terms):
            return "only the plain loop draws weight_hh under noise of each gate's own"
    return ""


def is_faster(mode: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether torch's own kernel would take longer for what both can do."""
    return operator.DEVICES[device.type].is_faster(mode, dtype)


def unroll(
    mode: str,
    x: Tensor,
    state: State,
    weights: Weights,
    inside: Inside,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """Run one layer in one direction; arguments and results as ``noisin.reference.unroll``.

    Args:
        mode: key of ``noisin.reference.STEPS``.
        x: [T, B, I].
        state: (h_0,) or (h_0, c_0).
        weights: parameters of the layer and direction.
        inside: what acts here, by site.
        lengths: [B] int64, steps of each sequence, where x is; all T without it.
        reverse: run from the last step to the first.
    """
    ih, bias = weights.ih, weights.bias_ih
    if inside.get("input") or inside.get("weight_ih"):
        on_x, on_weight = inside.get("input", ()), inside.get("weight_ih", ())
        x = multiply_all(ih, bias, on_x, on_weight, x)
        ih = bias = None
    hidden, recurrent, candidate = (
        combined(inside.get(site, ())) for site in ("hidden", "recurrent", "candidate")
    )
    masks = (_mask(inside.get(f"zoneout_{name}", ())) for name in ("hidden", "cell"))
    hh, term, fresh = _drawn(weights.hh, inside.get("weight_hh", ()))
    out, *final = torch.ops.noisin.recurrence(
        *(x, ih, hh, bias, weights.bias_hh, weights.hr, state[0]),
        state[1] if len(state) > 1 else None,
        *(*hidden, *recurrent, *candidate, *masks),
        None if fresh is None else fresh.std,
        lengths,
        None if fresh is None else fresh.seeds,
        *(term, mode, reverse),
    )[:3]
    return out, tuple(final[: len(state)])


def combined(acting: Sequence[Acting]) -> tuple[Tensor | None, Tensor | None]:
    """Return perturbations applied from left to right as one factor and one offset."""
    factor = offset = None
    gates = max([1, *(one.gates for one in acting if isinstance(one, Perturbation))])
    for one in acting:
        assert isinstance(one, Perturbation)
        value = one.value if one.gates == gates else one.value.repeat(1, 1, gates)
        if one.operator == "*":
            factor = value if factor is None else factor * value
            offset = None if offset is None else offset * value
        else:
            offset = value if offset is None else offset + value
    return factor, offset


def _mask(acting: Sequence[Acting]) -> Tensor | None:
    return acting[0].value if acting else None  # pyright: ignore[reportAttributeAccessIssue]


def _drawn(weight: Tensor, acting: Sequence[Acting]) -> tuple[Tensor, str, Fresh | None]:
    """Return W_hh with the noise held in it, and the noise drawn anew at each step, if any."""
    if not acting:
        return weight, "", None
    *kept, last = acting
    assert isinstance(last, Fresh)
    return perturb_held(weight, kept), _term(last.operator, last.law), last


@constant
def _term(operator: str, law: Law) -> str:
    return f"weight_hh {operator} {law}"
