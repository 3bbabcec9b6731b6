"""W x + b under noise: in x, in W, or in the result.

Noise is data here, in one of three forms. A ``Perturbation`` is a final factor or offset. A
``Fresh`` is noise in the weights that is drawn anew at each step: its datum is a seed a step, from
which the backward pass draws the same matrix again, so that T matrices are never held. A
``Preactivation`` stands for noise by the Gaussian pre-activation of the same mean and variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from noisin.laws import Law
from noisin.noise import Operator
from noisin.propagation import Variance, added_variance, deviation


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
        generator = torch.Generator(like.device).manual_seed(int(self.seeds[step]))
        with torch._C._DisableFuncTorch():  # vmap refuses what is drawn inside; a seed is no draw
            return draw(like.shape, generator=generator, dtype=like.dtype, device=like.device)

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


Acting = Perturbation | Fresh | Preactivation


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


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    on_x: Sequence[Acting] = (),
    on_weight: Sequence[Acting] = (),
) -> Tensor:
    """Return W x + b under noise, at one step, or at all steps if no noise is ``Fresh``.

    Args:
        x: [..., F].
        weight: W [R, F].
        bias: b [R] or None.
        on_x: what acts on x.
        on_weight: what acts on W; its perturbations are [R, F].

    Returns:
        [..., R]. With ``Preactivation`` a = E[a] + Σ_k √V_k ξ_k, V_k the variance of a that the
        k-th term adds: a ~ N(E[a], V[a]) by unit.
    """
    if not on_x and not on_weight:
        return functional.linear(x, weight, bias)
    x = perturb(x, [p for p in on_x if isinstance(p, Perturbation)])
    drawn = [p for p in on_weight if not isinstance(p, Preactivation)]
    gated = any(isinstance(p, Perturbation) and p.gates > 1 for p in on_x)
    if all(isinstance(p, Fresh) for p in drawn) and drawn and not gated and _may_regenerate():
        fresh: list[Any] = drawn
        device = x.device.type
        if torch.is_autocast_enabled(device):  # which does not look into a function of our own
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
        result = _FreshProduct.apply(x, weight, fresh, *(p.std for p in fresh))
        result = result if bias is None else result + bias
    else:
        for p in drawn:
            value = p.final(0, weight) if isinstance(p, Fresh) else p.value
            weight = weight * value if p.operator == "*" else weight + value
        result = _linear(x, weight, bias, gated)
    before = [p for p in on_x if isinstance(p, Preactivation)]
    within = [p for p in on_weight if isinstance(p, Preactivation)]
    if not before and not within:
        return result
    return result + _deviations(x, weight, gated, before, within)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool) -> Tensor:
    if not gated:
        return functional.linear(x, weight, bias)
    blocks = weight.unflatten(0, (x.shape[-2], -1))
    result = torch.einsum("...gf,ghf->...gh", x, blocks).flatten(-2)
    return result if bias is None else result + bias


def _deviations(
    x: Tensor,
    weight: Tensor,
    gated: bool,
    before: Sequence[Preactivation],
    within: Sequence[Preactivation],
) -> Tensor:
    """Return Σ_k √V_k ξ_k over the terms in front of the product, then over those in W."""
    total: Tensor | float = 0.0
    variance, square = torch.zeros_like(x), weight.square()
    for p in before:
        added = added_variance(x, variance, p.operator, p.variance)
        total = total + deviation(_linear(added, square, None, gated)) * p.value
        variance = variance + added
    second, variance = x.square() + variance, torch.zeros_like(weight)
    for p in within:
        added = added_variance(weight, variance, p.operator, p.variance)
        total = total + deviation(_linear(second, added, None, gated)) * p.value
        variance = variance + added
    assert isinstance(total, Tensor)
    return total


def products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    on_x: Sequence[Acting],
    on_weight: Sequence[Acting],
) -> Tensor:
    """Return W x + b under noise for all steps, [T, ..., R]; arguments as in ``product``."""
    if not any(isinstance(p, Fresh) for p in on_weight):
        held = [
            p._replace(value=p.value[0]) if isinstance(p, Perturbation) else p for p in on_weight
        ]
        return product(x, weight, bias, on_x, held)
    time = len(x)
    at_x, at_weight = by_time(on_x, time), by_time(on_weight, time, weight)
    steps = zip(x.unbind(0), at_x, at_weight, strict=True)
    return torch.stack([product(one, weight, bias, here, there) for one, here, there in steps])


def by_time(acting: Sequence[Acting], time: int, weight: Tensor | None = None) -> list[list[Any]]:
    """Return what acts at each step; what is held appears at every step.

    Args:
        acting: noise of all steps.
        time: T.
        weight: the matrix, where the noise is in one. Noise that accumulates in it is made here,
            T matrices of it.
    """
    rows = []
    for one in acting:
        if isinstance(one, Fresh) and one.cumulative:
            assert weight is not None
            finals = [one.final(t, weight) for t in range(time)]
            running = finals[:1]
            for value in finals[1:]:
                running.append(running[-1] * value if one.operator == "*" else running[-1] + value)
            rows.append([Perturbation(one.operator, value) for value in running])
        elif isinstance(one, Fresh):
            rows.append([one._replace(seeds=one.seeds[t : t + 1]) for t in range(time)])
        else:
            values = one.value.expand(time, *one.value.shape[1:]).unbind(0)
            rows.append([one._replace(value=value) for value in values])
    return [[row[t] for row in rows] for t in range(time)]


def _may_regenerate() -> bool:
    """Return whether only ordinary differentiation looks on; transforms see plain operations."""
    return not (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


class _FreshProduct(torch.autograd.Function):
    """W̃ x with W̃ drawn from seeds in the forward pass, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, fresh: list[Fresh], *stds: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return x W̃ᵀ."""
        ctx.fresh = [p._replace(std=None) for p in fresh]
        ctx.save_for_backward(x, weight, *stds)
        return functional.linear(x, _chain(weight, _with_stds(ctx.fresh, stds))[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return gradients of x, W and the spreads; made of operations that can be differentiated.

        With w_k = w_{k-1} (1 + σ_k ξ_k) or w_{k-1} + σ_k ξ_k, gradients pass from w_K to w_0.
        """
        x, weight, *stds = ctx.saved_tensors
        fresh = _with_stds(ctx.fresh, stds)
        matrices = _chain(weight, fresh)
        grad_x = grad @ matrices[-1]
        passed = grad.flatten(0, -2).t() @ x.flatten(0, -2)
        grads: list[Tensor | None] = []
        for p, before in zip(reversed(fresh), reversed(matrices[:-1]), strict=True):
            if p.std is not None:
                of_std = passed * p.standard(0, weight)
                of_std = of_std * before if p.operator == "*" else of_std
                grads.append(of_std.sum_to_size(p.std.shape))
            else:
                grads.append(None)
            if p.operator == "*":
                passed = passed * p.final(0, weight)
        return grad_x, passed, None, *reversed(grads)


def _with_stds(fresh: Sequence[Fresh], stds: Sequence[Tensor | None]) -> list[Fresh]:
    return [p._replace(std=std) for p, std in zip(fresh, stds, strict=True)]


def _chain(weight: Tensor, fresh: Sequence[Fresh]) -> list[Tensor]:
    """Return the matrix before the first noise, and after each."""
    matrices = [weight]
    for p in fresh:
        value = p.final(0, weight).to(weight.dtype)
        matrices.append(matrices[-1] * value if p.operator == "*" else matrices[-1] + value)
    return matrices
