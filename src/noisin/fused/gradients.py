"""Gradients that need no order of steps, from what arrived at each step on the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from noisin.fused.buffers import Buffers, Gradients, held, perturbed
from noisin.fused.given import Given
from noisin.fused.products import multiply
from noisin.fused.recurrent import Recurrent, Tied


def of_weights(
    given: Given, b: Buffers, grads: Gradients, product: Recurrent, wants: dict[str, bool]
) -> dict[str, Tensor | None]:
    """Return the gradients of the input, of the weights and of the noise that meets W_hh."""
    gates, found = grads.gates.flatten(0, 1), {}
    narrow = gates.to(given.x.dtype)
    if given.weight_ih is None:
        found["x"] = grads.gates
    else:
        if wants["x"]:
            found["x"] = multiply(narrow, given.weight_ih).view_as(given.x)
        if wants["weight_ih"]:
            found["weight_ih"] = multiply(narrow.t(), given.x.flatten(0, 1))
    if wants["bias_ih"] or wants["bias_hh"]:
        found["bias_ih"] = of_bias = gates.sum(0)
        same = grads.product is grads.gates
        found["bias_hh"] = of_bias.clone() if same else grads.product.flatten(0, 1).sum(0)
    names = ("weight_hh", "recurrent_factor", "recurrent_offset", "std")
    if any(wants[name] for name in names):
        of_noise = wants["recurrent_factor"] or wants["recurrent_offset"]
        plain = isinstance(product, Tied) and product.factor is None and product.offset is None
        if plain and len(gates) > given.weight_hh.shape[0]:
            found["weight_hh"] = _of_plain_product(b, grads.product, given.x.dtype)
        else:
            recurrent = product.gradients(_before(b), grads.product, of_noise)
            found |= dict(zip(names, vars(recurrent).values(), strict=True))
    return found


def _of_plain_product(b: Buffers, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of W_hh without a copy of the states, which are more than W_hh is."""
    grad = grad.to(dtype)
    first, rest, states = grad[0], grad[1:], b.states[:-1]
    if b.reverse:
        first, rest, states = grad[-1], grad[:-1], b.states[1:]
    found = multiply(rest.flatten(0, 1).t(), states.flatten(0, 1).to(dtype))
    return found.addmm_(first.t(), b.h0.to(dtype))


def _before(b: Buffers) -> Tensor:
    """Return z_{t-1} of all steps, [T, B, P]."""
    parts = (b.states[1:], b.h0[None]) if b.reverse else (b.h0[None], b.states[:-1])
    return torch.cat(parts)


def of_noise(given: Given, b: Buffers, grads: Gradients) -> dict[str, Tensor | None]:
    """Return the gradients of W_hr and of the noise inside, from what arrived at z_t and c_t."""
    assert grads.states is not None
    arrived = grads.states if b.hidden_kept is None else grads.states * (1 - b.hidden_kept)
    before = _before(b)
    if b.mode == "LSTM":
        inner = b.gates.chunk(4, -1)[3] * b.extra
    elif b.mode == "GRU":
        _, z, n = b.gates.chunk(3, -1)
        new = perturbed(n, b.candidate_factor, b.candidate_offset)
        inner = new + z * (before - new)
    else:
        inner = b.gates
    raw, found = inner, {}
    of_raw = arrived if b.hidden_factor is None else arrived * b.hidden_factor
    of_inner = of_raw
    if given.weight_hr is not None:
        hr = given.weight_hr.to(inner.dtype)
        raw, of_inner = inner @ hr.t(), of_raw @ hr
        found["weight_hr"] = multiply(of_raw.flatten(0, 1).t(), inner.flatten(0, 1))
    found["hidden_factor"] = held(arrived * raw, b.hidden_factor)
    found["hidden_offset"] = held(arrived, b.hidden_offset)
    if b.hidden_kept is not None:
        emitted = perturbed(raw, b.hidden_factor, b.hidden_offset)
        found["hidden_kept"] = held(grads.states * (before - emitted), b.hidden_kept)
    if b.mode == "LSTM" and grads.cells is not None:
        found |= _of_cell(b, grads.cells, of_inner)
    if b.mode == "GRU":
        of_new = of_inner * (1 - b.gates.chunk(3, -1)[1])
        found["candidate_factor"] = held(of_new * b.gates.chunk(3, -1)[2], b.candidate_factor)
        found["candidate_offset"] = held(of_new, b.candidate_offset)
    return found


def _of_cell(b: Buffers, arrived: Tensor, of_inner: Tensor) -> dict[str, Tensor | None]:
    """Return the gradients of the noise in an LSTM's candidate and of its zoneout of c_t."""
    i, f, g, o = b.gates.chunk(4, -1)
    inside = arrived if b.cell_kept is None else arrived * (1 - b.cell_kept)
    of_new = (inside + of_inner * o * (1 - b.extra**2)) * i
    found = {
        "candidate_factor": held(of_new * g, b.candidate_factor),
        "candidate_offset": held(of_new, b.candidate_offset),
    }
    if b.cell_kept is not None:
        parts = (b.cells[1:], b.c0[None]) if b.reverse else (b.c0[None], b.cells[:-1])
        before = torch.cat(parts)
        new = f * before + i * perturbed(g, b.candidate_factor, b.candidate_offset)
        found["cell_kept"] = held(arrived * (before - new), b.cell_kept)
    return found
