"""The definition: one step of each cell, and the plain loop over time.

Everything faster is tested against this file. It is differentiable any number of times and runs
under ``torch.func`` transforms. Noise comes in as data: each perturbation is a final factor or
offset, so nothing here is random.

Gates stand in torch's order: i, f, g, o for the LSTM, r, z, n for the GRU (the kind that resets
after the recurrent product).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from noisin.noise import Operator
from noisin.shapes import Bool, Float

State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """Parameters of one layer and direction, in torch's layout; G gates.

    Args:
        ih: [G·H, I].
        hh: [G·H, P], P the projected size, or H without a projection.
        bias_ih: [G·H] or None.
        bias_hh: [G·H] or None.
        hr: projection [P, H] or None.
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    hr: Tensor | None = None


class Perturbation(NamedTuple):
    """A final factor (operator ``*``) or offset (``+``): [T, B, F], or [1, B, F] if held."""

    operator: Operator
    value: Tensor


def perturb(x: Tensor, perturbations: Sequence[Perturbation]) -> Tensor:
    """Apply the perturbations from left to right."""
    for operator, value in perturbations:
        x = x * value if operator == "*" else x + value
    return x


def _elman(nonlinearity: Callable[[Tensor], Tensor]):
    def step(a: Tensor, h: Tensor, state: State, weights: Weights) -> State:
        """h_t = f(a_t + W_hh h_{t-1} + b_hh), with f the cell's nonlinearity."""
        return (nonlinearity(a + linear(h, weights.hh, weights.bias_hh)),)

    return step


def gru_step(a: Tensor, h: Tensor, state: State, weights: Weights) -> State:
    """r, z = σ(a + W h); n = tanh(a_n + r ⊙ (W_n h + b)); h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}."""
    a_r, a_z, a_n = a.chunk(3, -1)
    u_r, u_z, u_n = linear(h, weights.hh, weights.bias_hh).chunk(3, -1)
    update = torch.sigmoid(a_z + u_z)
    candidate = torch.tanh(a_n + torch.sigmoid(a_r + u_r) * u_n)
    return (candidate + update * (state[0] - candidate),)


def lstm_step(a: Tensor, h: Tensor, state: State, weights: Weights) -> State:
    """c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g); h_t = σ(o) ⊙ tanh(c_t), projected if asked."""
    i, f, g, o = (a + linear(h, weights.hh, weights.bias_hh)).chunk(4, -1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    return (hidden if weights.hr is None else linear(hidden, weights.hr), cell)


# step(a, h, state, weights) -> the new state, h first. ``a`` is W_ih x_t + b_ih, ``h`` is
# h_{t-1} on its way into W_hh (perturbed at `recurrent`), ``state`` is the clean state.
STEPS: dict[str, Callable[[Tensor, Tensor, State, Weights], State]] = {
    "RNN_TANH": _elman(torch.tanh),
    "RNN_RELU": _elman(torch.relu),
    "RNN_SIGMOID": _elman(torch.sigmoid),
    "GRU": gru_step,
    "LSTM": lstm_step,
}


def unroll(
    mode: str,
    x: Float[Tensor, "T B I"],
    state: State,
    weights: Weights,
    *,
    hidden: Sequence[Perturbation] = (),
    recurrent: Sequence[Perturbation] = (),
    valid: Bool[Tensor, "T B 1"] | None = None,
    reverse: bool = False,
) -> tuple[Float[Tensor, "T B P"], State]:
    """Run one layer in one direction over time.

    z_t = perturb(step(x_t, perturb(z_{t-1}, recurrent_t), …), hidden_t); the result at t and
    the h of the next step are both z_t. The cell state of an LSTM stays clean.

    Args:
        mode: key of ``STEPS``.
        x: input of the layer.
        state: (h_0,) or (h_0, c_0), each [B, P] or [B, H].
        weights: parameters of the layer and direction.
        hidden: perturbations of h_t.
        recurrent: perturbations of h_{t-1} on its way into W_hh.
        valid: which steps belong to a sequence; where False the state is kept and the output 0.
        reverse: run from the last step to the first.

    Returns:
        z [T, B, P], and the state after the last step, (z_T,) or (z_T, c_T).
    """
    step, size = STEPS[mode], x.shape[0]
    inputs = linear(x, weights.ih, weights.bias_ih).unbind(0)
    hidden_at = _by_time(hidden, size)
    recurrent_at = _by_time(recurrent, size)
    outputs: list[Tensor] = []
    for t in reversed(range(size)) if reverse else range(size):
        new = step(inputs[t], perturb(state[0], recurrent_at[t]), state, weights)
        new = (perturb(new[0], hidden_at[t]), *new[1:])
        if valid is None:
            outputs.append(new[0])
        else:
            outputs.append(torch.where(valid[t], new[0], 0))
            new = tuple(torch.where(valid[t], n, s) for n, s in zip(new, state, strict=True))
        state = new
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _by_time(perturbations: Sequence[Perturbation], size: int) -> list[list[Perturbation]]:
    """Return the perturbations of each step; held ones appear at every step."""
    values = [p.value.expand(size, -1, -1).unbind(0) for p in perturbations]
    return [
        [Perturbation(p.operator, value[t]) for p, value in zip(perturbations, values, strict=True)]
        for t in range(size)
    ]
