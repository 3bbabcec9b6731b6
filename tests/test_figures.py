"""Figures that need no training."""

import matplotlib.image
import pytest

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
