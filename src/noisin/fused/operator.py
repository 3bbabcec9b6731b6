"""The fused recurrence: noise on, with a backward pass through time of its own.

One layer in one direction is one operator, ``noisin::recurrence``, and its way back another. Time
is walked once each way without an autograd graph: a step is one matrix product with W_hh and one
pointwise function, of ``noisin.fused.cpu`` or ``noisin.fused.cuda``; the products that need no
order, with the input and for the weights' gradients, are taken for all steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisin.fused import cpu, cuda
from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.given import DIFFERENTIABLE, NOISE, Given, Kept, checked
from noisin.fused.gradients import of_noise, of_weights
from noisin.fused.products import multiply
from noisin.fused.recurrent import Drawn, Recurrent, Tied, Untied
from noisin.noise import Noise
from noisin.product import Fresh
from noisin.text import parse

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
    return given.weight_hh.shape[0] // gates


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
    time, batch, _ = given.x.shape
    lstm, elman = given.mode == "LSTM", given.mode.startswith("RNN")
    states, none = (time, batch, given.h0.shape[-1]), (0,)
    cells = (time, batch, _hidden(given))
    apart = given.lengths is not None or given.x.dtype != gates.dtype
    return Kept(
        out=gates.new_empty(states, dtype=given.x.dtype),
        gates=gates,
        cells=gates.new_empty(cells if lstm else none),
        extra=gates.new_empty(none if elman else cells),
        states=gates.new_empty(states if apart else none),
    )


def _forward(given: Given, buffers: Buffers, product: Recurrent) -> None:
    """Walk through time, from the first step to the last."""
    device, hr = DEVICES[given.x.device.type], _projection(given, buffers)
    if whole := device.walk(buffers, None, product, hr):
        whole.forward()
        return
    steps = device.steps(buffers, None)
    h, states = buffers.h0, buffers.states.unbind(0)
    for t in buffers.steps:
        steps.forward(t, product.forward(t, h))
        if hr is not None:
            torch.mm(buffers.inner, hr.t(), out=buffers.raw)
        steps.emit(t)
        h = states[t]


def _projection(given: Given, buffers: Buffers) -> Tensor | None:
    return None if given.weight_hr is None else given.weight_hr.to(buffers.gates.dtype)


def _backward(given: Given, buffers: Buffers, grads: Gradients, product: Recurrent) -> None:
    """Walk back through time, from the last step to the first."""
    device, hr = DEVICES[given.x.device.type], _projection(given, buffers)
    if whole := device.walk(buffers, grads, product, hr):
        whole.backward()
        return
    steps = device.steps(buffers, grads)
    of_products = grads.product.unbind(0)
    for t in reversed(buffers.steps):
        steps.absorb(t)
        if hr is not None:
            torch.mm(grads.raw, hr, out=grads.inner)
        steps.backward(t)
        product.backward(t, buffers.before(t)[0], of_products[t], grads.state)


def _recurrence(*args: Any) -> tuple[Tensor, ...]:
    """Return the output, the final h and c, and what ``Kept`` names behind the output."""
    given = checked(Given(*args))
    kept = _new(given, _inputs(given))
    buffers, product = _buffers(given, kept), _product(given)
    _forward(given, buffers, product)
    h = buffers.states[buffers.steps[-1]]
    c = kept.cells[buffers.steps[-1]] if len(kept.cells) else buffers.c0
    dtype = given.x.dtype
    return kept.out, h.clone().to(dtype), c.clone().to(dtype), *kept[1:]


def _recurrence_shapes(*args: Any) -> tuple[Tensor, ...]:
    given = Given(*args)
    time, batch, _ = given.x.shape
    shape = time, batch, given.weight_hh.shape[0]
    kept = _new(given, given.x.new_empty(shape, dtype=_wide(given.x.dtype)))
    c = given.x.new_empty(0) if given.c0 is None else torch.empty_like(given.c0)
    return kept.out, given.x.new_empty(given.h0.shape), c, *kept[1:]


def _recurrence_backward(*args: Any) -> list[Tensor]:
    """Return the gradients of ``DIFFERENTIABLE``, empty where they are not wanted."""
    *given, kept, grads, wanted = args
    given, kept = Given(*given), Kept(*kept)
    wants = dict(zip(DIFFERENTIABLE, wanted, strict=True))
    buffers, product = _buffers(given, kept), _product(given)
    gradients = _gradients(given, buffers, grads, any(wants[name] for name in NOISE))
    _backward(given, buffers, gradients, product)
    found = of_weights(given, buffers, gradients, product, wants)
    found |= {"h0": gradients.state, "c0": gradients.cell}
    if gradients.states is not None:
        found |= of_noise(given, buffers, gradients)
    none = given.x.new_empty(0)
    return [
        tensor.to(given.x.dtype)
        if wants[name] and (tensor := found.get(name)) is not None
        else none.clone()
        for name in DIFFERENTIABLE
    ]


def _gradients(
    given: Given, buffers: Buffers, grads: Sequence[Tensor | None], noise: bool
) -> Gradients:
    """Return the buffers of the way back, ``grads`` those of the output, the final h and c."""
    of_out, of_h, of_c = grads
    gates = torch.empty_like(buffers.gates)
    raw = torch.empty_like(buffers.raw)
    return Gradients(
        state=_begun(of_h, buffers.h0),
        cell=_begun(of_c, buffers.c0),
        raw=raw,
        inner=raw if given.weight_hr is None else torch.empty_like(buffers.inner),
        gates=gates,
        product=torch.empty_like(gates) if given.mode == "GRU" else gates,
        out=_contiguous(of_out),
        states=torch.empty_like(buffers.states) if noise or given.weight_hr is not None else None,
        cells=torch.empty_like(buffers.cells) if noise and len(buffers.cells) else None,
    )


def _begun(grad: Tensor | None, like: Tensor) -> Tensor:
    return (
        torch.zeros_like(like)
        if grad is None
        else grad.clone(memory_format=torch.contiguous_format).to(like.dtype)
    )


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
    batched = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]
    if any(one is not None and batched(one) for one in grads):
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


# One level below torch.library.custom_op, which would import the compiler at the first call.
_LIBRARY = torch.library.Library("noisin", "DEF")


def _register(
    name: str, schema: str, kernel: Any, shapes: Any, backward: Any, setup_context: Any = None
) -> None:
    """Make an operator of a kernel, its shapes without numbers, and its way back."""
    _LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
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
