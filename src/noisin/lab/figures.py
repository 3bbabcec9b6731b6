"""Figures of the papers that need no training."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from noisin.lab.files import write_aside
from noisin.variance import LOSSES, variance_field

MEANS, SPREADS = (-5.0, 5.0), (0.05, 6.0)  # of E[a] and V[a]
CELLS, ARROWS = 241, 17  # a side


def _range(ends: tuple[float, float], count: int) -> Tensor:
    return torch.linspace(ends[0], ends[1], count)


def variance_fields(path: Path, target: float = 0.2) -> None:
    """Draw losses over the mean and variance of a pre-activation, and which way they push.

    Args:
        path: PNG or SVG file to write.
        target: t in (0, 1), of all three losses.

    References:
        Bayer et al.: On fast dropout and its applicability to recurrent networks, Figure 1.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, (name, loss) in zip(figure.subplots(1, 3, sharey=True), LOSSES.items(), strict=True):
        fine, coarse = (
            variance_field(loss, _range(MEANS, count), _range(SPREADS, count), target)
            for count in (CELLS, ARROWS)
        )
        drawn = (fine.mean, fine.variance, (fine.loss - fine.loss.min() + 1e-3).T)
        shown = axes.pcolormesh(
            *(one.numpy() for one in drawn), norm=LogNorm(), cmap="viridis", rasterized=True
        )
        figure.colorbar(shown, ax=axes, label="loss above its least")
        across, up = -coarse.by_mean.T, -coarse.by_variance.T
        length = torch.hypot(across, up).clamp(min=1e-12)
        arrows = (coarse.mean, coarse.variance, across / length, up / length)
        axes.quiver(*(one.numpy() for one in arrows), color="white", scale=24, width=0.004)
        axes.set(title=f"{name}, target {target:g}", xlabel="E[a]")
        axes.set_ylabel("V[a]" if axes.get_subplotspec().is_first_col() else "")
    with write_aside(path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=120)
