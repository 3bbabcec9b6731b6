"""The recurrence over moments on a CPU, in float32, with a backward pass through time of its own.

What ``noisin.propagated`` does step by step in torch's operations. Time is walked once each way
without an autograd graph: a step is two matrix products, of means and of variances, and two
functions of ``moments.c``; the products that need no order, with the input and for the weights'
gradients, are taken for all steps at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd

from noisin import native
from noisin.fused import compiled
from noisin.fused.compiled import Propagation, Spread, address
from noisin.fused.moment_call import Call, Pair, Tensors
from noisin.fused.moment_gradients import of_inputs, of_recurrent, seen_input
from noisin.fused.products import Repeated, multiply
from noisin.tracing import differentiates_again


def run(call: Call, tensors: Tensors) -> tuple[Pair, tuple[Pair, ...]]:
    """Run one layer in one direction.

    Returns:
        Mean and variance of z [T, B, H], and of the state after the last step.
    """
    mean, variance, *cell = _Run.apply(call, *tensors)  # pyright: ignore
    last = call.steps(len(mean))[-1]
    state = (mean[last], variance[last])
    return (mean, variance), ((state, tuple(cell)) if cell else (state,))  # pyright: ignore


class _Buffers:
    """What one call reads and writes, and what C is told of it.

    Args:
        call: which one.
        given: its tensors.
        gates: mean and variance [T, B, G·H]; W_ih x + b_ih before a step, what is squashed after.
        kept: z, and of an LSTM c, of a GRU W_hn h + b_hn, mean and variance [T, B, H] each, from
            the way forward; new memory without it.
    """

    def __init__(
        self, call: Call, given: Tensors, gates: Pair, kept: Sequence[Tensor] | None = None
    ) -> None:
        time, batch, wide = gates[0].shape
        hidden = given.h.shape[-1]
        like, steps = gates[0], call.steps(time)
        if kept is None:
            count = 2 if call.mode.startswith("RNN") else 4
            kept = [like.new_empty(time, batch, hidden) for _ in range(count)]
        self.kept, self.gates = kept, gates
        noisy_weight = given.hh_variance is not None
        self.product = like.new_empty(batch, wide), like.new_empty(batch, wide)
        self.seen = (
            like.new_empty(batch, hidden),
            like.new_empty(batch, hidden * (1 + noisy_weight)),
        )
        first = given.h.contiguous(), given.h_variance.contiguous()
        noise = {site: call.added(site, given.h) for site in ("recurrent", "candidate", "hidden")}
        bias = None if given.bias_hh is None else given.bias_hh.contiguous()
        self.described = Propagation(
            batch=batch,
            units=hidden,
            first=steps[0],
            direction=steps.step,
            cell=compiled.CELLS.index({"LSTM": "lstm", "GRU": "gru"}.get(call.mode, "rnn")),
            form=compiled.FORMS.index(call.form),
            gates_size=wide,
            sigmoid=call.mode == "RNN_SIGMOID",
            noisy_weight=noisy_weight,
            scale=call.scale,
            bias=address(bias),
            **native.in_threads(),
        )
        self.tell("h0", first)
        self.tell("gates", gates)
        self.tell("states", kept[:2])
        self.tell("product", self.product)
        self.tell("seen", self.seen)
        cell = None
        if call.mode == "LSTM":
            assert given.c is not None
            assert given.c_variance is not None
            cell = given.c.contiguous(), given.c_variance.contiguous()
            self.tell("c0", cell)
            self.tell("cells", kept[2:])
        if call.mode == "GRU":
            self.tell("inner", kept[2:])
        for site, added in noise.items():
            if added is not None:
                setattr(self.described, site, Spread(*map(address, added)))
        self._alive = first, noise, bias, cell  # C sees their addresses alone
        self.at = ctypes.addressof(self.described)

    def tell(self, name: str, pair: Sequence[Tensor]) -> None:
        """Write the addresses of a mean and a variance."""
        for index, one in enumerate(pair):
            getattr(self.described, name)[index] = address(one)


class _Run(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        given = Tensors(*tensors)  # pyright: ignore[reportArgumentType]
        gates = _inputs(call, given)
        time, batch, _ = gates[0].shape
        buffers = _Buffers(call, given, gates)
        mean, variance = _recurrent(given, batch, time)
        for t in call.steps(time):
            compiled.LIBRARY.moments_see(buffers.at, t)
            mean.forward(buffers.seen[0], buffers.product[0])
            variance.forward(buffers.seen[1], buffers.product[1])
            compiled.LIBRARY.moments_forward(buffers.at, t)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *gates, *buffers.kept)
        last = call.steps(time)[-1]
        cell = [one[last].clone() for one in buffers.kept[2:]] if call.mode == "LSTM" else []
        return *buffers.kept[:2], *cell

    @staticmethod
    @custom_bwd(device_type="cpu")  # its products as those of the forward pass, not autocast's
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        count = len(Tensors._fields)
        saved = ctx.saved_tensors
        given, wanted = Tensors(*saved[:count]), ctx.needs_input_grad[1:]
        if differentiates_again(*grads):
            return None, *_by_torch(ctx.call, given, grads, wanted)
        gates, kept = saved[count : count + 2], saved[count + 2 :]
        buffers = _Buffers(ctx.call, given, gates, kept)
        arrived, new, state = _walk_back(ctx.call, given, buffers, grads)
        wants = dict(zip(Tensors._fields, wanted, strict=True))
        found = dict(zip(("h", "h_variance", "c", "c_variance"), state, strict=False))
        found |= of_recurrent(ctx.call, given, kept[:2], arrived, wants)
        for whole, part in zip(arrived, new, strict=False):  # memory that nobody needs any more
            whole[..., -part.shape[-1] :] = part
        found |= of_inputs(ctx.call, given, arrived, wants)
        return None, *(found.get(name) if wants[name] else None for name in Tensors._fields)


def _inputs(call: Call, given: Tensors) -> Pair:
    """Return the moments of W_ih x + b_ih of all steps, in memory of its own."""
    time, batch, _ = given.x.shape
    seen, variance, second = seen_input(call, given)
    mean = multiply(seen, given.ih.t())
    if given.bias_ih is not None:
        mean += given.bias_ih
    square = given.ih_square.t()
    spread = torch.zeros_like(mean) if variance is None else multiply(variance, square)
    if given.ih_variance is not None:
        spread += multiply(second, given.ih_variance.t())
    return mean.unflatten(0, (time, batch)), spread.unflatten(0, (time, batch))


def _recurrent(given: Tensors, batch: int, time: int) -> tuple[Repeated, Repeated]:
    """Return the products with W_hh that make the mean and the variance."""
    square = given.hh_square
    if given.hh_variance is not None:
        square = torch.cat((square, given.hh_variance), -1)
    return (
        Repeated(given.hh.contiguous(), batch, time),
        Repeated(square.contiguous(), batch, time),
    )


def _walk_back(
    call: Call, given: Tensors, buffers: _Buffers, grads: Sequence[Tensor | None]
) -> tuple[Pair, list[Tensor], list[Tensor]]:
    """Walk from the last step to the first.

    Returns:
        What arrives at W_hh z + b_hh of all steps, mean and variance; what arrives at the candidate
        of a GRU in W_ih x + b_ih, where the two differ; and what arrives at the first state.
    """
    of_out, of_cell = grads[:2], grads[2:]
    gates, (time, batch, _) = buffers.gates, buffers.gates[0].shape
    of_gates = torch.empty_like(gates[0]), torch.empty_like(gates[1])
    new = [torch.empty_like(one) for one in buffers.kept[2:]] if call.mode == "GRU" else []
    state = [torch.zeros_like(given.h, memory_format=torch.contiguous_format) for _ in range(2)]
    of_out = [None if one is None else one.contiguous() for one in of_out]
    buffers.tell("grad_out", of_out)
    buffers.tell("grad_state", state)
    buffers.tell("grad_gates", of_gates)
    buffers.tell("grad_new", new)
    cell = [
        torch.zeros_like(state[0])
        if one is None
        else one.clone(memory_format=torch.contiguous_format)
        for one in of_cell
    ]
    buffers.tell("grad_cell", cell)
    mean, variance = _recurrent(given, batch, time)
    of_means, of_variances = (one.unbind(0) for one in of_gates)
    for t in reversed(call.steps(time)):
        compiled.LIBRARY.moments_backward(buffers.at, t)
        mean.sent(of_means[t], buffers.seen[0])
        variance.sent(of_variances[t], buffers.seen[1])
        compiled.LIBRARY.moments_send_back(buffers.at, t)
    return of_gates, new, [*state, *cell]


def _by_torch(
    call: Call, given: Tensors, grads: Sequence[Any], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients as a graph of torch's operations."""
    with torch.enable_grad():
        # aliases: the graph from here leads to them and not past them
        leaves: list[Any] = [
            one.view_as(one) if want and one is not None else one
            for one, want in zip(given, wanted, strict=True)
        ]
        results = call.plain(Tensors(*leaves))
        arrived = [pair for pair in zip(results, grads, strict=True) if pair[1] is not None]
        asked = [one for one, want in zip(leaves, wanted, strict=True) if want]
        outputs, of_outputs = ([pair[index] for pair in arrived] for index in range(2))
        found = torch.autograd.grad(
            outputs, asked, of_outputs, create_graph=True, allow_unused=True
        )
    each = iter(found)
    return [next(each) if want else None for want in wanted]
