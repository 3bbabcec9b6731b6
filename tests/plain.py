"""The recurrences written out from the specification: one sequence, one step, one term at a time.

Nothing here comes from noisin but the names of terms, so that agreement means something. What
stands in draws, and products with weights under noise, are in plain_weights.py.
"""

import torch

from plain_weights import perturbed, product, written_out


def cell(mode, weights, x, seen, h, c):
    """Return h_t and c_t, gates in torch's order.

    Args:
        mode: torch's name of the cell, or RNN_SIGMOID.
        weights: W_ih, W_hh, b_ih, b_hh, W_hr, None where there is none.
        x: x_t [..., I].
        seen: h_{t-1} as the recurrent weights see it.
        h: h_{t-1} as everything else sees it (z ⊙ h of a GRU).
        c: c_{t-1} of an LSTM.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    a = x @ w_ih.T + (0 if b_ih is None else b_ih)
    r = seen @ w_hh.T + (0 if b_hh is None else b_hh)
    return gated(mode, a, r, h, c, w_hr)


def gated(mode, a, r, h, c, w_hr, candidate=lambda tensor: tensor):
    """Return h_t and c_t from both products a and r; ``candidate`` perturbs g_t or n_t."""
    if mode == "LSTM":
        i, f, g, o = (a + r).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * candidate(torch.tanh(g))
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if w_hr is None else h @ w_hr.T), c
    if mode == "GRU":
        (a_r, a_z, a_n), (r_r, r_z, r_n) = a.chunk(3, -1), r.chunk(3, -1)
        reset, update = torch.sigmoid(a_r + r_r), torch.sigmoid(a_z + r_z)
        n = candidate(torch.tanh(a_n + reset * r_n))
        return (1 - update) * n + update * h, c
    nonlinearity = {"RNN_TANH": torch.tanh, "RNN_RELU": torch.relu, "RNN_SIGMOID": torch.sigmoid}
    return nonlinearity[mode](a + r), c


GATES = {"LSTM": 4, "GRU": 3}  # blocks of rows; 1 for an RNN


def mode_of(layer):
    """Return torch's name of the cell; the nonlinearity may be ours."""
    return f"RNN_{layer.nonlinearity.upper()}" if layer.mode.startswith("RNN") else layer.mode


def parameters(layer, name, params):
    """Return the five weights of a layer and direction, e.g. of ``l0_reverse``."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return [params.get(f"{one}_{name}") for one in names]


def plain(layer, x, hx, draws, lengths=None, params=None):
    """Run a stack with its noise, sequence by sequence.

    Args:
        layer: one of noisin's, for its shape, the names of its terms and the dtype of matrices.
        x: [T, B, I].
        hx: (h_0,) or (h_0, c_0), each [L·D, B, ·].
        draws: place -> one entry a term, as a layer draws them.
        lengths: steps of each sequence.
        params: weights by torch's names instead of the layer's own.

    Returns:
        Output [T, B, D·P] with 0 behind each end, h [L·D, B, P], and c for an LSTM.
    """
    params = dict(layer.named_parameters()) if params is None else params
    time, batch = x.shape[:2]
    lengths = [time] * batch if lengths is None else [int(n) for n in lengths]
    entries = written_out(layer, draws, x.dtype)
    runs = [
        _sequence(layer, params, x[:n, b], [s[:, b] for s in hx], _column(entries, b))
        for b, n in enumerate(lengths)
    ]
    outputs = [torch.cat([out, out.new_zeros(time - len(out), out.shape[1])]) for out, *_ in runs]
    return tuple(torch.stack(parts, 1) for parts in (outputs, *list(zip(*runs, strict=True))[1:]))


def _column(entries, b):
    return {place: [one.of(b) for one in values] for place, values in entries.items()}


def _sequence(layer, params, x, hx, entries):
    """Run one sequence x [T, I]."""
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    rows, below = list(x), "input"
    last_h, last_c = [], []
    for index in range(layer.num_layers):
        columns = []
        for number, suffix in enumerate(directions):
            name = f"l{index}{suffix}"
            h, c = hx[0][len(last_h)], hx[1][len(last_h)] if len(hx) > 1 else None
            steps = range(len(rows))
            z = [None] * len(rows)
            for t in reversed(steps) if suffix else steps:
                now = {place: [one.now(t) for one in found] for place, found in entries.items()}
                now["below"] = [one.part(number, len(directions)) for one in now.get(below, ())]
                weights = parameters(layer, name, params)
                h, c = _step(mode_of(layer), weights, rows[t], h, c, now, name)
                z[t] = h
            columns.append(torch.stack(z))
            last_h.append(h)
            last_c.append(c)
        rows, below = list(torch.cat(columns, -1)), f"between_l{index}"
    output = []
    for t, row in enumerate(rows):
        for one in entries.get("output", ()):
            row = perturbed(row, one.now(t))
        output.append(row)
    return (torch.stack(output), torch.stack(last_h)) + (
        (torch.stack(last_c),) if len(hx) > 1 else ()
    )


def _step(mode, weights, x, h, c, now, name):
    """Return h_t and c_t of one layer and direction; ``now`` has the entries of this step."""

    def perturb(site):
        def through(tensor):
            for one in now.get(f"{site}_{name}", ()):
                tensor = perturbed(tensor, one)
            return tensor

        return through

    def kept(site, old, new):
        for one in now.get(f"zoneout_{site}_{name}", ()):
            new = one.value * old + (1 - one.value) * new
        return new

    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    gates = GATES.get(mode, 1)
    of_ih, of_hh = (now.get(f"weight_{part}_{name}", ()) for part in ("ih", "hh"))
    a = product(w_ih, b_ih, x, now["below"], of_ih, gates)
    r = product(w_hh, b_hh, h, now.get(f"recurrent_{name}", ()), of_hh, gates)
    new_h, new_c = gated(mode, a, r, h, c, w_hr, perturb("candidate"))
    return kept("hidden", h, perturb("hidden")(new_h)), kept("cell", c, new_c)
