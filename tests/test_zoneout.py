"""What zoneout keeps is kept to the last bit, and what it does not is as new, on every path."""

import pytest
import torch

from cases import make, seeded
from conftest import assert_bit_equal

T, B, F, H = 5, 8, 4, 64


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "relu"])
@pytest.mark.parametrize("path", [None, "cpu", "reference"])
def test_a_kept_unit_does_not_change(kind, path):
    layer = make(kind, F, H, noise="Zoneout(hidden=0.3)")
    x = seeded(T, B, F) * torch.tensor([1.0, 1e8, 1.0, 1e-8, 1.0])[:, None, None]
    draws = layer.draw(x)
    (mask,) = draws["zoneout_hidden_l0"]
    states = layer(x, draws=draws, path=path)[0].detach()
    before = torch.cat([torch.zeros(1, B, H), states[:-1]])
    kept = mask == 1
    assert_bit_equal(states[kept], before[kept])
    assert (states[~kept] != before[~kept]).any()


@pytest.mark.parametrize("path", [None, "cpu", "reference"])
def test_a_kept_cell_does_not_change(path):
    layer = make("LSTM", F, H, noise="Zoneout(cell=0.5)")
    x, cell = seeded(1, B, F), seeded(1, B, H, seed=1) * 1e8
    draws = layer.draw(x)
    (mask,) = draws["zoneout_cell_l0"]
    _, (_, new) = layer(x, (torch.zeros(1, B, H), cell), draws=draws, path=path)
    assert_bit_equal(new[mask == 1], cell[mask == 1])
    assert not torch.equal(new[mask == 0], cell[mask == 0])
