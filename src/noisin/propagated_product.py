"""W x + b over moments: noise in x and in W, drawn or itself propagated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from noisin.product import Acting, Fresh, Perturbation, Propagated, by_time, perturb
from noisin.propagation import Moments, added_variance, exact, noisy
from noisin.tracing import untraced

_DRAWN = "moments go with noise that is drawn or propagated; got noise @ preactivation"
Values = Tensor | Moments


def perturb_values(x: Values, acting: Sequence[Acting]) -> Values:
    """Return a tensor or moments under noise; a tensor under propagated noise becomes moments."""
    if isinstance(x, Moments) or any(isinstance(one, Propagated) for one in acting):
        return perturbed(exact(x), acting)
    return perturb(x, acting)  # pyright: ignore[reportArgumentType]


def perturbed(x: Moments, acting: Sequence[Acting]) -> Moments:
    """Return moments under noise that is drawn, or itself propagated, from left to right."""
    for one in acting:
        if isinstance(one, Propagated):
            x = noisy(x, one.operator, one.variance)
        elif isinstance(one, Perturbation) and one.operator == "*":
            x = Moments(x.mean * one.value, x.variance * one.value.square())
        elif isinstance(one, Perturbation):
            x = Moments(x.mean + one.value, x.variance)
        else:
            raise ValueError(_DRAWN)
    return x


class Matrix(NamedTuple):
    """A weight matrix and what variances need of it.

    Args:
        mean: E[W] [R, F].
        square: E[W²], by element: what V[x] is multiplied with.
        variance: V[W], or None if nothing in it is random.
    """

    mean: Tensor
    square: Tensor
    variance: Tensor | None


class Product(NamedTuple):
    """W x + b over moments; made by ``noisy_product``.

    Args:
        matrix: one for all steps, or None: another at each.
        bias: b [R] or None.
        on_x: what acts on x, at all steps together.
        on_x_at: the same, step by step.
        weight: W [R, F].
        drawn_at: what is drawn in W for each step.
        own_variance: see ``Propagation``.
        scale: of the mean alone.
    """

    matrix: Matrix | None
    bias: Tensor | None
    on_x: Sequence[Acting]
    on_x_at: list[list[Any]]
    weight: Tensor
    drawn_at: list[list[Any]]
    own_variance: bool
    scale: float


def noisy_product(
    weight: Tensor,
    bias: Tensor | None,
    on_x: Sequence[Acting],
    on_weight: Sequence[Acting],
    time: int,
    own_variance: bool = True,
    scale: float = 1.0,
) -> Product:
    """Prepare W x + b over moments.

    Args:
        weight: W [R, F], with the noise that is held in it.
        bias: b [R] or None.
        on_x: what acts on x.
        on_weight: what acts on W: all of it propagated, or all of it drawn at each step.
        time: T.
        own_variance: see ``Propagation``.
        scale: of the mean alone, see ``Propagation.recurrent_mean``.
    """
    fresh = any(isinstance(one, Fresh) for one in on_weight)
    return Product(
        None if fresh else _matrix(weight, on_weight),
        bias,
        on_x,
        by_time(on_x, time),
        weight,
        by_time(on_weight if fresh else (), time, weight),
        own_variance,
        scale,
    )


def _matrix(weight: Tensor, on_weight: Sequence[Acting]) -> Matrix:
    if not on_weight:
        return Matrix(weight, weight.square(), None)
    variance = torch.zeros_like(weight)
    for one in on_weight:
        if not isinstance(one, Propagated):
            raise ValueError(_DRAWN)
        variance = variance + added_variance(weight, variance, one.operator, one.variance)
    return Matrix(weight, weight.square() + variance, variance)


def multiply_all(given: Product, x: Moments) -> Moments:
    """Return the products of all steps, x [T, …, F] to [T, …, R]."""
    if given.matrix is None and len(x.mean):
        return _multiply_each(given, x)
    return _multiplied(given, given.matrix or _matrix(given.weight, ()), given.on_x, x)


@untraced  # which would compile anew for each step
def _multiply_each(given: Product, x: Moments) -> Moments:
    rows = zip(x.mean.unbind(0), x.variance.unbind(0), strict=True)
    found = [multiply(given, t, Moments(*row)) for t, row in enumerate(rows)]
    return Moments(*map(torch.stack, zip(*found, strict=True)))


def multiply(given: Product, t: int, x: Moments) -> Moments:
    """Return the product of step t, x [B, F] to [B, R]."""
    matrix = given.matrix
    if matrix is None:
        weight = given.weight
        for one in given.drawn_at[t]:
            value = one.final(0, weight) if isinstance(one, Fresh) else one.value
            weight = weight * value if one.operator == "*" else weight + value
        matrix = _matrix(weight.to(x.mean.dtype), ())
    return _multiplied(given, matrix, given.on_x_at[t], x)


def _multiplied(given: Product, matrix: Matrix, on_x: Sequence[Acting], x: Moments) -> Moments:
    if not given.own_variance:
        x = Moments(x.mean, torch.zeros_like(x.variance))
    gates = max([1, *(one.gates for one in on_x if isinstance(one, Perturbation))])
    if gates > 1:
        return _by_gate(given, matrix, on_x, x, gates)
    x = perturbed(x, on_x)
    seen = x.mean if given.scale == 1 else x.mean * given.scale
    mean = functional.linear(seen, matrix.mean, given.bias)
    variance = functional.linear(x.variance, matrix.square)
    if matrix.variance is not None:
        variance = variance + functional.linear(x.mean.square(), matrix.variance)
    return Moments(mean, variance)


def _by_gate(
    given: Product, matrix: Matrix, on_x: Sequence[Acting], x: Moments, gates: int
) -> Moments:
    """Multiply each gate's block with what that gate sees of x."""
    parts = []
    for gate in range(gates):
        seen = [
            one._replace(value=one.value.chunk(gates, -1)[gate], gates=1)
            if isinstance(one, Perturbation) and one.gates > 1
            else one
            for one in on_x
        ]
        blocks = [None if one is None else one.chunk(gates)[gate] for one in matrix]
        bias = None if given.bias is None else given.bias.chunk(gates)[gate]
        own = given._replace(bias=bias)
        parts.append(_multiplied(own, Matrix(*blocks), seen, x))  # pyright: ignore
    return Moments(*(torch.cat(part, -1) for part in zip(*parts, strict=True)))
