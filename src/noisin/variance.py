"""What the variance of a pre-activation does to a loss: the paper's analysis of fast dropout.

The gradient of a weight w_i splits into what it would be if the noise were fixed and a part that
acts through the variance of a = Σ_i w_i x_i alone: 2 δ q_i w_i, with δ = ∂J/∂V[a] and
q_i = ∂V[a]/∂w_i² >= 0. Where δ > 0 the weight shrinks, as under weight decay of its own strength;
where δ < 0 it grows.

References:
    Bayer et al.: On fast dropout and its applicability to recurrent networks, section 2.2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from noisin.noise import Operator
from noisin.propagation import Moments, Variance, deviation, linear, noisy, sigmoid
from noisin.shapes import Float


class Split(NamedTuple):
    """The gradient of a weight matrix in two parts, whose sum it is.

    Args:
        loss: by way of the mean, equation (3): ∂J/∂E[a] E[x], [R, F].
        regularizer: by way of the variance, [R, F].
        delta: δ = ∂J/∂V[a], [..., R]; of the sampled form ∂J/∂a ξ / (2 √V[a]).
    """

    loss: Tensor
    regularizer: Tensor
    delta: Tensor


def split_gradient(
    function: Callable[..., Tensor],
    x: Moments,
    weight: Float[Tensor, "R F"],
    bias: Float[Tensor, " R"] | None = None,
    *,
    operator: Operator = "*",
    noise: Variance = 0.0,
    draw: Tensor | None = None,
) -> Split:
    """Split ∂J/∂W of a = W x̃ + b, x̃ = x under noise.

    Args:
        function: the scalar J, of ``Moments`` of a; with ``draw`` of a itself.
        x: moments of the input, [..., F].
        weight: W.
        bias: b.
        operator: how the noise acts on x.
        noise: V[ε]; of dropout with keep probability p it is (1 - p) / p.
        draw: ξ, standard normal, [..., R]: the form a = E[a] + ξ √V[a]. (For several inputs its
            regularizer is ∂J/∂a ξ q_i w_i / √V[a]; equation (4) holds of one input alone.)
    """
    seen = noisy(x, operator, noise)
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in linear(seen, weight, bias)]
        mean, variance = leaves
        given = Moments(mean, variance) if draw is None else mean + draw * deviation(variance)
        slopes = torch.autograd.grad(function(given), leaves, materialize_grads=True)
    by_mean, delta = (slope.detach() for slope in slopes)  # zeros made up may want a gradient

    def outer(rows: Tensor, columns: Tensor) -> Tensor:
        rows, columns = (one.reshape(-1, one.shape[-1]) for one in (rows, columns))
        return rows.t() @ columns

    return Split(outer(by_mean, x.mean), 2 * weight.detach() * outer(delta, seen.variance), delta)


class Field(NamedTuple):
    """A loss over the mean and variance of one pre-activation, and its gradient.

    Args:
        mean: E[a], [M].
        variance: V[a], [N].
        loss: [M, N].
        by_mean: ∂J/∂E[a], [M, N].
        by_variance: δ = ∂J/∂V[a], [M, N].
    """

    mean: Tensor
    variance: Tensor
    loss: Tensor
    by_mean: Tensor
    by_variance: Tensor


def squared_error(a: Moments, target: float) -> Tensor:
    """Return (E[a] - t)²; the variance does not enter."""
    return (a.mean - target).square()


def gaussian(a: Moments, target: float) -> Tensor:
    """Return -log N(t; E[a], V[a]) without its constant."""
    return (a.mean - target).square() / (2 * a.variance) + a.variance.log() / 2


def bernoulli(a: Moments, target: float) -> Tensor:
    """Return the cross-entropy of t and E σ(a)."""
    p = sigmoid(a, "closed").mean
    return -(target * p.log() + (1 - target) * (1 - p).log())


LOSSES = {"squared error": squared_error, "Gaussian": gaussian, "Bernoulli": bernoulli}


def variance_field(
    loss: Callable[[Moments, float], Tensor],
    mean: Float[Tensor, " M"],
    variance: Float[Tensor, " N"],
    target: float = 0.2,
) -> Field:
    """Return a loss and its gradient over a grid: a panel of the paper's Figure 1.

    Args:
        loss: of ``LOSSES``, or any function of moments and a target, by element.
        mean: values of E[a].
        variance: values of V[a], > 0 where the loss divides by it.
        target: t.
    """
    with torch.enable_grad():
        grid = torch.meshgrid(mean, variance, indexing="ij")
        leaves = Moments(*(one.clone().requires_grad_() for one in grid))
        value = loss(leaves, target)
        slopes = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
    return Field(mean, variance, *(one.detach() for one in (value, *slopes)))
