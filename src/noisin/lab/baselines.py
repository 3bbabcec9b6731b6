"""What music and series cost without a network: the scores that a table must be read beside.

All are fitted on the training part. Of music probabilities are (n + 1/2) / (N + 1), a key's counts
with half a note and half a silence more, so that no key is impossible. Series are forecast from
their last value or from their mean, with the spread that training leaves around it; as a rate of
counts the last value is half a count more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from noisin.lab import LabError, observations, recipe, rolls
from noisin.lab.config import DECIDING, MusicConfig, SeriesConfig
from noisin.lab.files import lines_of, write_aside
from noisin.lab.observations import Observations
from noisin.lab.records import told
from noisin.lab.rolls import Corpus, Roll
from noisin.lab.store import SPLITS
from noisin.lab.task import Corpus as AnyCorpus

ENDING = ".baselines.json"
Bits = NDArray[np.float64]


class Baseline(BaseModel):
    """A score without a network.

    Args:
        schema_version: of this layout.
        data: name of the corpus.
        corpus: its sha256.
        label: in tables.
        scores: of each split, in nats a step; of music without the first step of each piece.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    data: str
    corpus: str
    label: str
    scores: dict[str, float]


def _smoothed(sounding: Bits, steps: Bits | int) -> Bits:
    return (sounding + 0.5) / (steps + 1)


def _nll(p: Bits, keys: Bits) -> float:
    """Return the mean negative log-likelihood of a step."""
    return -float(np.sum(np.where(keys > 0, np.log(p), np.log1p(-p)))) / len(keys)


def _pairs(pieces: Sequence[Roll]) -> tuple[Bits, Bits]:
    """Return the keys of all steps but the first of each piece, and those one step before."""
    now = np.concatenate([piece[1:] for piece in pieces]).astype(float)
    return now, np.concatenate([piece[:-1] for piece in pieces]).astype(float)


def frequencies(corpus: Corpus) -> dict[str, float]:
    """Score each key by how often it sounds, whatever came before."""
    train = np.concatenate(corpus.splits["train"]).astype(float)
    p = _smoothed(train.sum(0), len(train))
    return {split: _nll(p, _pairs(of)[0]) for split, of in corpus.splits.items()}


def copying(corpus: Corpus) -> dict[str, float]:
    """Score each key by how often it sounds after it sounded, or not, one step before."""
    now, before = _pairs(corpus.splits["train"])
    stays = _smoothed((now * before).sum(0), before.sum(0))
    begins = _smoothed((now * (1 - before)).sum(0), (1 - before).sum(0))
    scores = {}
    for split, pieces in corpus.splits.items():
        now, before = _pairs(pieces)
        scores[split] = _nll(np.where(before > 0, stays, begins), now)
    return scores


METHODS: Mapping[str, Callable[[Corpus], dict[str, float]]] = {
    "each key's frequency": frequencies,
    "each key copied from the step before": copying,
}


def of_series(corpus: Observations, say: Callable[[str], None] = lambda _: None) -> list[Baseline]:
    """Return the baselines of series; those of a spread or a rate of 0 are told and left out."""
    ahead, digest, laws = corpus.horizon, corpus.digest(), {}
    now, before = _forecast(corpus, "train")
    for label, known in (("the last value", True), ("the mean", False)):
        if corpus.counts:
            laws[label] = partial(_poisson, rate=None if known else now.mean(0))
        else:
            rest = now - before if known else now
            laws[label] = partial(_normal, known=known, mean=rest.mean(0), std=rest.std(0))
    found = []
    for label, law in laws.items():
        scores = {split: -float(law(*_forecast(corpus, split))) for split in SPLITS}
        if all(map(math.isfinite, scores.values())):
            label = f"{label}, {ahead} steps before" if ahead > 1 and "last" in label else label
            one = Baseline(data=corpus.name, corpus=digest, label=label, scores=scores)
            found.append(one)
        else:
            say(f"no baseline by {label}: its spread or rate is 0 in some column")
    return found


def _forecast(corpus: Observations, split: str) -> tuple[Bits, Bits]:
    """Return the targets of all steps that are forecast, and those h steps before, [N, F]."""
    ahead, now, before = corpus.horizon, [], []
    for name, cut in corpus.cuts.items():
        truth = corpus.truth(name)
        rows = cut.rows(split)
        first = max(rows.start, ahead)
        now.append(truth[first : rows.stop])
        before.append(truth[first - ahead : rows.stop - ahead])
    return np.concatenate(now), np.concatenate(before)


def _normal(now: Bits, before: Bits, known: bool, mean: Bits, std: Bits) -> float:
    """Return the mean log-density, summed over the targets, around the last value or without it."""
    from scipy import stats  # here, for it takes a second

    if not std.all():
        return math.nan
    return stats.norm.logpdf(now - before * known, mean, std).sum(1).mean()


def _poisson(now: Bits, before: Bits, rate: Bits | None) -> float:
    """Return the mean log-probability, summed over the targets."""
    from scipy import stats

    return stats.poisson.logpmf(now, before + 0.5 if rate is None else rate).sum(1).mean()


def write(found: Iterable[Baseline], path: Path) -> None:
    """Write baselines, one a line."""
    with write_aside(path) as file:
        file.write("".join(one.model_dump_json() + "\n" for one in found).encode())


def settings(name: str, changes: Sequence[str] = ()) -> MusicConfig | SeriesConfig:
    """Return the settings of a corpus that has baselines; of series those of their recipe.

    Args:
        name: of the corpus, a folder of MIDI files, or a CSV or Parquet file.
        changes: ``key=value`` of series: which columns are forecast, how far ahead, by which laws,
            on which rows.

    Raises:
        LabError: no such corpus, or settings that do not decide one.
    """
    if name in observations.NAMES or Path(name).is_file():
        valid = DECIDING["series"]
        for change in changes:
            if change.partition("=")[0] not in valid:
                raise LabError(f"--set takes {', '.join(valid)} of series here; got {change!r}")
        rows = recipe.load("series", [f"data={name}", *changes]).rows
        config = next(iter(rows.values())).config
        assert isinstance(config, SeriesConfig)
        return config
    if name not in rolls.NAMES and not Path(name).is_dir():
        raise LabError(
            f"baselines are of music, {', '.join(rolls.NAMES)} or a folder of MIDI files, or of "
            f"series, {', '.join(observations.NAMES)} or a CSV or Parquet file; got {name!r}"
        )
    if changes:
        raise LabError(f"--set is for series, {name} is music; got {', '.join(changes)}")
    return MusicConfig(data=name)


def of(corpus: AnyCorpus, say: Callable[[str], None] = lambda _: None) -> list[Baseline]:
    """Return the baselines of a corpus of music or of series.

    Raises:
        LabError: series of which no baseline has a spread.
    """
    if isinstance(corpus, Observations):
        found = of_series(corpus, say)
        if not found:
            raise LabError(f"{corpus.name}: training must leave a baseline a spread; got none")
        return found
    assert isinstance(corpus, Corpus)
    digest = corpus.digest()
    return [
        Baseline(data=corpus.name, corpus=digest, label=label, scores=score(corpus))
        for label, score in METHODS.items()
    ]


def read(paths: Iterable[Path]) -> dict[str, list[Baseline]]:
    """Return baselines by the sha256 of their corpus, each once.

    Args:
        paths: folders that are looked through.

    Raises:
        LabError: a file that is something else.
    """
    found: dict[str, dict[str, Baseline]] = {}
    for path in paths:
        for file in sorted(path.rglob(f"*{ENDING}")) if path.is_dir() else ():
            try:
                for one in map(Baseline.model_validate_json, filter(str.strip, lines_of(file))):
                    found.setdefault(one.corpus, {})[one.label] = one
            except (OSError, UnicodeDecodeError, ValidationError) as error:
                why = told(error) if isinstance(error, ValidationError) else error
                raise LabError(f"{file}: must be baselines, one a line; {why}") from None
    return {corpus: list(own.values()) for corpus, own in found.items()}
