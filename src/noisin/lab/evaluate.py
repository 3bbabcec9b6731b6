"""Trained runs put to use: scored, averaged, sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from noisin.inference import plain
from noisin.lab import LabError, checkpoint, records, tasks
from noisin.lab.config import AnyConfig
from noisin.lab.forecasts import Coverage, coverages, merged
from noisin.lab.music import MusicTask
from noisin.lab.records import Record
from noisin.lab.rolls import Roll
from noisin.lab.series import Forecast, SeriesTask
from noisin.lab.task import Corpus, Scores, Task
from noisin.lab.words import Token, WordTask


@dataclass(frozen=True)
class Run:
    """A trained model with its data, and its record."""

    record: Record
    task: Task
    corpus: Corpus


def load(path: Path, data_dir: Path | None = None, corpus: Corpus | None = None) -> Run:
    """Load a run's chosen weights from its folder, with its corpus.

    Args:
        path: folder of the run.
        data_dir: folder with corpora, and with the user's own data where that was moved.
        corpus: the corpus, if it is loaded already.

    Raises:
        LabError: no finished run, data that is gone, an average of several, a damaged file, or a
            corpus that is not that of the run.
    """
    record = _record(path)
    tensors, _ = checkpoint.load(path / "model.safetensors")
    corpus = corpus or tasks.load(_found(path, record.config, data_dir), data_dir)
    if corpus.digest() != record.corpus:
        raise LabError(
            f"{path}: the corpus must be that of the run, sha256 {record.corpus}; "
            f"{record.config.data} has {corpus.digest()}"
        )
    task = tasks.build(record.config, corpus)
    try:
        task.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise LabError(f"{path}: the weights are not those of its record; {error}") from None
    if checkpoint.weights_hash(task.model.state_dict()) != record.weights:
        raise LabError(f"{path}: the weights must have sha256 {record.weights}, as recorded")
    task.model.eval()
    return Run(record, task, corpus)


def _record(path: Path) -> Record:
    """Return the record of a run that has weights."""
    if not (path / "record.json").is_file():
        raise LabError(f"a run is a folder with a record.json, as `noisin run` leaves; got {path}")
    record = records.read([path / "record.json"])[0]
    if record.status == "diverged":
        raise LabError(f"{path}: a run must have finished; this one diverged, {record.reason}")
    if record.models > 1:
        raise LabError(
            f"{path}: an average has no weights of its own; name the runs of its models; "
            f"got {record.row}, an average of {record.models}"
        )
    return record


def _found(path: Path, config: AnyConfig, data_dir: Path | None) -> AnyConfig:
    """Return the settings of a run with the place where its data is now."""
    if config.named or Path(config.data).exists():
        return config
    if data_dir is not None and (data_dir / Path(config.data).name).exists():
        return config.model_copy(update={"data": str(data_dir / Path(config.data).name)})
    raise LabError(
        f"{path}: the data of the run must be where it was, {config.data}, or in the folder that "
        f"--data-dir names; got {data_dir or 'no --data-dir'}"
    )


def load_all(paths: Sequence[Path], data_dir: Path | None = None) -> list[Run]:
    """Load runs that are to be averaged: all of the corpus of the first."""
    first = load(paths[0], data_dir)
    for path in paths[1:]:
        one = _record(path)
        if one.corpus != first.record.corpus:
            raise LabError(
                f"runs that are averaged must be of one corpus; {paths[0]} is of "
                f"{first.record.config.data}, sha256 {first.record.corpus}, and {path} of "
                f"{one.config.data}, {one.corpus}"
            )
    return [first, *(load(path, data_dir, first.corpus) for path in paths[1:])]


def evaluate(
    runs: Sequence[Run],
    split: str = "test",
    samples: Sequence[int] = (),
    seed: int = 0,
    without: bool = False,
) -> dict[int, Scores]:
    """Score one run, or the average of the predictive distributions of several.

    What was trained by moments is scored by moments.

    Args:
        runs: the runs, of one corpus.
        split: ``train``, ``valid`` or ``test``.
        samples: numbers of draws K to average over, beside 0, without draws.
        seed: of the draws.
        without: score the plain network of the weights, moments off.

    Returns:
        The scores of each K.

    Raises:
        LabError: draws of a run without noise, or runs that read the corpus in other ways.
    """
    _check(runs, samples)
    torch.manual_seed(seed)
    others = [run.task.model for run in runs[1:]]
    with ExitStack() as off:
        for run in runs if without else ():
            off.enter_context(plain(run.task.model))
        return runs[0].task.scores(split, (0, *samples), others)


def _check(runs: Sequence[Run], samples: Sequence[int]) -> None:
    """Refuse draws without noise, and runs that one pass over the corpus would not serve."""
    for name in ("train_share", "warmup", *(("window",) if samples else ())):
        values = [getattr(run.record.config, name, None) for run in runs]
        if len(set(values)) > 1:
            raise LabError(f"runs that are averaged must have one {name}, got {values}")
    for run in runs:
        if samples and run.record.config.noise == "none":
            raise LabError(f"draws need noise, and {run.record.row} has none; leave --samples out")


def forecasts(
    runs: Sequence[Run], split: str = "test", draws: int = 0, seed: int = 0
) -> Iterator[Forecast]:
    """Yield the forecasts of a split of series, some series at a time.

    Args:
        runs: runs of one corpus, whose predictive distributions are averaged.
        split: ``train``, ``valid`` or ``test``.
        draws: K of the noise of each; 0 is the plain network.
        seed: of the draws.

    Raises:
        LabError: a run that is not of series, draws of one without noise, or runs that read the
            corpus in other ways.
    """
    first = _of_series(runs[0])
    _check(runs, (draws,) if draws else ())
    torch.manual_seed(seed)
    yield from first.forecasts(split, draws, [run.task.model for run in runs[1:]])


def _of_series(run: Run) -> SeriesTask:
    if not isinstance(run.task, SeriesTask):
        raise LabError(f"forecasts are of series; {run.record.row} is of {run.record.config.task}")
    return run.task


def target_names(run: Run) -> tuple[str, ...]:
    """Return the columns that a run of series forecasts."""
    return _of_series(run).corpus.target_names


def intervals(
    runs: Sequence[Run], split: str, samples: Sequence[int], levels: Sequence[float], seed: int = 0
) -> dict[int, dict[str, list[Coverage]]]:
    """Return how the central prediction intervals of a split of series hold.

    Args:
        runs: runs of one corpus, whose predictive distributions are averaged.
        split: ``train``, ``valid`` or ``test``.
        samples: numbers of draws K of the noise to average over, beside 0, without draws.
        levels: what the intervals should cover, within (0, 1).
        seed: of the draws.

    Returns:
        By K, and by target: coverage and mean width at each level.

    Raises:
        LabError: a run that is not of series, or draws of one without noise.
    """
    found = {}
    for k in (0, *samples):
        parts = [
            [coverages(one.mixture, one.truth, level) for level in levels]
            for one in forecasts(runs, split, k, seed)
        ]
        found[k] = {
            name: [merged([part[i][f] for part in parts]) for i in range(len(levels))]
            for f, name in enumerate(target_names(runs[0]))
        }
    return found


def log_probabilities(run: Run, split: str) -> list[dict[str, str | float]]:
    """Return every token of a split with its log-probability, in nats.

    Raises:
        LabError: the run is not one of words.
    """
    if not isinstance(run.task, WordTask):
        task = run.record.config.task
        raise LabError(f"log-probabilities are of tokens; {run.record.row} is of {task}")
    values = torch.cat(list(run.task.log_likelihoods(split))).tolist()
    words = run.task.corpus.vocabulary
    ids = run.task.corpus.splits[split][: len(values)]
    return [{"token": words[i], "log_prob": v} for i, v in zip(ids, values, strict=True)]


def sample_roll(run: Run, steps: int, seed: int, temperature: float = 1.0) -> Roll:
    """Draw a piece from the plain network of a run of music.

    Args:
        run: the run.
        steps: quarter notes.
        seed: of the draws.
        temperature: below 1 the keys are more certain.
    """
    assert isinstance(run.task, MusicTask)
    generator = torch.Generator().manual_seed(seed)
    return run.task.model.generate(steps, generator, temperature).numpy().astype(np.uint8)


def sample_text(
    run: Run, count: int, seed: int, temperature: float = 1.0, prompt: Sequence[str] = ()
) -> list[Token]:
    """Draw text from the plain network of a run of words.

    Args:
        run: the run.
        count: tokens.
        seed: of the draws.
        temperature: below 1 likely words come more often.
        prompt: words to start from.

    Returns:
        The prompt, and what was drawn with the probability of each token.

    Raises:
        LabError: a word of the prompt is unknown.
    """
    assert isinstance(run.task, WordTask)
    generator = torch.Generator().manual_seed(seed)
    try:
        return run.task.generate(count, generator, temperature, prompt)
    except ValueError as error:
        raise LabError(str(error)) from None
