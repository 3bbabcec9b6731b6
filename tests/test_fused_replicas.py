"""Several calls of the fused recurrence as one, by vmap."""

import pytest
import torch
from torch.utils._pytree import tree_map

from cases import pulled_back
from conftest import assert_bit_equal, flat
from mapped import several, together
from noisin.functional import recur
from noisin.fused.given import Given, replicas
from test_fused import NOISE, PAIRS, fused, made


@pytest.mark.parametrize(("row", "kind"), PAIRS[::3])
def test_replicas_are_each_call_alone(row, kind):
    """By vmap; products that are taken for all replicas at once are rounded in another way."""
    cases = several(lambda: made(kind, row, 4, 3, 3, 5, num_layers=2, bidirectional=True))
    lengths = torch.tensor([2, 4, 1])
    actual = pulled_back(*together(cases, lengths))
    alone = [fused(*case, lengths) for case in cases]
    expected = pulled_back(*map(flat, zip(*alone, strict=True)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_one_vmap_in_another():
    cases = several(lambda: made("LSTM", NOISE, 4, 3, 3, 5), 4)
    layer = cases[0][0]

    def run(weights, x, hx, drawn):
        return recur(layer.stack, weights, x, hx, noise=layer.noise, draws=drawn)[0]

    given = [(one.all_weights, x, hx, drawn) for one, x, hx, drawn in cases]
    flat = tree_map(lambda *parts: torch.stack(parts), *given)
    nested = tree_map(lambda one: one.unflatten(0, (2, 2)), flat)
    assert_bit_equal(
        torch.func.vmap(torch.func.vmap(run))(*nested).flatten(0, 1),
        torch.func.vmap(run)(*flat),
    )


def test_replicas_must_have_one_axis_in_front():
    cases = several(lambda: made("LSTM", NOISE, 4, 3, 3, 5), 2)
    x = torch.stack([case[1] for case in cases])
    given = Given(
        *(x, None, cases[0][0].weight_hh_l0, None, None, None, x[:, 0], None),
        *[None] * 11,
        *("", "LSTM", False),
    )
    with pytest.raises(ValueError, match="weight_hh must have 2 replicas in front"):
        replicas(given)
