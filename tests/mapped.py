"""Several calls of layers of one shape as one, by ``torch.func.vmap``."""

import torch
from torch.utils._pytree import tree_map

from cases import given_draws
from noisin.functional import recur


def several(made, count=3):
    """Return cases of one shape, each with other numbers: layer, input, state, draws."""
    cases = [made() for _ in range(count)]
    with torch.no_grad():
        for r, (layer, x, hx, drawn) in enumerate(cases):
            own = [p for name, p in layer.named_parameters() if not name.startswith("rho_")]
            for tensor in (*own, x, *hx, *given_draws(layer, drawn)):
                tensor.mul_(1 + r / 4)
    return cases


def together(cases, lengths=None):
    """Return the results of all cases by one call, one case after another, and all leaves."""
    layer = cases[0][0]
    noise = {"noise": layer.noise} if layer.noise is not None else {}

    def run(weights, x, hx, drawn):
        own = {"draws": drawn} if noise else {}
        output, state = recur(layer.stack, weights, x, hx, **noise, **own, lengths=lengths)
        return [output, *state]

    given = [(one.all_weights, x, hx, drawn) for one, x, hx, drawn in cases]
    found = torch.func.vmap(run)(*tree_map(lambda *parts: torch.stack(parts), *given))
    results = [one for row in zip(*found, strict=True) for one in row]
    leaves = [
        leaf
        for one, x, hx, drawn in cases
        for leaf in (x, *hx, *one.parameters(), *given_draws(one, drawn))
    ]
    return results, leaves
