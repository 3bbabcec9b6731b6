"""The recurrence over moments: one step of each cell, and the loop over time.

What ``noisin.reference`` does to tensors happens here to mean and variance. Every number is taken
to be independent of all others: of the gates of one unit among each other, and of x_t and h_{t-1},
which share their past. The state that is carried is a mean and a variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from noisin import propagation
from noisin.fused import moment_call, squash
from noisin.fused import moments as fused
from noisin.product import Acting, Propagated, by_time
from noisin.propagated_product import (
    Matrix,
    Product,
    Values,
    multiply,
    multiply_all,
    noisy_product,
    perturbed,
)
from noisin.propagation import Form, Moments, exact, mean_of, mixed, product, total
from noisin.reference import Inside, Weights
from noisin.shapes import Bool
from noisin.tracing import untraced

State = tuple[Moments, ...]
Step = Callable[["Propagation", Moments, Moments, State, "Tensor | None", Sequence[Acting]], State]


@dataclass(frozen=True)
class Propagation:
    """How moments are propagated.

    Args:
        form: approximation of tanh and σ; see ``noisin.propagation``.
        own_variance: keep the variance that the input of a product has of itself. Without it
            only the noise at that product counts, V[a] = W² (V[ε] E[x]²), as Wang & Manning have
            it.
        recurrent_mean: what E[W_hh h_{t-1}] is multiplied with, and its variance is not. The
            equations have 1. The code that preceded the fast-dropout paper has (1 - p) / p in
            these terms: it scales the recurrent mean by the probability to drop.

    Raises:
        ValueError: an unknown form, or a mean that is no finite number.
        TypeError: ``own_variance`` is no truth value.

    Examples:
        >>> from noisin import RNN
        >>> layer = RNN(4, 8, noise="recurrent * Bernoulli(keep=0.8) @ moments")
        >>> layer.propagation = Propagation(form="closed")
    """

    form: Form = "mixture"
    own_variance: bool = True
    recurrent_mean: float = 1.0

    def __post_init__(self) -> None:
        propagation.checked_form(self.form)
        if not isinstance(self.own_variance, bool):
            raise TypeError(f"own_variance must be True or False, got {self.own_variance!r}")
        if not isinstance(self.recurrent_mean, Real) or not math.isfinite(self.recurrent_mean):
            raise ValueError(f"recurrent_mean must be a finite number, got {self.recurrent_mean!r}")

    def tanh(self, x: Moments) -> Moments:
        """Return the moments of tanh."""
        return squash.tanh(x, self.form)

    def sigmoid(self, x: Moments) -> Moments:
        """Return the moments of the logistic sigmoid."""
        return squash.sigmoid(x, self.form)

    def relu(self, x: Moments) -> Moments:
        """Return the moments of the rectifier."""
        return propagation.relu(x)


def _elman(name: str) -> Step:
    def step(how, a, u, state, hr, candidate) -> State:
        """h_t = f(a_t + u_t), with f the cell's nonlinearity."""
        return (getattr(how, name)(total(a, u)),)

    return step


def gru_step(how, a, u, state, hr, candidate) -> State:
    """r, z = σ(a + u); n = tanh(a_n + r ⊙ u_n); h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}."""
    (a_r, a_z, a_n), (u_r, u_z, u_n) = _gates(a, 3), _gates(u, 3)
    reset, update = how.sigmoid(total(a_r, u_r)), how.sigmoid(total(a_z, u_z))
    new = perturbed(how.tanh(total(a_n, product(reset, u_n))), candidate)
    return (mixed(update, state[0], new),)


def lstm_step(how, a, u, state, hr, candidate) -> State:
    """c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g); h_t = σ(o) ⊙ tanh(c_t), projected if asked."""
    i, f, g, o = _gates(total(a, u), 4)
    new = perturbed(how.tanh(g), candidate)
    cell = total(product(how.sigmoid(f), state[1]), product(how.sigmoid(i), new))
    hidden = product(how.sigmoid(o), how.tanh(cell))
    return (hidden if hr is None else propagation.linear(hidden, hr), cell)


STEPS: dict[str, Step] = {
    "RNN_TANH": _elman("tanh"),
    "RNN_RELU": _elman("relu"),
    "RNN_SIGMOID": _elman("sigmoid"),
    "GRU": gru_step,
    "LSTM": lstm_step,
}


def _gates(x: Moments, count: int) -> list[Moments]:
    pairs = zip(x.mean.chunk(count, -1), x.variance.chunk(count, -1), strict=True)
    return [Moments(*pair) for pair in pairs]


def unroll(
    mode: str,
    x: Values,
    state: State,
    weights: Weights,
    inside: Inside | None = None,
    *,
    valid: Bool[Tensor, "T B 1"] | None = None,
    reverse: bool = False,
    how: Propagation,
) -> tuple[Moments, State]:
    """Run one layer in one direction; as ``noisin.reference.unroll``, over moments.

    Zoneout's mask m is drawn: z_t ← m ⊙ z_{t-1} + (1 - m) ⊙ z_t.

    Args:
        mode: key of ``STEPS``.
        x: the input or its moments, [T, B, I].
        state: of h_0, for an LSTM of h_0 and c_0.
        weights: parameters of the layer and direction.
        inside: what acts here, by site.
        valid: which steps belong to a sequence; where False the state is kept and the output 0.
        reverse: run from the last step to the first.
        how: which approximations.

    Returns:
        The moments of z [T, B, P], and of the state after the last step.
    """
    inside, size = inside or {}, mean_of(x).shape[0]
    products = [
        noisy_product(
            weight,
            bias,
            inside.get(site, ()),
            inside.get(f"weight_{name}", ()),
            size,
            how.own_variance,
            scale,
        )
        for weight, bias, site, name, scale in (
            (weights.ih, weights.bias_ih, "input", "ih", 1.0),
            (weights.hh, weights.bias_hh, "recurrent", "hh", how.recurrent_mean),
        )
    ]
    walk = _loop if all(product.matrix is not None for product in products) else _unseen_loop
    loop = partial(walk, mode, weights.hr, inside, valid, reverse, how)
    given = None
    if valid is None and weights.hr is None and not any(map(inside.get, _MASKS)):
        given = _fused_call(mode, x, state, products, inside, reverse, how, loop)
    if given is None:
        return loop(x, state, *products)
    output, final = fused.run(*given)
    return Moments(*output), tuple(Moments(*one) for one in final)


_MASKS = ("zoneout_hidden", "zoneout_cell")


def _fused_call(
    mode: str,
    x: Values,
    state: State,
    products: Sequence[Product],
    inside: Inside,
    reverse: bool,
    how: Propagation,
    loop: Callable[..., tuple[Moments, State]],
) -> tuple[moment_call.Call, moment_call.Tensors] | None:
    """Return a call of the fused recurrence over moments, or None: it cannot serve."""
    of_x, of_h = products
    if of_x.matrix is None or of_h.matrix is None:
        return None
    of_input = x if isinstance(x, Moments) else (x, None)
    h, *cells = state
    c = cells[0] if cells else (None, None)
    given: Any = (*of_input, *of_x.matrix, of_x.bias, *of_h.matrix, of_h.bias, *h, *c)
    tensors = moment_call.Tensors(*given)

    def plain(given: moment_call.Tensors) -> tuple[Tensor, ...]:
        """Return the output and the final c."""
        first = of_x._replace(
            matrix=Matrix(given.ih, given.ih_square, given.ih_variance), bias=given.bias_ih
        )
        second = of_h._replace(
            matrix=Matrix(given.hh, given.hh_square, given.hh_variance), bias=given.bias_hh
        )
        seen = given.x if given.x_variance is None else Moments(given.x, given.x_variance)
        before = [Moments(given.h, given.h_variance)]
        if given.c is not None and given.c_variance is not None:
            before.append(Moments(given.c, given.c_variance))
        output, final = loop(seen, tuple(before), first, second)
        return (*output, *(one for cell in final[1:] for one in cell))

    sites = ("input", "recurrent", "candidate", "hidden")
    noise = {site: [_kept(one) for one in inside.get(site, ())] for site in sites}
    call = moment_call.Call(
        mode, reverse, how.form, how.own_variance, how.recurrent_mean, noise, plain
    )
    return (call, tensors) if moment_call.serves(call, tensors) else None


def _kept(one: Acting) -> Acting:
    """Return noise that stays what it is until the way back, whoever changes its tensor."""
    return one._replace(variance=one.variance.clone()) if isinstance(one, Propagated) else one


def _loop(
    mode: str,
    hr: Tensor | None,
    inside: Inside,
    valid: Tensor | None,
    reverse: bool,
    how: Propagation,
    x: Values,
    state: State,
    of_x: Product,
    of_h: Product,
) -> tuple[Moments, State]:
    """Run one layer in one direction by torch's operations."""
    step, inputs = STEPS[mode], _unbound(multiply_all(of_x, exact(x)))
    size = len(inputs)
    candidate, hidden, *kept = (
        by_time(inside.get(site, ()), size) for site in ("candidate", "hidden", *_MASKS)
    )
    outputs: list[Moments] = []
    for t in reversed(range(size)) if reverse else range(size):
        recurrent = multiply(of_h, t, state[0])
        new = step(how, inputs[t], recurrent, state, hr, candidate[t])
        new = (perturbed(new[0], hidden[t]), *new[1:])
        new = tuple(
            _between(masks[t][0].value, old, one) if masks[t] else one
            for one, old, masks in zip(new, state, kept, strict=False)
        )
        if valid is None:
            outputs.append(new[0])
        else:
            here = valid[t]
            outputs.append(Moments(*(torch.where(here, one, 0) for one in new[0])))
            new = tuple(
                Moments(*(torch.where(here, n, s) for n, s in zip(now, before, strict=True)))
                for now, before in zip(new, state, strict=True)
            )
        state = new
    outputs = outputs[::-1] if reverse else outputs
    return Moments(*map(torch.stack, zip(*outputs, strict=True))), state


_unseen_loop = untraced(_loop)  # of matrices drawn step by step, or each is compiled


def _unbound(x: Moments) -> list[Moments]:
    return [Moments(*row) for row in zip(x.mean.unbind(0), x.variance.unbind(0), strict=True)]


def _between(mask: Tensor, old: Moments, new: Moments) -> Moments:
    """Return the moments of m s + (1 - m) t for a given m."""
    variance = (1 - mask).square() * new.variance + mask.square() * old.variance
    return Moments(torch.lerp(new.mean, old.mean, mask), variance)
