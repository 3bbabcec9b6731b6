"""Figures that need no training."""

import math
from collections import Counter
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure

from noisin.lab import figures, panels, recipe


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_fields_are_drawn(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(figures, "CELLS", 21)
    path = tmp_path / f"field.{ending}"
    figures.variance_fields(path)
    assert list(tmp_path.iterdir()) == [path]
    if ending == "png":
        image = matplotlib.image.imread(path)
        assert image.shape[1] > 3 * image.shape[0]
        assert image[..., :3].std() > 0.1
    else:
        text = path.read_text()
        assert all(f"<!-- {name}, target 0.2 -->" in text for name in figures.LOSSES)


def test_the_loss_of_one_unit_by_hand():
    weights, biases = torch.tensor([0.5, 9.0]), torch.tensor([-4.0, 0.3, 1.0])
    found = figures.one_unit_loss(weights, biases)
    for i, w in enumerate(weights.tolist()):
        for j, b in enumerate(biases.tolist()):
            x = 0.0
            for _ in range(50):
                x = 1 / (1 + math.exp(-(w * x + b)))
            assert found[i, j].item() == pytest.approx((x - 0.7) ** 2, abs=1e-5)


def test_noise_makes_a_slope_of_the_wall():
    """The steepest step of the loss along the bias, where w has two fixed points."""
    biases = torch.linspace(-4, 0, 161)
    plain, noisy = (
        figures.one_unit_loss(torch.tensor([9.0]), biases, std, 64)[0] for std in (0.0, 2.0)
    )
    assert noisy.diff().abs().max() < 0.5 * plain.diff().abs().max()


def test_surfaces_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "CELLS", 21)
    path = tmp_path / "surface.png"
    figures.loss_surfaces(path)
    image = matplotlib.image.imread(path)
    assert image.shape[1] > 2 * image.shape[0]
    assert image[..., :3].std() > 0.1


def test_a_pattern_shows_what_is_held(tmp_path):
    """Held noise is one colour from left to right, fresh noise is not."""
    found = []
    for noise in ("hidden * Gaussian(1.0)", "recurrent * Bernoulli(keep=0.5) @ sequence"):
        figures.noise_pattern(noise, tmp_path / "pattern.png")
        image = matplotlib.image.imread(tmp_path / "pattern.png")[..., :3]
        height, width = image.shape[:2]
        inside = image[height // 3 : height // 2, width // 4 : width // 2]
        found.append(float(abs(inside[:, 0] - inside[:, -1]).max()))
    assert found[0] > 0.1
    assert found[1] == 0


@pytest.mark.parametrize(
    ("noise", "panels"),
    [
        ("weight_hh + Gaussian(0.1)", 1),
        ("weight_ih * Bernoulli(keep=0.8) @ sequence & weight_hh + Laplace(0.1)", 2),
        ("Zoneout(hidden=0.2, cell=0.5)", 2),
        ("variational(input=0.9, recurrent=0.7, output=0.6)", 3),
    ],
)
def test_patterns_of_every_kind(tmp_path, noise, panels):
    figures.noise_pattern(noise, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").read_text().count("<image") == 2 * panels  # with colour bars
    figures.noise_pattern(noise, tmp_path / "same.png")
    first = (tmp_path / "same.png").read_bytes()
    figures.noise_pattern(noise, tmp_path / "same.png")
    assert (tmp_path / "same.png").read_bytes() == first


def test_every_law_is_named_beside_the_panels():
    """Also where another panel has fewer of them."""
    laws = "hidden * Gaussian", "hidden * Gumbel", "hidden + Gaussian"
    noises = ["none", *(f"{law}({std})" for law in laws for std in (1, 2))]
    rows = {
        noise: [
            SimpleNamespace(
                config=SimpleNamespace(noise=noise),
                status="finished",
                scores={"test": {}},
                test=2.0,
                metric="perplexity",
            )
        ]
        for noise in noises
    }
    axes = Figure().subplots(1, 2)
    panels.draw_laws(rows, *axes)
    (legend,) = [one.get_legend() for one in axes if one.get_legend()]
    assert [text.get_text() for text in legend.texts] == ["Gaussian", "Gumbel", "no noise"]


@pytest.mark.parametrize("name", ["beyond-music", "ognawala-bayer", "music-sets"])
def test_rows_of_a_table_have_colours_of_their_own(name):
    rows = Counter(row.config.data for row in recipe.load(name).rows.values())
    assert len(set(panels.COLORS)) == len(panels.COLORS) >= max(rows.values())
