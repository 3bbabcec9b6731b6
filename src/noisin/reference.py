"""The definition: one step of each cell, and the plain loop over time.

Everything faster is tested against this file. It is differentiable any number of times and runs
under ``torch.func`` transforms. Noise comes in as data (see ``noisin.product``), so nothing here
is random.

Gates stand in torch's order: i, f, g, o for the LSTM, r, z, n for the GRU (the kind that resets
after the recurrent product).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from noisin.product import (
    Acting,
    Perturbation,
    by_time,
    multiply,
    multiply_all,
    noisy_product,
    perturb,
)
from noisin.shapes import Bool, Float

State = tuple[Tensor, ...]
Inside = Mapping[str, Sequence[Acting]]


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


Candidate = Sequence[Perturbation]
Step = Callable[[Tensor, Tensor, State, "Tensor | None", Candidate], State]


def _elman(nonlinearity: Callable[[Tensor], Tensor]) -> Step:
    def step(a: Tensor, u: Tensor, state: State, hr: Tensor | None, candidate: Candidate) -> State:
        """h_t = f(a_t + u_t), with f the cell's nonlinearity."""
        return (nonlinearity(a + u),)

    return step


def gru_step(a: Tensor, u: Tensor, state: State, hr: Tensor | None, candidate: Candidate) -> State:
    """r, z = σ(a + u); n = tanh(a_n + r ⊙ u_n); h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}."""
    a_r, a_z, a_n = a.chunk(3, -1)
    u_r, u_z, u_n = u.chunk(3, -1)
    update = torch.sigmoid(a_z + u_z)
    new = perturb(torch.tanh(a_n + torch.sigmoid(a_r + u_r) * u_n), candidate)
    return (new + update * (state[0] - new),)


def lstm_step(a: Tensor, u: Tensor, state: State, hr: Tensor | None, candidate: Candidate) -> State:
    """c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g); h_t = σ(o) ⊙ tanh(c_t), projected if asked."""
    i, f, g, o = (a + u).chunk(4, -1)
    new = perturb(torch.tanh(g), candidate)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * new
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    return (hidden if hr is None else linear(hidden, hr), cell)


# step(a, u, state, hr, candidate) -> the new state, h first. a = W_ih x_t + b_ih and
# u = W_hh h_{t-1} + b_hh come with their noise; ``state`` is clean of it.
STEPS: dict[str, Step] = {
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
    inside: Inside | None = None,
    *,
    valid: Bool[Tensor, "T B 1"] | None = None,
    reverse: bool = False,
) -> tuple[Float[Tensor, "T B P"], State]:
    """Run one layer in one direction over time.

    a_t = W_ih x_t + b_ih under the noise of ``input`` and ``weight_ih``, u_t = W_hh z_{t-1} + b_hh
    under that of ``recurrent`` and ``weight_hh``, h_t = step(a_t, u_t, …) with g_t or n_t
    perturbed by ``candidate``, and z_t = perturb(h_t, hidden_t). The result at t and the h of the
    next step are both z_t. With zoneout, z_t ← m ⊙ z_{t-1} + (1 - m) ⊙ z_t, and the same for c_t;
    otherwise the cell state stays clean.

    Args:
        mode: key of ``STEPS``.
        x: input of the layer.
        state: (h_0,) or (h_0, c_0), each [B, P] or [B, H].
        weights: parameters of the layer and direction.
        inside: what acts here, by site: ``input``, ``weight_ih``, ``recurrent``, ``weight_hh``,
            ``candidate``, ``hidden``, and the masks of ``zoneout_hidden`` and ``zoneout_cell``.
        valid: which steps belong to a sequence; where False the state is kept and the output 0.
        reverse: run from the last step to the first.

    Returns:
        z [T, B, P], and the state after the last step, (z_T,) or (z_T, c_T).
    """
    step, size, inside = STEPS[mode], x.shape[0], inside or {}
    on_x, on_weight = inside.get("input", ()), inside.get("weight_ih", ())
    inputs = multiply_all(weights.ih, weights.bias_ih, on_x, on_weight, x).unbind(0)
    on_h, on_weight = inside.get("recurrent", ()), inside.get("weight_hh", ())
    recurrent = noisy_product(weights.hh, weights.bias_hh, on_h, on_weight, size)
    candidate, hidden, *kept = (
        by_time(inside.get(site, ()), size)
        for site in ("candidate", "hidden", "zoneout_hidden", "zoneout_cell")
    )
    outputs: list[Tensor] = []
    for t in reversed(range(size)) if reverse else range(size):
        new = step(inputs[t], multiply(recurrent, t, state[0]), state, weights.hr, candidate[t])
        new = (perturb(new[0], hidden[t]), *new[1:])
        new = tuple(
            torch.lerp(one, old, masks[t][0].value) if masks[t] else one
            for one, old, masks in zip(new, state, kept, strict=False)
        )
        if valid is None:
            outputs.append(new[0])
        else:
            outputs.append(torch.where(valid[t], new[0], 0))
            new = tuple(torch.where(valid[t], n, s) for n, s in zip(new, state, strict=True))
        state = new
    return torch.stack(outputs[::-1] if reverse else outputs), state
