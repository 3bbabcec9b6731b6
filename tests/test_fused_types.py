"""The fused recurrence in bfloat16 and float16, whose state is float32, against the plain loop."""

import pytest
import torch

from cases import leaf_draws, make, plain_with_gradients, pulled_back, seeded, zeros
from conftest import assert_close_to_float64, flat
from noisin.fused import cpu
from test_fused import fused

ROWS = [
    ("LSTM", None),
    ("tanh", "hidden * Bernoulli(keep=0.5)"),
    ("LSTM", "hidden * Gaussian(0.5) & recurrent + Gaussian(0.3) & Zoneout(hidden=0.3, cell=0.2)"),
    ("GRU", "recurrent * Gaussian(Learned(0.3, per='unit')) @ untied & hidden + Gaussian(0.3)"),
    ("GRU", "candidate * Gaussian(0.5) & recurrent * Gaussian(0.5) @ sequence"),
    ("LSTM", "weight_hh + Gaussian(Learned(0.3)) & recurrent * Gaussian(0.3)"),
]


def assert_low_precision(dtype, kind, row, options):
    """Compare a stack on sequences of several lengths with the plain loop, by rule 7."""
    layer = make(kind, 3, 7, noise=row, dtype=dtype, **options)
    x = seeded(6, 4, 3).to(dtype).requires_grad_()
    hx = [
        seeded(*z.shape, seed=i).to(dtype).requires_grad_() for i, z in enumerate(zeros(layer, x))
    ]
    drawn = leaf_draws(layer, x.detach()) if row else {}
    lengths = torch.tensor([6, 2, 5, 1])
    found = pulled_back(*fused(layer, x, tuple(hx), drawn, lengths))
    assert {one.dtype for one in flat(found) if one is not None} == {dtype}
    others = [
        plain_with_gradients(layer, x, hx, drawn, lengths, one) for one in (dtype, torch.float64)
    ]
    assert_close_to_float64(found, *others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "row"), ROWS)
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 3}], ids=str
)
def test_low_precision_is_no_worse_than_the_plain_loop(dtype, kind, row, options, monkeypatch):
    """torch's operations on the CPU, which the chooser leaves to the plain loop."""
    if options.get("proj_size") and kind != "LSTM":
        pytest.skip("LSTMs alone are projected")
    monkeypatch.setattr(cpu, "refusal", lambda dtype: "")
    assert_low_precision(dtype, kind, row, options)
