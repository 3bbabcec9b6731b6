"""Small corpora and settings for the tests of the laboratory."""

import os
from pathlib import Path

import numpy as np
import pytest

from noisin.lab import rolls as lab_rolls
from noisin.lab import sound
from noisin.lab.config import MusicConfig
from noisin.lab.rolls import Corpus

SHARED = Path(__file__).parents[2] / "shared" / "data"
BENCHMARKS = Path(os.environ.get("NOISIN_DATA") or SHARED)  # before a test takes the variable away


def benchmark_folder():
    """Return the folder of the benchmark sets, or skip."""
    if not (BENCHMARKS / "music").is_dir():
        pytest.skip("the benchmark sets are neither in NOISIN_DATA nor in ../shared/data")
    return BENCHMARKS


def rolls(sizes, seed=0, rate=0.05):
    """Return random rolls of these lengths."""
    rng = np.random.default_rng(seed)
    return [(rng.random((size, 88)) < rate).astype(np.uint8) for size in sizes]


def corpus():
    """Return a corpus whose lengths divide nothing; one piece is a single step."""
    return Corpus(
        "tiny",
        {
            "train": rolls([7, 13, 1, 22, 9], 1),
            "valid": rolls([5, 1, 11], 2),
            "test": rolls([3, 17, 8, 1], 3),
        },
    )


def config(**changes):
    """Return settings of a run that takes a second."""
    tiny = {
        "data": "tiny",
        "hidden_size": 5,
        "batch_size": 3,
        "chunk": 6,
        "epochs": 4,
        "noise": "hidden * Gaussian(0.5)",
        "test_samples": (1, 2, 4),
        "lr": 0.02,
    }
    return MusicConfig(**{**tiny, **changes})


def midi_folder(path, pieces=7):
    """Write random pieces as MIDI files and return the folder."""
    for index, roll in enumerate(rolls([20 + index for index in range(pieces)], 5)):
        sound.write_midi(roll, path / f"piece-{index}.mid")
    return path


def small_bach(folder):
    """Write a small corpus as what was once read of Bach's chorales, into the cache of a test."""
    lab_rolls.write_npz(corpus(), folder / "cache" / lab_rolls.BACH)


def table(path, columns):
    """Write columns as a CSV file with a header and return it."""
    rows = [columns, *zip(*columns.values(), strict=True)]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def walk(path, rows=90, seed=0):
    """Write two columns that hang together, one much larger than the other, as CSV."""
    rng = np.random.default_rng(seed)
    x = np.sin(np.arange(rows) / 3) + 0.2 * rng.standard_normal(rows)
    return table(path, {"x": x, "y": 1000 + 50 * np.roll(x, 1) + rng.standard_normal(rows)})
