"""Trained runs put to use: scored, averaged, sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from noisin.lab import LabError, checkpoint, data, records
from noisin.lab.data import Roll
from noisin.lab.music import MusicModel, MusicTask, Score
from noisin.lab.records import Record


@dataclass(frozen=True)
class Run:
    """A trained model and its record."""

    record: Record
    model: MusicModel


def load(path: Path) -> Run:
    """Load a run's chosen weights from its folder.

    Raises:
        LabError: no finished run, or a damaged file.
    """
    if not (path / "record.json").is_file():
        raise LabError(f"a run is a folder with a record.json, as `noisin run` leaves; got {path}")
    record = records.read([path / "record.json"])[0]
    tensors, _ = checkpoint.load(path / "model.safetensors")
    model = MusicModel(record.config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise LabError(f"{path}: the weights are not those of its record; {error}") from None
    return Run(record, model.eval())


def evaluate(
    runs: Sequence[Run],
    split: str = "test",
    samples: Sequence[int] = (),
    data_dir: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[int, Score]:
    """Score one run, or the average of the predictive distributions of several.

    Args:
        runs: the runs.
        split: ``train``, ``valid`` or ``test``.
        samples: numbers of draws K to average over, beside 0, the plain network.
        data_dir: folder with corpus files.
        batch_size: pieces at a time.
        seed: of the draws.

    Returns:
        The score of each K.

    Raises:
        LabError: runs on different corpora, draws of a run without noise, or a changed corpus.
    """
    first = runs[0].record
    for run in runs:
        if run.record.corpus != first.corpus:
            raise LabError(
                "runs that are averaged must be of one corpus; got "
                f"{first.config.data} and {run.record.config.data}"
            )
        if samples and run.record.config.noise == "none":
            raise LabError(f"draws need noise, and {run.record.row} has none; leave --samples out")
    corpus = data.load(first.config.data, data_dir)
    if corpus.digest() != first.corpus:
        raise LabError(
            f"{first.config.data} must be the corpus of the run, sha256 {first.corpus}; "
            f"got {corpus.digest()}"
        )
    torch.manual_seed(seed)
    task = MusicTask(first.config, corpus)
    task.model = runs[0].model
    return task.scores(split, (0, *samples), batch_size, [run.model for run in runs[1:]])


def sample(run: Run, steps: int, seed: int, temperature: float = 1.0) -> Roll:
    """Draw a piece from the plain network of a run.

    Args:
        run: the run.
        steps: quarter notes.
        seed: of the draws.
        temperature: below 1 the keys are more certain.
    """
    generator = torch.Generator().manual_seed(seed)
    return run.model.generate(steps, generator, temperature).numpy().astype(np.uint8)
