"""The recurrences written out from the specification: one sequence, one step, one term at a time.

Nothing here comes from noisin but the names of terms, so that agreement means something.
"""

import torch


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
    if mode == "LSTM":
        i, f, g, o = (a + r).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if w_hr is None else h @ w_hr.T), c
    if mode == "GRU":
        (a_r, a_z, a_n), (r_r, r_z, r_n) = a.chunk(3, -1), r.chunk(3, -1)
        reset, update = torch.sigmoid(a_r + r_r), torch.sigmoid(a_z + r_z)
        n = torch.tanh(a_n + reset * r_n)
        return (1 - update) * n + update * h, c
    nonlinearity = {"RNN_TANH": torch.tanh, "RNN_RELU": torch.relu, "RNN_SIGMOID": torch.sigmoid}
    return nonlinearity[mode](a + r), c


def mode_of(layer):
    """Return torch's name of the cell; the nonlinearity may be ours."""
    return f"RNN_{layer.nonlinearity.upper()}" if layer.mode.startswith("RNN") else layer.mode


def operators(layer, place):
    """Return the operators that act at a place, left to right; torch's dropout comes last."""
    site, _, where = place.partition("_l")
    index = int(where.removesuffix("_reverse")) if where else None
    size = layer.num_layers - (site == "between")
    noise = layer.noise
    terms = () if noise is None else (noise if hasattr(noise, "__iter__") else (noise,))
    found = [
        term.operator
        for term in terms
        if term.site.name == site and (term.site.layer is None or term.site.layer % size == index)
    ]
    return found + ["*"] * (site == "between" and layer.dropout > 0)


def parameters(layer, name, params):
    """Return the five weights of a layer and direction, e.g. of ``l0_reverse``."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return [params.get(f"{one}_{name}") for one in names]


def plain(layer, x, hx, draws, lengths=None, params=None):
    """Run a stack with its noise, sequence by sequence.

    Args:
        layer: one of noisin's, for its shape and the names of its terms.
        x: [T, B, I].
        hx: (h_0,) or (h_0, c_0), each [L·D, B, ·].
        draws: place -> one tensor a term, [T, B, F] or [1, B, F].
        lengths: steps of each sequence.
        params: weights by torch's names instead of the layer's own.

    Returns:
        Output [T, B, D·P] with 0 behind each end, h [L·D, B, P], and c for an LSTM.
    """
    params = dict(layer.named_parameters()) if params is None else params
    time, batch = x.shape[:2]
    lengths = [time] * batch if lengths is None else [int(n) for n in lengths]
    runs = [
        _sequence(layer, params, x[:n, b], [s[:, b] for s in hx], _column(draws, b))
        for b, n in enumerate(lengths)
    ]
    outputs = [torch.cat([out, out.new_zeros(time - len(out), out.shape[1])]) for out, *_ in runs]
    return tuple(torch.stack(parts, 1) for parts in (outputs, *list(zip(*runs, strict=True))[1:]))


def _column(draws, b):
    return {place: [value[:, b] for value in values] for place, values in draws.items()}


def _sequence(layer, params, x, hx, draws):
    """Run one sequence x [T, I]; draws [T, F] or [1, F]."""

    def perturb(place, t, tensor):
        values = draws.get(place, [])
        signs = operators(layer, place)
        assert len(values) == len(signs), (place, len(values), signs)
        for sign, value in zip(signs, values, strict=True):
            now = value[t] if len(value) > 1 else value[0]
            tensor = tensor * now if sign == "*" else tensor + now
        return tensor

    def all_steps(place, rows):
        return [perturb(place, t, row) for t, row in enumerate(rows)]

    directions = ("", "_reverse") if layer.bidirectional else ("",)
    rows = all_steps("input", list(x))
    last_h, last_c = [], []
    for index in range(layer.num_layers):
        columns = []
        for suffix in directions:
            name = f"l{index}{suffix}"
            weights = parameters(layer, name, params)
            h, c = hx[0][len(last_h)], hx[1][len(last_h)] if len(hx) > 1 else None
            steps = range(len(rows))
            z = [None] * len(rows)
            for t in reversed(steps) if suffix else steps:
                seen = perturb(f"recurrent_{name}", t, h)
                h, c = cell(mode_of(layer), weights, rows[t], seen, h, c)
                h = z[t] = perturb(f"hidden_{name}", t, h)
            columns.append(torch.stack(z))
            last_h.append(h)
            last_c.append(c)
        rows = list(torch.cat(columns, -1))
        if index < layer.num_layers - 1:
            rows = all_steps(f"between_l{index}", rows)
    output = torch.stack(all_steps("output", rows))
    return (output, torch.stack(last_h)) + ((torch.stack(last_c),) if len(hx) > 1 else ())
