"""What a step computes besides its matrix products, as functions of Triton kernels.

Each has a twin in ``noisin.fused.eager``, which says what it computes in torch's operations.
Numbers are float32 here, whatever they are in memory. T·B·G·H may exceed 2³¹, B·G·H and the
numbers of a matrix may not.

Letters: T steps, B sequences, H units, P size of h, G gates. ``c`` is the ``Told`` of
``noisin.fused.triton_told``, ``t`` a step, and a tile what one program computes: sequences b
[BLOCK_B, 1], units u [1, BLOCK_H], and which of these pairs there are. A jit function has one
return statement, at its end: Triton compiles what stands behind a return in a branch.
"""

# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl


@triton.jit
def tile_of(c, width, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """Return the tile of this program in [B, width]."""
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    u = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    return b, u, (b < c.batch) & (u < width)


@triton.jit
def gate_of(c, tile, g):
    """Return the tile of gate g in [B, G·H]."""
    b, u, inside = tile
    return b, u + g * c.hidden, inside


@triton.jit
def at_step(c, x, t):
    """Return where step t of x lies, x of the replica that this program works for."""
    own = x.at + tl.program_id(2).to(tl.int64) * x.apart
    return own if x.held else own + tl.cast(t, tl.int64) * c.batch * x.width


@triton.jit
def before(c, x, first, t):
    """Return where x of the step before t lies, [B, width]; ``first`` before all steps."""
    last = t + 1 if c.reverse else t - 1
    begins = t == c.steps - 1 if c.reverse else t == 0
    return tl.where(begins, at_step(c, first, t), at_step(c, x, last))


@triton.jit
def read(at, width, tile):
    """Return a tile of [B, width] in its own dtype, and 0 outside."""
    b, u, inside = tile
    return tl.load(at + b * width + u, mask=inside, other=0.0)


@triton.jit
def load(c, x, t, tile):
    """Return a tile of step t of x."""
    return read(at_step(c, x, t), x.width, tile).to(tl.float32)


@triton.jit
def store(c, x, t, tile, value):
    """Write a tile of step t of x."""
    b, u, inside = tile
    tl.store(at_step(c, x, t) + b * x.width + u, value, mask=inside)


@triton.jit
def zeros(tile):
    """Return 0 for each pair of a tile."""
    return tl.full(tile[2].shape, 0.0, tl.float32)


@triton.jit
def perturbed(c, x, factor, offset, t, tile):
    """Return x ⊙ factor + offset."""
    if factor.at is not None:
        x *= load(c, factor, t, tile)
    if offset.at is not None:
        x += load(c, offset, t, tile)
    return x


@triton.jit
def _valid(c, t, tile):
    """Return which sequences have not ended, [BLOCK_B, 1]."""
    b, _, _ = tile
    return t < tl.load(at_step(c, c.lengths, t) + b, mask=b < c.batch, other=0)


@triton.jit
def _mixed(new, old, kept):
    """Return the old values where ``kept`` is 1 and the new ones where it is 0, exactly."""
    return tl.where(kept < 0.5, new + kept * (old - new), old - (1 - kept) * (old - new))


@triton.jit
def _sigmoid(x):
    """Return 1 / (1 + e^-x)."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def _tanh(x):
    """Return tanh x to a few ulp; for |x| < 0.625 by the polynomial of Cephes' tanhf."""
    size = tl.abs(x)
    near = tl.minimum(size, 0.625)
    square = near * near
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    e = tl.exp(-2 * size)
    y = tl.where(size < 0.625, p * square * near + near, (1 - e) / (1 + e))
    return tl.where(x < 0, -y, y)


# The way forward.


@triton.jit
def cell(c, t, tile, products):
    """Write the gates of step t and what they make of the cell; return h_t."""
    if c.mode == "LSTM":
        h = _lstm(c, t, tile, products)
    elif c.mode == "GRU":
        h = _gru(c, t, tile, products)
    else:
        h = _elman(c, t, tile, products)
    return h


@triton.jit
def _bias(c, x, u, end):
    return tl.load(at_step(c, x, 0) + u, mask=u < end, other=0.0).to(tl.float32)


@triton.jit
def _input(c, t, tile, g):
    """Return W_ih x_t and the bias of gate g."""
    of_gate = gate_of(c, tile, g)
    a = load(c, c.gates, t, of_gate)
    if c.bias.at is not None:
        a += _bias(c, c.bias, of_gate[1], (g + 1) * c.hidden)
    return a


@triton.jit
def _candidate(c, t, tile, value):
    return perturbed(c, value, c.candidate_factor, c.candidate_offset, t, tile)


@triton.jit
def _store_gates(c, x, t, tile, values):
    """Write a tile a gate to step t of x [T, B, G·H]."""
    for g in tl.static_range(len(values)):
        store(c, x, t, gate_of(c, tile, g), values[g])


@triton.jit
def _lstm(c, t, tile, products):
    i = _sigmoid(_input(c, t, tile, 0) + products[0])
    f = _sigmoid(_input(c, t, tile, 1) + products[1])
    g = _tanh(_input(c, t, tile, 2) + products[2])
    o = _sigmoid(_input(c, t, tile, 3) + products[3])
    old = read(before(c, c.cells, c.c0, t), c.hidden, tile)
    new = f * old + i * _candidate(c, t, tile, g)
    bounded = _tanh(new)
    h = o * bounded
    if c.cell_kept.at is not None:
        new = _mixed(new, old, load(c, c.cell_kept, t, tile))
    if c.lengths.at is not None:
        valid = _valid(c, t, tile)
        new, bounded = tl.where(valid, new, old), tl.where(valid, bounded, 0.0)
    _store_gates(c, c.gates, t, tile, (i, f, g, o))
    store(c, c.cells, t, tile, new)
    store(c, c.extra, t, tile, bounded)
    return h


@triton.jit
def _gru(c, t, tile, products):
    r = _sigmoid(_input(c, t, tile, 0) + products[0])
    z = _sigmoid(_input(c, t, tile, 1) + products[1])
    inner = products[2]
    if c.inner_bias.at is not None:
        inner += _bias(c, c.inner_bias, tile[1], c.hidden)
    n = _tanh(_input(c, t, tile, 2) + r * inner)
    new = _candidate(c, t, tile, n)
    _store_gates(c, c.gates, t, tile, (r, z, n))
    store(c, c.extra, t, tile, inner)
    return new + z * (read(before(c, c.states, c.h0, t), c.hidden, tile) - new)


@triton.jit
def _elman(c, t, tile, products):
    a = _input(c, t, tile, 0) + products[0]
    if c.mode == "RNN_TANH":
        h = _tanh(a)
    elif c.mode == "RNN_RELU":
        h = tl.where(a < 0, 0.0, a)  # NaN stays
    else:
        h = _sigmoid(a)
    store(c, c.gates, t, tile, h)
    return h


@triton.jit
def emit(c, t, tile, h):
    """Write z_t: h_t under the noise of ``hidden`` and zoneout."""
    z = perturbed(c, h, c.hidden_factor, c.hidden_offset, t, tile)
    last = before(c, c.states, c.h0, t)
    if c.hidden_kept.at is not None:
        z = _mixed(z, read(last, c.state, tile), load(c, c.hidden_kept, t, tile))
    out = z
    if c.lengths.at is not None:
        valid = _valid(c, t, tile)
        z, out = tl.where(valid, z, read(last, c.state, tile)), tl.where(valid, z, 0.0)
    store(c, c.states, t, tile, z)
    if c.out.at is not None:
        store(c, c.out, t, tile, out)


# The way back.


@triton.jit
def absorb(c, t, tile, arrived):
    """Return the gradients of h_t before noise, and of z_{t-1} past it, from that of z_t."""
    total = arrived
    if c.grad_out.at is not None:
        total += load(c, c.grad_out, t, tile)
    inside, skips = total, zeros(tile)
    if c.hidden_kept.at is not None:
        skips = load(c, c.hidden_kept, t, tile) * total
        inside = total - skips
    if c.hidden_factor.at is not None:
        inside *= load(c, c.hidden_factor, t, tile)
    if c.lengths.at is not None:
        valid = _valid(c, t, tile)
        total, inside = tl.where(valid, total, 0.0), tl.where(valid, inside, 0.0)
        skips = tl.where(valid, skips, arrived)
    if c.grad_states.at is not None:
        store(c, c.grad_states, t, tile, total)
    return inside, skips


@triton.jit
def cell_back(c, t, tile, dh):
    """Write the gradients of both products and of c_{t-1}, from that of h_t.

    Return what reaches z_{t-1} besides: through the update gate of a GRU.
    """
    through = zeros(tile)
    if c.mode == "LSTM":
        _lstm_back(c, t, tile, dh)
    elif c.mode == "GRU":
        through = _gru_back(c, t, tile, dh)
    else:
        _elman_back(c, t, tile, dh)
    return through


@triton.jit
def _gates(c, t, tile):
    values = ()
    for g in tl.static_range(c.gate_count):
        values += (load(c, c.gates, t, gate_of(c, tile, g)),)
    return values


@triton.jit
def _of_candidate(c, t, tile, grad, value):
    """Return the gradient before the candidate's tanh, from that behind its noise."""
    if c.candidate_factor.at is not None:
        grad *= load(c, c.candidate_factor, t, tile)
    return grad * (1 - value * value)


@triton.jit
def _within(c, t, tile, gradients):
    """Return gradients, and 0 behind the end of a sequence."""
    values = gradients
    if c.lengths.at is not None:
        valid, values = _valid(c, t, tile), ()
        for k in tl.static_range(len(gradients)):
            values += (tl.where(valid, gradients[k], 0.0),)
    return values


@triton.jit
def _lstm_back(c, t, tile, dh):
    i, f, g, o = _gates(c, t, tile)
    old = read(before(c, c.cells, c.c0, t), c.hidden, tile)
    bounded, arrived = load(c, c.extra, t, tile), load(c, c.grad_cell, t, tile)
    inside, skips = arrived, zeros(tile)
    if c.cell_kept.at is not None:
        skips = load(c, c.cell_kept, t, tile) * arrived
        inside = arrived - skips
    inside += dh * o * (1 - bounded * bounded)
    found = (
        inside * _candidate(c, t, tile, g) * i * (1 - i),
        inside * old * f * (1 - f),
        _of_candidate(c, t, tile, inside * i, g),
        dh * bounded * o * (1 - o),
    )
    _store_gates(c, c.grad_product, t, tile, _within(c, t, tile, found))
    carried = inside * f + skips
    if c.lengths.at is not None:
        carried = tl.where(_valid(c, t, tile), carried, arrived)
    store(c, c.grad_cell, t, tile, carried)
    if c.grad_cells.at is not None:
        store(c, c.grad_cells, t, tile, _within(c, t, tile, (arrived,))[0])


@triton.jit
def _gru_back(c, t, tile, dh):
    r, z, n = _gates(c, t, tile)
    old = read(before(c, c.states, c.h0, t), c.hidden, tile)
    inner = _of_candidate(c, t, tile, dh * (1 - z), n)
    reset = inner * load(c, c.extra, t, tile) * r * (1 - r)
    update = dh * (old - _candidate(c, t, tile, n)) * z * (1 - z)
    found = _within(c, t, tile, (reset, update, inner, inner * r, dh * z))
    reset, update, inner, product, through = found
    _store_gates(c, c.grad_gates, t, tile, (reset, update, inner))
    _store_gates(c, c.grad_product, t, tile, (reset, update, product))
    return through


@triton.jit
def _elman_back(c, t, tile, dh):
    h = load(c, c.gates, t, tile)
    if c.mode == "RNN_TANH":
        found = dh * (1 - h * h)
    elif c.mode == "RNN_RELU":
        found = tl.where(h <= 0, 0.0, dh)
    else:
        found = dh * h * (1 - h)
    _store_gates(c, c.grad_product, t, tile, _within(c, t, tile, (found,)))
