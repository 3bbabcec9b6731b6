"""One forward and backward pass of a recurrent layer: torch's own, without noise, and ours with it.

    python benchmarks/recurrence.py [--threads 2] [--rounds 11] [--large]

Noise is drawn inside what is timed. The rival that users write today, a loop over torch's cell with
noise, runs beside them.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import noisin
from side_by_side import table, times

SIZES = [(20, 35, 200), (20, 35, 650), (20, 100, 400)]
LARGE = [(20, 35, 1500), (64, 100, 400)]
NOISE = {
    "hidden * Bernoulli": "hidden * Bernoulli(keep=0.5)",
    "recurrent @ sequence": "recurrent * Bernoulli(keep=0.5) @ sequence",
    "weight_hh @ sequence": "weight_hh * Bernoulli(keep=0.5) @ sequence",
    "weight_hh @ preactivation": "weight_hh * Gaussian(0.1) @ preactivation",
    "between, input, output": "zaremba(keep=0.5, num_layers=1)",
}


def loop(cell: nn.LSTMCell, x: Tensor, keep: float = 0.5) -> Tensor:
    """Run torch's cell step by step with `hidden * Bernoulli`."""
    h = c = x.new_zeros(x.shape[1], cell.hidden_size)
    outputs = []
    for step in x:
        h, c = cell(step, (h, c))
        h = h * (torch.rand_like(h) < keep).to(h.dtype) / keep
        outputs.append(h)
    return torch.stack(outputs)


def passes(kind: str, batch: int, time: int, size: int) -> dict[str, object]:
    """Return the passes to time, by name."""
    x = torch.randn(time, batch, size)
    layers = {f"nn.{kind}, no noise": getattr(nn, kind)(size, size)}
    for name, noise in NOISE.items():
        layers[name] = getattr(noisin, kind)(size, size, noise=noise)

    def one(layer: nn.Module) -> None:
        layer(x)[0].sum().backward()

    found = {name: lambda layer=layer: one(layer) for name, layer in layers.items()}
    if kind == "LSTM":
        cell = nn.LSTMCell(size, size)
        found["loop over LSTMCell, with noise"] = lambda: loop(cell, x).sum().backward()
    return found


def main() -> None:
    """Time LSTM, GRU and RNN at several sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for kind in ("LSTM", "GRU", "RNN"):
        for batch, time, size in SIZES + (LARGE if given.large else []):
            print(f"{kind}: B {batch}, T {time}, H {size}, {given.threads} threads")
            print(
                table(times(passes(kind, batch, time, size), given.rounds), f"nn.{kind}, no noise")
            )


if __name__ == "__main__":
    main()
