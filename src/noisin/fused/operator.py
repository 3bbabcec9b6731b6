"""The fused recurrence: noise on, with a backward pass through time of its own.

One layer in one direction is one operator, ``noisin::recurrence``, and its way back another. Time
is walked once each way without an autograd graph: a step is one matrix product with W_hh and one
pointwise function, of ``noisin.fused.cpu`` or ``noisin.fused.cuda``; the products that need no
order, with the input and for the weights' gradients, are taken for all steps at once.

Replicas, calls of one shape, are one call of tensors with an axis in front, as ``torch.func.vmap``
makes it: a GPU takes a step of all of them in one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisin.fused import cpu, cuda
from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.given import DIFFERENTIABLE, NOISE, Given, Kept, replicas
from noisin.fused.gradients import of_noise, of_weights
from noisin.fused.products import multiply
from noisin.fused.recurrent import Call, Drawn, Recurrent, Tied, Untied
from noisin.noise import Noise
from noisin.product import Fresh
from noisin.text import parse
from noisin.tracing import batched, computing

DEVICES = {"cpu": cpu, "cuda": cuda}  # who takes the steps
_REQUIRED = {"x", "weight_hh", "h0"}
_SCHEMA = ", ".join(
    [f"Tensor{'' if name in _REQUIRED else '?'} {name}" for name in Given._fields[:-3]]
    + ["str term", "str mode", "bool reverse"]
)


def _product(given: Given) -> Recurrent:
    noise = given.recurrent_factor, given.recurrent_offset
    weight, (time, batch, _) = given.weight_hh.contiguous(), given.x.shape
    if given.seeds is not None:
        term = parse(given.term)
        assert isinstance(term, Noise)
        return Drawn(weight, Fresh(term.operator, term.law, given.seeds, given.std), *noise)
    wide = [one for one in noise if one is not None and one.shape[-1] != weight.shape[-1]]
    if wide:
        return Untied(weight, *noise, gates=wide[0].shape[-1] // weight.shape[-1])
    return Tied(weight, *noise, time, batch)


def _buffers(given: Given, kept: Kept) -> Buffers:
    """Return the buffers of a call around what it keeps."""
    batch, hidden, wide = given.x.shape[1], _hidden(given), kept.gates.dtype
    bias, inner_bias = _biases(given, wide)
    inner = kept.gates.new_empty(batch, hidden)
    raw = inner if given.weight_hr is None else kept.gates.new_empty(given.h0.shape)
    contiguous = {name: _contiguous(getattr(given, name)) for name in NOISE}
    del contiguous["recurrent_factor"], contiguous["recurrent_offset"]
    return Buffers(
        mode=given.mode,
        reverse=given.reverse,
        h0=given.h0.contiguous().to(wide),
        c0=kept.gates.new_empty(0) if given.c0 is None else given.c0.contiguous().to(wide),
        gates=kept.gates,
        cells=kept.cells,
        extra=kept.extra,
        states=kept.states if kept.states.numel() else kept.out,
        out=kept.out,
        inner=inner,
        raw=raw,
        lengths=given.lengths,
        bias=bias,
        inner_bias=inner_bias,
        **contiguous,
    )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _hidden(given: Given) -> int:
    gates = {"LSTM": 4, "GRU": 3}.get(given.mode, 1)
    return given.weight_hh.shape[-2] // gates


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the state and of what is kept: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _inputs(given: Given) -> Tensor:
    """Return W_ih x of all steps, in memory of its own."""
    if given.weight_ih is None:
        whole = given.x.clone(memory_format=torch.contiguous_format)
    else:
        x = given.x.flatten(0, 1)
        whole = multiply(x, given.weight_ih.t()).unflatten(0, given.x.shape[:2])
    return whole.to(_wide(whole.dtype))


def _biases(given: Given, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return b_ih + b_hh, and b_hn of a GRU, which the first then lacks."""
    of_x, of_h = (None if one is None else one.to(dtype) for one in (given.bias_ih, given.bias_hh))
    if of_h is None:
        return _contiguous(of_x), None
    inner = None
    if given.mode == "GRU":
        gates, inner = of_h[: -_hidden(given)], of_h[-_hidden(given) :].contiguous()
        of_h = torch.cat((gates, torch.zeros_like(inner)))
    return _contiguous(of_h) if of_x is None else of_x + of_h, inner


def _new(given: Given, gates: Tensor) -> Kept:
    """Return memory for what a call leaves."""
    *lead, _ = given.x.shape
    lstm, elman = given.mode == "LSTM", given.mode.startswith("RNN")
    states, none = (*lead, given.h0.shape[-1]), (*lead[:-2], 0)
    cells = (*lead, _hidden(given))
    apart = given.lengths is not None or given.x.dtype != gates.dtype
    return Kept(
        out=gates.new_empty(states, dtype=given.x.dtype),
        gates=gates,
        cells=gates.new_empty(cells if lstm else none),
        extra=gates.new_empty(none if elman else cells),
        states=gates.new_empty(states if apart else none),
    )


def _joined(parts: Sequence[Tensor], given: Given) -> Tensor:
    """Return results of the replicas with their axis in front, or that of a single call."""
    return parts[0] if given.x.dim() == 3 else torch.stack(list(parts))


def _calls(given: Given, parts: Sequence[Given], kept: Kept) -> list[Call]:
    """Return the call of each replica, around what it keeps."""
    each = zip(*kept, strict=True) if given.x.dim() > 3 else [kept]
    return [
        Call(
            buffers := _buffers(part, Kept(*own)), None, _product(part), _projection(part, buffers)
        )
        for part, own in zip(parts, each, strict=True)
    ]


def _projection(given: Given, buffers: Buffers) -> Tensor | None:
    return None if given.weight_hr is None else given.weight_hr.to(buffers.gates.dtype)


def _forward(device: Any, calls: Sequence[Call]) -> None:
    """Walk through time, from the first step to the last."""
    if whole := device.walk(calls):
        whole.forward()
        return
    for call in calls:
        buffers, hr = call.buffers, call.projection
        steps = device.steps(buffers, None)
        h, states = buffers.h0, buffers.states.unbind(0)
        for t in buffers.steps:
            steps.forward(t, call.product.forward(t, h))
            if hr is not None:
                torch.mm(buffers.inner, hr.t(), out=buffers.raw)
            steps.emit(t)
            h = states[t]


def _backward(device: Any, calls: Sequence[Call]) -> None:
    """Walk back through time, from the last step to the first."""
    if whole := device.walk(calls):
        whole.backward()
        return
    for call in calls:
        buffers, grads, hr = call.buffers, call.gradients, call.projection
        assert grads is not None
        steps = device.steps(buffers, grads)
        of_products = grads.product.unbind(0)
        for t in reversed(buffers.steps):
            steps.absorb(t)
            if hr is not None:
                torch.mm(grads.raw, hr, out=grads.inner)
            steps.backward(t)
            call.product.backward(t, buffers.before(t)[0], of_products[t], grads.state)


def _recurrence(*args: Any) -> tuple[Tensor, ...]:
    """Return the output, the final h and c, and what ``Kept`` names behind the output."""
    given = Given(*args)
    parts = replicas(given)
    kept = _new(given, _joined([_inputs(part) for part in parts], given))
    calls = _calls(given, parts, kept)
    _forward(DEVICES[given.x.device.type], calls)
    last = calls[0].buffers.steps[-1]
    h = _joined([call.buffers.states[last].clone() for call in calls], given)
    cells = [one.cells[last] if len(one.cells) else one.c0 for one in (c.buffers for c in calls)]
    c = _joined([one.clone() for one in cells], given)
    dtype = given.x.dtype
    return kept.out, h.to(dtype), c.to(dtype), *kept[1:]


def _recurrence_shapes(*args: Any) -> tuple[Tensor, ...]:
    given = Given(*args)
    shape = *given.x.shape[:-1], given.weight_hh.shape[-2]
    kept = _new(given, given.x.new_empty(shape, dtype=_wide(given.x.dtype)))
    none = (*given.x.shape[:-3], 0)
    c = given.x.new_empty(none if given.c0 is None else given.c0.shape)
    return kept.out, given.x.new_empty(given.h0.shape), c, *kept[1:]


def _recurrence_backward(*args: Any) -> list[Tensor]:
    """Return the gradients of ``DIFFERENTIABLE``, empty where they are not wanted."""
    *given, kept, grads, wanted = args
    given, kept = Given(*given), Kept(*kept)
    wants = dict(zip(DIFFERENTIABLE, wanted, strict=True))
    parts = replicas(given)
    calls = _calls(given, parts, kept)
    _give_gradients(given, calls, grads, any(wants[name] for name in NOISE))
    _backward(DEVICES[given.x.device.type], calls)
    found = [_found(part, call, wants) for part, call in zip(parts, calls, strict=True)]
    none = given.x.new_empty(0)
    return [
        _joined([one[name] for one in found], given).to(given.x.dtype)
        if wants[name] and found[0].get(name) is not None
        else none.clone()
        for name in DIFFERENTIABLE
    ]


def _found(given: Given, call: Call, wants: dict[str, bool]) -> dict[str, Any]:
    """Return the gradients of one call after its walk."""
    buffers, gradients = call.buffers, call.gradients
    assert gradients is not None
    found = of_weights(given, buffers, gradients, call.product, wants)
    found |= {"h0": gradients.state, "c0": gradients.cell}
    if gradients.states is not None:
        found |= of_noise(given, buffers, gradients)
    return found


def _give_gradients(
    given: Given, calls: Sequence[Call], grads: Sequence[Tensor | None], noise: bool
) -> None:
    """Give each call the buffers of the way back, ``grads`` those of the output, final h and c."""

    def each(one: Tensor | None) -> Sequence[Tensor | None]:
        if one is None:
            return [None] * len(calls)
        return [one] if given.x.dim() == 3 else one.unbind(0)

    def empty(like: Tensor) -> Sequence[Tensor]:
        """Of all calls in one piece, as kernels of a GPU expect it."""
        return like.new_empty(len(calls), *like.shape).unbind(0)

    first = calls[0].buffers
    state, cell, raw, gates = map(empty, (first.h0, first.c0, first.raw, first.gates))
    inner = raw if given.weight_hr is None else empty(first.inner)
    product = empty(first.gates) if given.mode == "GRU" else gates
    states = empty(first.states) if noise or given.weight_hr is not None else each(None)
    cells = empty(first.cells) if noise and len(first.cells) else each(None)
    of_out, of_h, of_c = map(each, grads)
    for r, call in enumerate(calls):
        call.gradients = Gradients(
            state=_begun(state[r], of_h[r]),
            cell=_begun(cell[r], of_c[r]),
            raw=raw[r],
            inner=inner[r],
            gates=gates[r],
            product=product[r],
            out=_contiguous(of_out[r]),
            states=states[r],
            cells=cells[r],
        )


def _begun(memory: Tensor, grad: Tensor | None) -> Tensor:
    """Return memory filled with a gradient, or with 0."""
    return memory.zero_() if grad is None else memory.copy_(grad)


def _recurrence_backward_shapes(*args: Any) -> list[Tensor]:
    *given, _, _, wanted = args
    given = Given(*given)
    return [
        torch.empty_like(getattr(given, name), memory_format=torch.contiguous_format)
        if want
        else given.x.new_empty(0)
        for name, want in zip(DIFFERENTIABLE, wanted, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, (out, _, _, *rest) = Given(*inputs), output
    ctx.mark_non_differentiable(*rest)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(out, *rest, *given[:-3])
    ctx.rest = given[-3:]


def _back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if batched(*grads):
        raise RuntimeError(
            "the fused recurrence has one gradient at a time; for vectorized ones run the plain "
            'loop, path="reference"; got is_grads_batched=True'
        )
    count, saved = len(Kept._fields), ctx.saved_tensors  # once: a checkpoint computes them anew
    kept, given = saved[:count], (*saved[count:], *ctx.rest)
    wanted = list(ctx.needs_input_grad[: len(DIFFERENTIABLE)])
    found = torch.ops.noisin.recurrence_backward(*given, list(kept), list(grads[:3]), wanted)
    some = [one if want else None for one, want in zip(found, wanted, strict=True)]
    return (*some, *[None] * (len(given) - len(some)))


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "the fused recurrence is differentiable once; for second derivatives run the plain loop, "
        'path="reference"; got a second differentiation'
    )


def _map(info: Any, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Take a batch of calls, as ``torch.func.vmap`` hands it over, as replicas."""
    size, moved = info.batch_size, []
    for dim, one in zip(dims, args, strict=True):
        if isinstance(one, Tensor):
            one = one.expand(size, *one.shape) if dim is None else one.movedim(dim, 0)
        moved.append(one)
    if moved[0].dim() == 4:
        return torch.ops.noisin.recurrence(*moved), (0,) * 7
    inner = moved[0].shape[1]  # one vmap in another
    flat = [one.flatten(0, 1) if isinstance(one, Tensor) else one for one in moved]
    found = torch.ops.noisin.recurrence(*flat)
    return tuple(one.unflatten(0, (size, inner)) for one in found), (0,) * 7


# One level below torch.library.custom_op, which would import the compiler at the first call.
_LIBRARY = torch.library.Library("noisin", "DEF")


def _register(
    name: str, schema: str, kernel: Any, shapes: Any, backward: Any, setup_context: Any = None
) -> None:
    """Make an operator of a kernel, its shapes without numbers, and its way back."""
    _LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)

    def run(*args: Any) -> Any:
        with computing(args[0].device):  # autocast may be on where gradients are asked for
            return kernel(*args)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
    name = f"noisin::{name}"
    torch.library.register_fake(name, shapes, lib=_LIBRARY)
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_LIBRARY)


_register(
    "recurrence",
    f"({_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _recurrence,
    _recurrence_shapes,
    _back,
    _save,
)
_register(
    "recurrence_backward",
    f"({_SCHEMA}, Tensor[] kept, Tensor?[] grads, bool[] wanted) -> Tensor[]",
    _recurrence_backward,
    _recurrence_backward_shapes,
    _refuse,
)
torch.library.register_vmap("noisin::recurrence", _map, lib=_LIBRARY)
