"""The definition: one layer, one direction, against per-step formulas; and its derivatives."""

import pytest
import torch

from cases import pulled_back, seeded
from conftest import (
    assert_bit_equal,
    assert_close_to_float64,
    assert_gradients,
    assert_second_gradients,
)
from noisin.product import Perturbation, perturb
from noisin.reference import Weights, unroll
from plain import cell

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1, "RNN_SIGMOID": 1}
MODES = list(GATES)
T, B, F, H = 4, 3, 2, 3


def made(mode, dtype=torch.float32, bias=True, proj=0, batch=B, time=T):
    """Return leaves: x, state, five weights, and a factor and an offset at either site."""
    g, p = GATES[mode] * H, proj or H
    sizes = [(time, batch, F), (batch, p)] + [(batch, H)] * (mode == "LSTM")
    sizes += [(g, F), (g, p)] + [(g,), (g,)] * bias + [(proj, H)] * bool(proj)
    sizes += [(time, batch, p), (1, batch, p)] * 2
    tensors = [seeded(*size, seed=i, dtype=dtype).mul_(0.7) for i, size in enumerate(sizes)]
    return [t.requires_grad_() for t in tensors]


def split(mode, leaves, bias, proj):
    """Name the leaves: x, state, weights (None where absent), noise by site."""
    x, *rest = leaves
    count = 2 if mode == "LSTM" else 1
    state, rest = tuple(rest[:count]), rest[count:]
    weights, noise = rest[:-4], rest[-4:]
    ih, hh, *more = weights
    biases, more = (more[:2], more[2:]) if bias else ([None, None], more)
    named = Weights(ih, hh, *biases, more[0] if proj else None)
    signs = [Perturbation(sign, value) for sign, value in zip("*+*+", noise, strict=True)]
    return x, state, named, {"hidden": signs[:2], "recurrent": signs[2:]}


def ours(mode, leaves, bias=True, proj=0, **kwargs):
    x, state, weights, noise = split(mode, leaves, bias, proj)
    z, final = unroll(mode, x, state, weights, noise, **kwargs)
    return (z, *final)


def by_steps(mode, leaves, bias=True, proj=0, reverse=False, valid=None):
    """Run step by step; where a step is not valid the state stays and 0 is shown."""
    x, state, weights, noise = split(mode, leaves, bias, proj)

    def apply(site, t, h):
        for sign, value, _ in noise[site]:
            now = value[t] if len(value) > 1 else value[0]
            h = h * now if sign == "*" else h + now
        return h

    h, c = state[0], state[1] if len(state) > 1 else torch.zeros_like(state[0])
    shown = [None] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        new, cell_state = cell(mode, weights, x[t], apply("recurrent", t, h), h, c)
        new = apply("hidden", t, new)
        here = torch.ones(x.shape[1], 1, dtype=torch.bool) if valid is None else valid[t]
        shown[t] = torch.where(here, new, 0)
        h, c = torch.where(here, new, h), torch.where(here, cell_state, c)
    return (torch.stack(shown), h, c)[: 1 + len(state)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_unroll_is_the_recurrence_step_by_step(mode, reverse, bias, masked):
    # a sequence of length 3, a whole one, one of length 1
    ends = torch.arange(T)[:, None, None] < torch.tensor([3, T, 1])[:, None]
    options = {"bias": bias, "reverse": reverse, "valid": ends if masked else None}
    for proj in (0, 2) if mode == "LSTM" else (0,):
        results = []
        for run, dtype in (
            (ours, torch.float32),
            (by_steps, torch.float32),
            (by_steps, torch.float64),
        ):
            leaves = made(mode, torch.float32, bias, proj)
            leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
            results.append(pulled_back(run(mode, leaves, proj=proj, **options), leaves))
        assert_close_to_float64(*results)


def test_perturb_goes_from_left_to_right():
    x, factor, offset = seeded(B, H), seeded(B, H, seed=1), seeded(B, H, seed=2)
    times, plus = Perturbation("*", factor), Perturbation("+", offset)
    assert_bit_equal(perturb(x, [times, plus]), x * factor + offset)
    assert_bit_equal(perturb(x, [plus, times]), (x + offset) * factor)
    assert_bit_equal(perturb(x, []), x)


@pytest.mark.parametrize("mode", MODES)
def test_all_gradients_are_central_differences(mode):
    leaves = made(mode, torch.float64, proj=2 if mode == "LSTM" else 0, time=2, batch=2)
    proj = 2 if mode == "LSTM" else 0
    assert_gradients(lambda *leaves: ours(mode, leaves, proj=proj), leaves)


def test_second_derivatives_are_central_differences():
    leaves = made("LSTM", torch.float64, time=2, batch=1)
    assert len(leaves) == 11
    assert_second_gradients(lambda *leaves: ours("LSTM", leaves), leaves)


@pytest.mark.parametrize("mode", MODES)
def test_vmap_gives_the_gradient_of_each_sample(mode):
    leaves = [leaf.detach() for leaf in made(mode, torch.float32, batch=1)]
    x, others = leaves[0], leaves[1:]
    samples = torch.stack([seeded(T, 1, F, seed=20 + k) for k in range(4)])

    def loss(leaves):
        return sum((r**2).sum() for r in ours(mode, leaves))

    mapped = torch.func.vmap(lambda x: torch.func.grad(loss)([x, *others]))(samples)
    assert len(mapped) == len(leaves)
    results = []
    for dtype in (torch.float32, torch.float64):
        each = []
        for x in samples:
            wide = [leaf.to(dtype).requires_grad_() for leaf in (x, *others)]
            each.append(torch.autograd.grad(sum((r**2).sum() for r in by_steps(mode, wide)), wide))
        results.append([torch.stack(parts) for parts in zip(*each, strict=True)])
    assert_close_to_float64(mapped, *results)


@pytest.mark.parametrize("mode", MODES)
def test_forward_mode_is_the_derivative_in_a_direction(mode):
    """Forward mode, against reverse mode through the per-step formulas: J v by double backward."""
    leaves = [leaf.detach() for leaf in made(mode)]
    direction = [seeded(*leaf.shape, seed=40 + i) for i, leaf in enumerate(leaves)]
    _, pushed = torch.func.jvp(lambda *leaves: ours(mode, leaves), tuple(leaves), tuple(direction))
    others = []
    for dtype in (torch.float32, torch.float64):
        wide = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        results = by_steps(mode, wide)
        pulls = [torch.zeros_like(r, requires_grad=True) for r in results]
        grads = torch.autograd.grad(results, wide, pulls, create_graph=True)
        along = [d.to(dtype) for d in direction]
        others.append(torch.autograd.grad(grads, pulls, along))
    assert_close_to_float64(pushed, *others)
