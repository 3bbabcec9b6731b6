"""Figures of the papers that need no training."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from noisin.lab.files import write_aside
from noisin.layers import LSTM, RNN
from noisin.noise import Noise, terms_of
from noisin.product import Fresh
from noisin.stack import is_weight, places
from noisin.text import parse
from noisin.variance import LOSSES, variance_field

MEANS, SPREADS = (-5.0, 5.0), (0.05, 6.0)  # of E[a] and V[a]
CELLS, ARROWS = 241, 17  # a side
WEIGHTS, BIASES = (0.0, 12.0), (-4.5, 0.5)  # of a network of one unit
STEPS, TARGET = 50, 0.7  # of that network
DRAWS = 64
UNITS, LENGTH, MATRICES = 24, 60, 4  # of a pattern of noise


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


def one_unit_loss(
    weights: Tensor, biases: Tensor, std: float = 0.0, draws: int = 1, seed: int = 0
) -> Tensor:
    """Return the squared loss of a recurrent network of one unit and no input.

    x_t = σ(w_t x_{t-1} + b), x_0 = 0, L = (x_T - z)², with w_t = w + std · ξ_t, ξ_t ~ N(0, 1): the
    mean of L over the draws, T = 50 and z = 0.7.

    Args:
        weights: w [N].
        biases: b [M].
        std: of the noise in the weight, drawn at each step.
        draws: how many are averaged.
        seed: of the draws.

    Returns:
        L [N, M].

    References:
        Ognawala, Bayer: Regularizing recurrent networks, section 5.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = std * torch.randn(STEPS, draws, generator=generator)
    x = torch.zeros(draws, len(weights), len(biases))
    for step in noise:
        x = torch.sigmoid((weights[:, None] + step[:, None, None]) * x + biases)
    return (x - TARGET).square().mean(0)


def loss_surfaces(path: Path, std: float = 2.0) -> None:
    """Draw the loss of a network of one unit over its weight and bias, plain and under noise.

    Without noise a wall stands where a second fixed point appears: there the gradient explodes.
    Under noise in the weight the mean of the loss has a slope in its place.

    Args:
        path: PNG or SVG file to write.
        std: of the noise in the weight.

    References:
        Ognawala, Bayer: Regularizing recurrent networks, Figures 2 and 3.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    weights, biases = _range(WEIGHTS, CELLS), _range(BIASES, CELLS)
    shown = ScalarMappable(Normalize(0, TARGET**2), "viridis")
    titles = {"no noise": (0.0, 1), f"weight + Gaussian({std:g})": (std, DRAWS)}
    for axes, (title, how) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        loss = one_unit_loss(weights, biases, *how)
        drawn = (one.numpy() for one in (weights, biases, loss.T))
        axes.pcolormesh(*drawn, norm=shown.norm, cmap=shown.cmap, rasterized=True)
        axes.set(title=title, xlabel="w")
    figure.axes[0].set_ylabel("b")
    figure.colorbar(shown, ax=figure.axes, label="squared loss after 50 steps")
    with write_aside(path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=120)


def noise_pattern(noise: str, path: Path, seed: int = 0) -> None:
    """Draw what is drawn for one sequence: where noise falls, and how long it stays.

    A panel a place: units upwards, steps to the right; of noise in the weights, which acts in an
    Elman RNN here, the matrices of the first steps. Colour is the final factor or offset, or where
    a unit keeps its old value; white leaves a number as it is.

    Args:
        noise: terms in text form, at most one a place, each of them drawn.
        path: PNG or SVG file to write.
        seed: of the draws.
    """
    term = parse(noise)
    weights = all(isinstance(t, Noise) and t.site.name.startswith("weight") for t in terms_of(term))
    layer = (RNN if weights else LSTM)(UNITS, UNITS, noise=term)
    draws = layer.draw(torch.zeros(LENGTH, 1, UNITS), generator=torch.manual_seed(seed))
    figure = Figure(figsize=(8, 0.3 + (2.1 if weights else 1.5) * len(draws)), layout="constrained")
    panels = figure.subplots(len(draws), 1, squeeze=False)[:, 0]
    for axes, (place, (one, *_)) in zip(panels, places(layer.stack, term).items(), strict=True):
        (entry,) = draws[place]
        assert isinstance(entry, Tensor)
        if is_weight(place) and isinstance(one, Noise):
            drawn, steps = _matrices(one, entry), f", steps 1 to {MATRICES}"
        else:
            drawn, steps = entry.expand(LENGTH, 1, -1)[:, 0].T, ""
        middle = 1.0 if isinstance(one, Noise) and one.operator == "*" else 0.0
        reach = (drawn - middle).abs().nan_to_num().max().item() or 1.0
        ends = {"vmin": middle - reach, "vmax": middle + reach}
        aspect = "equal" if steps else "auto"
        shown = axes.imshow(
            drawn.numpy(), cmap="RdBu_r", aspect=aspect, interpolation="none", **ends
        )
        figure.colorbar(shown, ax=axes)
        axes.set(title=place + steps, xlabel="" if steps else "step", yticks=[])
        axes.set_xticks([] if steps else [0, LENGTH - 1], [] if steps else ["1", str(LENGTH)])
    with write_aside(path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=110)


def _matrices(term: Noise, entry: Tensor) -> Tensor:
    """Return the first matrices side by side, NaN between them."""
    like = torch.empty(UNITS, UNITS)
    if entry.dtype == torch.int64:  # a seed a step
        fresh = Fresh(term.operator, term.law, entry)
        matrices = [fresh.final(step, like) for step in range(MATRICES)]
    else:
        matrices = [entry[0]] * MATRICES
    gap = torch.full((UNITS, 2), torch.nan)
    return torch.cat([part for matrix in matrices for part in (matrix, gap)][:-1], 1)
