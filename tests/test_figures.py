"""Figures that need no training."""

import math

import matplotlib.image
import pytest
import torch

from noisin.lab import figures


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
