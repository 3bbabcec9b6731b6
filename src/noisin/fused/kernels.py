"""The recurrence as Triton kernels, forward and back.

Four kernels are a step without its matrix products. Five also take the products, so that a step
without a projection is one launch each way. A launch changes nothing that another program of it
reads: what passes from unit to unit, z_t and the gradients of the products, lies in memory of its
own for each step. Two more take all steps in one launch, whose programs wait for each other where
the others end a launch.

A matrix keeps its dtype, what it is multiplied with is rounded to that, and sums are float32. For
letters, and for what ``c``, ``t`` and a tile are, see ``noisin.fused.triton_cells``.
"""

# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl

from noisin.fused.triton_cells import (
    absorb,
    at_step,
    before,
    cell,
    cell_back,
    emit,
    gate_of,
    load,
    perturbed,
    read,
    store,
    tile_of,
    zeros,
)


@triton.jit
def _dot(c, x, matrix, total):
    return tl.dot(x.to(matrix.dtype), matrix, total, input_precision=c.precision)


@triton.jit
def _seen(c, t, z, tile):
    return perturbed(c, z, c.recurrent_factor, c.recurrent_offset, t, tile)


@triton.jit
def _products(c, t, tile, BLOCK_K: tl.constexpr):
    """Return W_hh z_{t-1} of each gate, z_{t-1} under the noise of ``recurrent``."""
    b, u, _ = tile
    last = before(c, c.states, c.h0, t)
    totals = ()
    for _ in tl.static_range(c.gate_count):
        totals += (zeros(tile),)
    for start in range(0, c.state, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        along, down = k[None, :], k[:, None]
        known = (b < c.batch) & (along < c.state)
        z = read(last, c.state, (b, along, known))
        seen = ()
        for n in tl.static_range(c.draws):
            seen += (_seen(c, t, z, (b, along + n * c.state, known)),)
        known = (u < c.hidden) & (down < c.state)
        sums = ()
        for g in tl.static_range(c.gate_count):
            matrix = read(at_step(c, c.weight, t), c.state, (u + g * c.hidden, down, known))
            sums += (_dot(c, seen[g if c.draws > 1 else 0], matrix, totals[g]),)
        totals = sums
    return totals


@triton.jit
def _along(c, x, t, matrix, tile, BLOCK_K: tl.constexpr):
    """Return Σ_k x[b, k] matrix[u, k]."""
    b, u, _ = tile
    total = zeros(tile)
    for start in range(0, x.width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        along, down = k[None, :], k[:, None]
        left = load(c, x, t, (b, along, (b < c.batch) & (along < x.width)))
        known = (u < c.state) & (down < x.width)
        total = _dot(c, left, read(at_step(c, matrix, t), matrix.width, (u, down, known)), total)
    return total


@triton.jit
def _down(c, x, t, matrix, tile, first, last, BLOCK_K: tl.constexpr):
    """Return Σ_k x[b, k] matrix[k, u] over k from ``first`` to ``last``."""
    b, u, _ = tile
    total = zeros(tile)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        along, down = k[None, :], k[:, None]
        left = load(c, x, t, (b, along, (b < c.batch) & (along < last)))
        known = (u < matrix.width) & (down < last)
        total = _dot(c, left, read(at_step(c, matrix, t), matrix.width, (down, u, known)), total)
    return total


@triton.jit
def _sent(c, t, tile, BLOCK_K: tl.constexpr):
    """Return what step t sends back to z_{t-1}: Σ_g factor_g ⊙ W_gᵀ dproduct_g."""
    b, u, inside = tile
    rows: tl.constexpr = c.gate_count * c.hidden // c.draws
    total = zeros(tile)
    for n in range(c.draws):
        part = _down(c, c.grad_product, t, c.weight, tile, n * rows, (n + 1) * rows, BLOCK_K)
        if c.recurrent_factor.at is not None:
            part *= load(c, c.recurrent_factor, t, (b, u + n * c.state, inside))
        total += part
    return total


# A step without its products.


@triton.jit(do_not_specialize=["t"], do_not_specialize_on_alignment=["product"])
def forward(c, t, product, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """From W_hh h_{t-1} to h_t before a projection."""
    tile = tile_of(c, c.hidden, BLOCK_B, BLOCK_H)
    products = ()
    for g in tl.static_range(c.gate_count):
        products += (read(product, c.gates.width, gate_of(c, tile, g)).to(tl.float32),)
    store(c, c.inner, t, tile, cell(c, t, tile, products))


@triton.jit(do_not_specialize=["t"])
def emit_state(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """z_t: h_t under the noise of ``hidden`` and zoneout."""
    tile = tile_of(c, c.state, BLOCK_B, BLOCK_H)
    emit(c, t, tile, load(c, c.raw, t, tile))


@triton.jit(do_not_specialize=["t"])
def absorb_state(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """The gradient of h_t before noise from what arrives at z_t."""
    tile = tile_of(c, c.state, BLOCK_B, BLOCK_H)
    inside, skips = absorb(c, t, tile, load(c, c.grad_state, t, tile))
    store(c, c.grad_raw, t, tile, inside)
    store(c, c.grad_state, t, tile, skips)


@triton.jit(do_not_specialize=["t"])
def backward(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """The gradients of both products from that of h_t before a projection."""
    tile = tile_of(c, c.hidden, BLOCK_B, BLOCK_H)
    through = cell_back(c, t, tile, load(c, c.grad_inner, t, tile))
    if c.mode == "GRU":
        store(c, c.grad_state, t, tile, load(c, c.grad_state, t, tile) + through)


# A step with its products.


@triton.jit(do_not_specialize=["t"])
def step(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """From z_{t-1} to z_t, or to h_t before a projection."""
    tile = tile_of(c, c.hidden, BLOCK_B, BLOCK_H)
    h = cell(c, t, tile, _products(c, t, tile, BLOCK_K))
    if c.projection.at is None:
        emit(c, t, tile, h)
    else:
        store(c, c.inner, t, tile, h)


@triton.jit(do_not_specialize=["t"])
def project(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """From h_t before the projection to z_t."""
    tile = tile_of(c, c.state, BLOCK_B, BLOCK_H)
    emit(c, t, tile, _along(c, c.inner, t, c.projection, tile, BLOCK_K))


@triton.jit(do_not_specialize=["t"])
def step_back(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """From the gradients of the next step's products to those of step t, or of W_hr h_t."""
    tile = tile_of(c, c.state, BLOCK_B, BLOCK_H)
    arrived = load(c, c.grad_state, t, tile)
    ends = t == 0 if c.reverse else t == c.steps - 1
    if not ends:
        arrived += _sent(c, t - 1 if c.reverse else t + 1, tile, BLOCK_K)
    inside, skips = absorb(c, t, tile, arrived)
    if c.projection.at is None:
        skips += cell_back(c, t, tile, inside)
    else:
        store(c, c.grad_raw, t, tile, inside)
    store(c, c.grad_state, t, tile, skips)


@triton.jit(do_not_specialize=["t"])
def project_back(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """From the gradient of W_hr h_t to those of the products of step t; no GRU has W_hr."""
    tile = tile_of(c, c.hidden, BLOCK_B, BLOCK_H)
    cell_back(c, t, tile, _down(c, c.grad_raw, t, c.projection, tile, 0, c.state, BLOCK_K))


@triton.jit(do_not_specialize=["t"])
def send_back(c, t, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """The gradient of z_{t-1} from that of the products of step t."""
    tile = tile_of(c, c.state, BLOCK_B, BLOCK_H)
    total = load(c, c.grad_state, t, tile) + _sent(c, t, tile, BLOCK_K)
    store(c, c.grad_state, t, tile, total)


# All steps.


@triton.jit
def _meet(arrived, meeting):
    """Wait until all programs of a replica have come here.

    What they wrote before can be read behind it. All of them must run at once, or none goes on.

    Args:
        arrived: how many have come, of all meetings; 0 at the launch; one number a replica.
        meeting: the how many-th it is, from 1.
    """
    count = arrived + tl.program_id(2)
    expected = meeting * tl.num_programs(0) * tl.num_programs(1)
    tl.debug_barrier()  # all threads of this program have written
    tl.atomic_add(count, 1, sem="release", scope="gpu")
    while tl.atomic_add(count, 0, sem="acquire", scope="gpu") < expected:
        pass
    tl.debug_barrier()  # none of them reads too early


@triton.jit(do_not_specialize_on_alignment=["arrived"])
def all_steps(c, arrived, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """``step``, and ``project`` if there is a projection, for one t after the other."""
    phases: tl.constexpr = 1 if c.projection.at is None else 2
    k = 0
    while k < c.steps:  # not ``for``: interpreters before Triton 3.7 have no range of what is given
        t = c.steps - 1 - k if c.reverse else k
        step(c, t, BLOCK_B, BLOCK_H, BLOCK_K)
        _meet(arrived, phases * k + 1)
        if c.projection.at is not None:
            project(c, t, BLOCK_B, BLOCK_H, BLOCK_K)
            _meet(arrived, phases * k + 2)
        k += 1


@triton.jit(do_not_specialize_on_alignment=["arrived"])
def all_steps_back(c, arrived, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """``step_back`` and ``project_back`` likewise, and ``send_back`` at the end."""
    phases: tl.constexpr = 1 if c.projection.at is None else 2
    k = 0
    while k < c.steps:  # not ``for``: interpreters before Triton 3.7 have no range of what is given
        t = k if c.reverse else c.steps - 1 - k
        step_back(c, t, BLOCK_B, BLOCK_H, BLOCK_K)
        _meet(arrived, phases * k + 1)
        if c.projection.at is not None:
            project_back(c, t, BLOCK_B, BLOCK_H, BLOCK_K)
            _meet(arrived, phases * k + 2)
        k += 1
    send_back(c, c.steps - 1 if c.reverse else 0, BLOCK_B, BLOCK_H, BLOCK_K)
