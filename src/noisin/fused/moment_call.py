"""What a call of the compiled recurrence over moments is, and whether it can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from noisin.fused import compiled
from noisin.product import Acting, Propagated

Pair = tuple[Tensor, Tensor]
_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_SIGMOID": 1}


class Added(NamedTuple):
    """Noise of mean 0 in a number t: V[t] becomes own V[t] + square E[t]² + plain.

    Args:
        own: [F].
        square: [F].
        plain: [F].
    """

    own: Tensor
    square: Tensor
    plain: Tensor

    def at(self, mean: Tensor, variance: Tensor | None) -> Tensor:
        """Return the variance under the noise; None stands for 0."""
        found = self.plain + self.square * mean.square()
        return found if variance is None else found.addcmul(self.own, variance)


class Tensors(NamedTuple):
    """What gradients may be asked of; F features come in, H is the hidden size, G gates.

    Args:
        x: E[x] [T, B, F].
        x_variance: V[x], or None: 0.
        ih: E[W_ih] [G·H, F].
        ih_square: E[W_ih²].
        ih_variance: V[W_ih], or None: 0.
        bias_ih: [G·H] or None.
        hh: E[W_hh] [G·H, H].
        hh_square: E[W_hh²].
        hh_variance: V[W_hh], or None: 0.
        bias_hh: [G·H] or None.
        h: E[h_0] [B, H].
        h_variance: V[h_0].
        c: E[c_0] of an LSTM, or None.
        c_variance: V[c_0].
    """

    x: Tensor
    x_variance: Tensor | None
    ih: Tensor
    ih_square: Tensor
    ih_variance: Tensor | None
    bias_ih: Tensor | None
    hh: Tensor
    hh_square: Tensor
    hh_variance: Tensor | None
    bias_hh: Tensor | None
    h: Tensor
    h_variance: Tensor
    c: Tensor | None
    c_variance: Tensor | None


@dataclass(frozen=True)
class Call:
    """What a call is besides its tensors.

    Args:
        mode: key of ``noisin.propagated.STEPS``.
        reverse: whether the last step comes first.
        form: of tanh and σ.
        own_variance: whether products see the variance of what they multiply.
        scale: of the mean that the recurrent product sees.
        noise: what acts, by site: ``input``, ``recurrent``, ``candidate``, ``hidden``.
        plain: the same call by torch's operations, for gradients of gradients.
    """

    mode: str
    reverse: bool
    form: str
    own_variance: bool
    scale: float
    noise: Mapping[str, Sequence[Acting]]
    plain: Callable[[Tensors], tuple[Tensor, ...]]

    def added(self, site: str, like: Tensor) -> Added | None:
        """Return what acts at a site, put together, or None: nothing does."""
        seen_by_product = site in ("input", "recurrent")
        keep = 1.0 if self.own_variance or not seen_by_product else 0.0
        if not self.noise[site] and keep:
            return None
        own, square, plain = (like.new_full((like.shape[-1],), start) for start in (keep, 0, 0))
        for one in self.noise[site]:
            assert isinstance(one, Propagated)
            variance = one.variance.to(like.dtype).flatten()
            if one.operator == "*":  # V[t (1 + ε)] = V[t] + V[ε] (E[t]² + V[t])
                own, plain = own * (1 + variance), plain * (1 + variance)
                square = square * (1 + variance) + variance
            else:
                plain = plain + variance
        return Added(own, square, plain)

    def steps(self, time: int) -> range:
        """The steps in the order of the recurrence."""
        return range(time)[::-1] if self.reverse else range(time)


def serves(call: Call, tensors: Tensors) -> bool:
    """Return whether the compiled recurrence over moments can run a call."""
    present = [one for one in tensors if one is not None]
    acting = [one for site in call.noise.values() for one in site]
    width = {"input": tensors.x.shape[-1]}
    return (
        call.mode in _GATES
        and tensors.x.numel() > 0
        and _alike(tensors)
        and compiled.sees(*present)
        and all(isinstance(one, Propagated) and not one.variance.requires_grad for one in acting)
        and all(
            one.variance.numel() in (1, width.get(site, tensors.h.shape[-1]))  # pyright: ignore
            for site, those in call.noise.items()
            for one in those
        )
    )


def _alike(given: Tensors) -> bool:
    """Return whether all sizes are what C takes them to be; else torch's operations say more."""
    batch, wide = given.x.shape[1], given.hh.shape[0]
    state = (batch, given.hh.shape[1])
    pairs = (
        (given.x_variance, given.x.shape),
        *((one, state) for one in (given.h, given.h_variance, given.c, given.c_variance)),
        *((one, (wide,)) for one in (given.bias_ih, given.bias_hh)),
        (given.ih, (wide, given.x.shape[-1])),
        *((one, given.ih.shape) for one in (given.ih_square, given.ih_variance)),
        *((one, given.hh.shape) for one in (given.hh_square, given.hh_variance)),
    )
    return all(one is None or one.shape == torch.Size(size) for one, size in pairs)
