"""W x + b under noise: in x, in W, or in the result.

Noise is data here, in one of four forms. A ``Perturbation`` is a final factor or offset. A
``Fresh`` is noise in the weights that is drawn anew at each step: its datum is a seed a step, from
which the backward pass draws the same matrix again, so that T matrices are never held (but where
draws accumulate over time). A ``Preactivation`` stands for noise by the Gaussian pre-activation of
the same mean and variance. A ``Propagated`` is a variance, for ``noisin.propagated``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from noisin import mapped
from noisin.laws import Law
from noisin.noise import Operator
from noisin.propagation import Variance, added_variance, deviation
from noisin.streams import Stream
from noisin.tracing import autocasting, computing, transformed, untraced


class Perturbation(NamedTuple):
    """A final factor (operator ``*``) or offset (``+``).

    Args:
        operator: ``"*"`` or ``"+"``.
        value: [T, …], or [1, …] if held; … is the shape of what is perturbed at one step. With a
            draw a gate the last dimension is G·F, the gates in torch's order.
        gates: G with a draw a gate, else 1.
    """

    operator: Operator
    value: Tensor
    gates: int = 1


class Fresh(NamedTuple):
    """Noise in a weight matrix, another one at each step.

    Args:
        operator: ``"*"`` or ``"+"``.
        law: distribution of ε.
        seeds: one a step, int64, on the CPU.
        std: the value of a learned spread, None of a fixed one.
        cumulative: whether the draws add up (multiply) over time.
    """

    operator: Operator
    law: Law
    seeds: Tensor
    std: Tensor | None = None
    cumulative: bool = False

    def standard(self, step: int, like: Tensor) -> Tensor:
        """Draw ξ of one step, for a learned spread."""
        one = torch.ones((), dtype=like.dtype, device=like.device)
        return self._draw(partial(self.law.sample, std=one), step, like)

    def _draw(self, draw: Callable[..., Tensor], step: int, like: Tensor) -> Tensor:
        if like.is_meta:
            return torch.empty_like(like)

        def of(seed: Tensor) -> Tensor:
            generator = Stream(like.device, int(seed))
            return draw(like.shape, generator=generator, dtype=like.dtype, device=like.device)

        return mapped.each(of, self.seeds[step])

    def final(self, step: int, like: Tensor) -> Tensor:
        """Return the factor or offset of one step."""
        if self.std is not None:
            offset = self.standard(step, like) * self.std
            return 1 + offset if self.operator == "*" else offset
        draw = self.law.factor if self.operator == "*" else self.law.sample
        return self._draw(draw, step, like)


class Preactivation(NamedTuple):
    """Noise replaced by the normal pre-activation of the same mean and variance.

    Args:
        operator: how the noise acts on x or on W.
        variance: V[ε].
        value: standard normal numbers, [T, …] or [1, …], … the shape of the result at one step.
    """

    operator: Operator
    variance: Variance
    value: Tensor


class Propagated(NamedTuple):
    """Noise of which only the variance acts: moments go on, nothing is drawn.

    Args:
        operator: how the noise acts.
        variance: V[ε], which broadcasts to what is perturbed at one step.
    """

    operator: Operator
    variance: Tensor


Acting = Perturbation | Fresh | Preactivation | Propagated


def perturb(x: Tensor, perturbations: Sequence[Perturbation]) -> Tensor:
    """Apply the perturbations from left to right; those with gates give x [..., G, F]."""
    gates = max([1, *(p.gates for p in perturbations)])
    if gates > 1:
        x = x.unsqueeze(-2)
    for operator, value, own in perturbations:
        if gates > 1:
            value = value.unflatten(-1, (own, -1))
        x = x * value if operator == "*" else x + value
    return x


def perturb_held(weight: Tensor, perturbations: Sequence[Acting]) -> Tensor:
    """Return a weight matrix with the noise that is held in it, each [1, R, F]."""
    held = [p._replace(value=p.value[0]) for p in perturbations if isinstance(p, Perturbation)]
    return perturb(weight, held)


class Matrix(NamedTuple):
    """A weight matrix, and what a formula for variances needs of it, once for all steps.

    Args:
        weight: W [R, F].
        square: W² if noise in x needs it.
        added: for each term in W the variance that it adds, [R, F].
    """

    weight: Tensor
    square: Tensor | None = None
    added: tuple[Tensor, ...] = ()


class Product(NamedTuple):
    """W x + b under noise, for the steps of one call; made by ``noisy_product``.

    Args:
        matrix: W, with the noise that is held in it.
        bias: b [R] or None.
        on_x: what acts on x, step by step.
        within: what acts in W by formula, step by step.
        drawn: what is drawn in W for each step; nothing where all of it is held.
    """

    matrix: Matrix
    bias: Tensor | None
    on_x: list[list[Any]]
    within: list[list[Any]]
    drawn: list[list[Any]]


def noisy_product(
    weight: Tensor,
    bias: Tensor | None,
    on_x: Sequence[Acting],
    on_weight: Sequence[Acting],
    time: int,
) -> Product:
    """Prepare W x + b under noise.

    With ``Preactivation`` a = E[a] + Σ_k √V_k ξ_k, where V_k is the variance of a that the k-th
    term adds, those in x before those in W: a ~ N(E[a], V[a]) a unit.

    Args:
        weight: W [R, F].
        bias: b [R] or None.
        on_x: what acts on x.
        on_weight: what acts on W.
        time: T.
    """
    matrix, within, drawn = _prepared(weight, on_x, on_weight)
    steps = by_time(drawn, time, matrix.weight)
    return Product(matrix, bias, by_time(on_x, time), by_time(within, time), steps)


def multiply_all(
    weight: Tensor,
    bias: Tensor | None,
    on_x: Sequence[Acting],
    on_weight: Sequence[Acting],
    x: Tensor,
) -> Tensor:
    """Return the products of all steps, x [T, …, F] to [T, …, R]; the rest as ``noisy_product``."""
    if len(x) and any(isinstance(p, Fresh) for p in on_weight):
        return _multiply_each(weight, bias, on_x, on_weight, x)
    matrix, within, _ = _prepared(weight, on_x, on_weight)
    return _biased(_noisy(x, matrix, on_x, within), bias)


@untraced  # which would compile anew for each step and each number of steps
def _multiply_each(
    weight: Tensor,
    bias: Tensor | None,
    on_x: Sequence[Acting],
    on_weight: Sequence[Acting],
    x: Tensor,
) -> Tensor:
    product = noisy_product(weight, bias, on_x, on_weight, len(x))
    return torch.stack([multiply(product, t, row) for t, row in enumerate(x.unbind(0))])


def multiply(product: Product, t: int, x: Tensor) -> Tensor:
    """Return the product of step t, x [B, F] to [B, R]."""
    on_x, within, drawn = product.on_x[t], product.within[t], product.drawn[t]
    if not drawn and not on_x and not within:
        return functional.linear(x, product.matrix.weight, product.bias)
    if not drawn:
        return _biased(_noisy(x, product.matrix, on_x, within), product.bias)
    return _biased(_drawn(x, product.matrix.weight, on_x, drawn), product.bias)


@untraced  # which knows neither generators nor what is drawn twice
def _drawn(x: Tensor, weight: Tensor, on_x: Sequence[Acting], drawn: Sequence[Any]) -> Tensor:
    """Return W̃ x under noise in x, its matrix not kept for the backward pass where possible."""
    if not any(isinstance(p, Fresh) for p in drawn) or transformed():
        return _with_drawn(x, weight, on_x, drawn)
    tensors = [t for p in (*on_x, *drawn) for t in p if isinstance(t, Tensor)]
    return _DrawnAgain.apply(on_x, drawn, x, weight, *tensors)


def _prepared(
    weight: Tensor, on_x: Sequence[Acting], on_weight: Sequence[Acting]
) -> tuple[Matrix, list[Preactivation], list[Perturbation | Fresh]]:
    """Return W, what acts in it by formula, and what is drawn in it for each step, if any is."""
    within = [p for p in on_weight if isinstance(p, Preactivation)]
    drawn = [p for p in on_weight if isinstance(p, Perturbation | Fresh)]
    if not any(isinstance(p, Fresh) for p in drawn):  # one matrix serves all steps
        weight, drawn = perturb_held(weight, drawn), []
    return Matrix(weight, *_squares(weight, on_x, within)), within, drawn


def _biased(result: Tensor, bias: Tensor | None) -> Tensor:
    return result if bias is None else result + bias


def _squares(
    weight: Tensor, on_x: Sequence[Acting], within: Sequence[Preactivation]
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Return W² and the variances that terms in W add, if there is a formula to need them."""
    square = weight.square() if any(isinstance(p, Preactivation) for p in on_x) else None
    variance, added = torch.zeros_like(weight) if within else weight, []
    for p in within:
        added.append(added_variance(weight, variance, p.operator, p.variance))
        variance = variance + added[-1]
    return square, tuple(added)


def _noisy(
    x: Tensor, matrix: Matrix, on_x: Sequence[Acting], within: Sequence[Preactivation]
) -> Tensor:
    """Return W x under noise in x, and by formula in W."""
    sampled = [p for p in on_x if isinstance(p, Perturbation)]
    formulas = [p for p in on_x if isinstance(p, Preactivation)]
    x = perturb(x, sampled)
    gated = any(p.gates > 1 for p in sampled)
    result = _linear(x, matrix.weight, gated)
    if not formulas and not within:
        return result
    variance = torch.zeros_like(x)
    for p in formulas:
        assert matrix.square is not None
        added = added_variance(x, variance, p.operator, p.variance)
        result = result + deviation(_linear(added, matrix.square, gated)) * p.value
        variance = variance + added
    second = x.square() + variance
    for p, of_weight in zip(within, matrix.added, strict=True):
        result = result + deviation(_linear(second, of_weight, gated)) * p.value
    return result


def _linear(x: Tensor, weight: Tensor, gated: bool) -> Tensor:
    """Return W x, or for x [..., G, F] each block of W times its own row."""
    if not gated:
        return functional.linear(x, weight)
    blocks = weight.unflatten(0, (x.shape[-2], -1))
    return torch.einsum("...gf,ghf->...gh", x, blocks).flatten(-2)


def _with_drawn(
    x: Tensor, weight: Tensor, on_x: Sequence[Acting], drawn: Sequence[Perturbation | Fresh]
) -> Tensor:
    """Return W̃ x under noise in x, W̃ drawn here."""
    for p in drawn:
        value = p.final(0, weight) if isinstance(p, Fresh) else p.value
        weight = weight * value if p.operator == "*" else weight + value
    weight = weight.to(x.dtype)
    return _noisy(x, Matrix(weight, *_squares(weight, on_x, ())), on_x, ())


class _DrawnAgain(torch.autograd.Function):
    """``_with_drawn``, whose matrix lives in the forward pass, and again in the backward pass."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        on_x: Sequence[Acting],
        drawn: Sequence[Perturbation | Fresh],
        x: Tensor,
        weight: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Return W̃ x; the tensors are those in the noise, which may want gradients."""
        ctx.noise, ctx.casts = (on_x, drawn), autocasting(x.device)
        ctx.save_for_backward(x, weight, *tensors)
        return _with_drawn(x, weight, on_x, drawn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute again with a graph, and go back through it."""
        again = torch.is_grad_enabled()  # somebody wants to differentiate the gradients
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad(), nullcontext() if ctx.casts else computing(grad.device):
            # aliases: the graph from here leads to them and not past them
            inputs = [
                (one.view_as(one) if again else one.detach().requires_grad_()) if need else one
                for one, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            x, weight, *tensors = inputs
            remaining = iter(tensors)
            on_x, drawn = ([_renewed(p, remaining) for p in part] for part in ctx.noise)
            result = _with_drawn(x, weight, on_x, drawn)
            wanted = [one for one, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(result, wanted, grad, create_graph=again))
        return None, None, *(next(found) if need else None for need in needed)


def _renewed(p: Any, tensors: Iterator[Tensor]) -> Any:
    """Return noise with other tensors in the place of its own."""
    return p._replace(
        **{name: next(tensors) for name, value in p._asdict().items() if isinstance(value, Tensor)}
    )


def by_time(acting: Sequence[Acting], time: int, weight: Tensor | None = None) -> list[list[Any]]:
    """Return what acts at each step; what is held appears at every step.

    Args:
        acting: noise of all steps.
        time: T.
        weight: the matrix, where the noise is in one. Noise that accumulates in it is made here,
            T matrices of it.
    """
    if not acting:
        return [[]] * time
    rows = []
    for one in acting:
        if isinstance(one, Fresh) and one.cumulative:
            assert weight is not None
            rows.append(_running(one, time, weight))
        elif isinstance(one, Fresh):
            rows.append([one._replace(seeds=one.seeds[t : t + 1]) for t in range(time)])
        elif isinstance(one, Propagated):
            rows.append([one] * time)
        else:
            values = one.value.expand(time, *one.value.shape[1:]).unbind(0)
            rows.append([one._replace(value=value) for value in values])
    return [[row[t] for row in rows] for t in range(time)]


@untraced
def _running(one: Fresh, time: int, weight: Tensor) -> list[Perturbation]:
    """Return the sums, or products, of the draws up to each step."""
    values: list[Tensor] = []
    for t in range(time):
        new = one.final(t, weight)
        if values:
            new = values[-1] * new if one.operator == "*" else values[-1] + new
        values.append(new)
    return [Perturbation(one.operator, value) for value in values]
