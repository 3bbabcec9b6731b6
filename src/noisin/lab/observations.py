"""Corpora of series: rows of numbers in the order of time, cut into training and what follows it.

The rows of a series are in the order of the file. Its first rows are trained on, the next are for
validation, the last for the test; nothing is shuffled across time, and mean and standard deviation
are those of the training rows alone (of all series together, a column each).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisin.lab import LabError, dynamics, tabular
from noisin.lab.config import SeriesConfig
from noisin.lab.store import SPLITS, unknown

ROUNDING = 1e-12  # of its mean: a standard deviation that is smaller is that of a constant
NAMES = tuple(dynamics.EXAMPLES)
Values = NDArray[np.float64]


class Cut(NamedTuple):
    """How many rows of a series are for training, validation and test, in this order."""

    train: int
    valid: int
    test: int

    def rows(self, split: str) -> range:
        """Return the rows of a split."""
        ends = np.cumsum((0, *self)).tolist()
        index = SPLITS.index(split)
        return range(ends[index], ends[index + 1])


@dataclass(frozen=True)
class Observations:
    """A corpus of series, and what is to be forecast of them.

    Args:
        name: name or path.
        columns: what the network reads.
        targets: which columns are forecast, as indices.
        horizon: how many steps ahead.
        counts: whether targets are counts, forecast by Poisson laws.
        series: the rows of each series, [N, I], by name.
        cuts: how they are cut.
        skipped: columns that are left out, and why.
    """

    name: str
    columns: tuple[str, ...]
    targets: tuple[int, ...]
    horizon: int
    counts: bool
    series: Mapping[str, Values]
    cuts: Mapping[str, Cut]
    skipped: tuple[str, ...] = ()

    @property
    def target_names(self) -> tuple[str, ...]:
        """The columns that are forecast."""
        return tuple(self.columns[index] for index in self.targets)

    @cached_property
    def _training(self) -> Values:
        return np.concatenate([one[: self.cuts[name].train] for name, one in self.series.items()])

    @cached_property
    def mean(self) -> Values:
        """The mean of each column over the training rows, [I]."""
        return self._training.mean(0)

    @cached_property
    def std(self) -> Values:
        """The standard deviation of each column over the training rows, [I]."""
        return self._training.std(0)

    @property
    def center(self) -> Values:
        """What is taken from a target before training, [F]; 0 of counts."""
        return np.zeros(len(self.targets)) if self.counts else self.mean[list(self.targets)]

    @property
    def scale(self) -> Values:
        """What a target is divided by then, [F]; 1 of counts."""
        return np.ones(len(self.targets)) if self.counts else self.std[list(self.targets)]

    def inputs(self, series: str) -> Values:
        """Return the standardized columns of a series, [N, I]."""
        return (self.series[series] - self.mean) / self.std

    def truth(self, series: str) -> Values:
        """Return the targets of a series in their own units, [N, F]."""
        return self.series[series][:, list(self.targets)]

    def digest(self) -> str:
        """Return the sha256 of the rows and of what is to be forecast of them."""
        about = [self.columns, self.targets, self.horizon, self.counts]
        sha = hashlib.sha256(json.dumps([*about, dict(self.cuts)]).encode())
        for values in self.series.values():
            sha.update(np.ascontiguousarray(values, "<f8").tobytes())
        return sha.hexdigest()

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return series and steps of each split."""
        return {
            split: {
                "series": len(self.cuts),
                "steps": sum(len(cut.rows(split)) for cut in self.cuts.values()),
            }
            for split in SPLITS
        }


def load(config: SeriesConfig) -> Observations:
    """Load the corpus that settings describe.

    Args:
        config: data, columns, targets, group, horizon, head and shares.

    Raises:
        LabError: no such data, columns that are not there, not of numbers, not whole or constant
            in training, targets that are no counts for Poisson laws, too few rows.
    """
    found = _read(config)
    where = config.data
    columns = _chosen("columns", config.columns, found, where)
    targets = _targets(config, columns, where)
    whole = np.stack([found.numbers[name] for name in columns], 1)
    for name, values in zip(columns, whole.T, strict=True):
        _check_whole(where, name, values)
    if config.head == "poisson":
        for index in targets:
            _check_counts(where, columns[index], whole[:, index])
    series = dict(_series(where, config.group, found.groups, whole))
    if not series:
        raise LabError(f"{where} must have rows, got none")
    cuts = {name: _cut(config, name, len(values)) for name, values in series.items()}
    left_out = {} if config.columns else found.left_out  # the user has left them out
    corpus = Observations(
        where,
        columns,
        targets,
        config.horizon,
        config.head == "poisson",
        series,
        cuts,
        tuple(f"column {name!r}: {why}" for name, why in left_out.items()),
    )
    _check_varies(corpus)
    return corpus


def _read(config: SeriesConfig) -> tabular.Columns:
    if config.data in NAMES:
        values = dynamics.observed(config.data)
        columns = dynamics.EXAMPLES[config.data].columns
        found = tabular.Columns(dict(zip(columns, values.T, strict=True)), {})
        if config.group is not None:
            raise LabError(f"{config.data} is one series without a group; got {config.group!r}")
        return found
    path = Path(config.data)
    if not path.is_file():
        raise unknown(NAMES, "or a CSV or Parquet file", config.data)
    return tabular.read(path, config.group)


def _chosen(
    what: str, names: Sequence[str] | None, found: tabular.Columns, where: str
) -> tuple[str, ...]:
    """Return the columns that are read."""
    if not found.numbers:
        why = "; ".join(f"{name!r}: {why}" for name, why in found.left_out.items())
        raise LabError(f"{where} must have a column of numbers; got none. {why}")
    for name in names or ():
        if name in found.left_out:
            raise LabError(f"{where}: {what} must be numeric; {name!r}: {found.left_out[name]}")
        if name not in found.numbers:
            valid = ", ".join(found.numbers)
            raise LabError(f"{where}: {what} must be among {valid}; got {name!r}")
    return tuple(names or found.numbers)


def _targets(config: SeriesConfig, columns: Sequence[str], where: str) -> tuple[int, ...]:
    for name in config.targets or ():
        if name not in columns:
            raise LabError(f"{where}: targets must be among {', '.join(columns)}; got {name!r}")
    return tuple(columns.index(name) for name in config.targets or columns)


def _check_whole(where: str, name: str, values: Values) -> None:
    """Refuse a column with a cell that is missing or infinite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        cell = "is missing" if np.isnan(values[wrong[0]]) else f"has {values[wrong[0]]}"
        raise LabError(
            f"{where}: column {name!r} must have a finite number in every row; row {wrong[0] + 1} "
            f"{cell} ({len(wrong)} of {len(values)} rows). Fill them, or name other columns"
        )


def _check_counts(where: str, name: str, values: Values) -> None:
    wrong = np.flatnonzero((values < 0) | (values != np.floor(values)))
    if len(wrong):
        raise LabError(
            f"{where}: head poisson needs counts, 0, 1, 2, …, in {name!r}; "
            f"row {wrong[0] + 1} has {values[wrong[0]]:g}"
        )


def _check_varies(corpus: Observations) -> None:
    for index, name in enumerate(corpus.columns):
        least = ROUNDING * abs(corpus.mean[index])
        if not least < corpus.std[index] < np.inf:
            got = f"standard deviation {corpus.std[index]:g} around {corpus.mean[index]:g}"
            raise LabError(
                f"{corpus.name}: column {name!r} must vary in the training rows; got {got}. "
                "Name the other columns"
            )


def _series(
    where: str, group: str | None, groups: Sequence[str], whole: Values
) -> Iterable[tuple[str, Values]]:
    """Yield the rows of each series, in the order in which they first come."""
    if group is None:
        yield "", whole
        return
    if "" in groups:
        raise LabError(
            f"{where}: group {group!r} must be in every row; row {groups.index('') + 1} has none"
        )
    places: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        places.setdefault(name, []).append(row)
    for name, rows in places.items():
        yield name, whole[rows]


def _cut(config: SeriesConfig, series: str, rows: int) -> Cut:
    valid, test = round(config.valid_share * rows), round(config.test_share * rows)
    cut = Cut(rows - valid - test, valid, test)
    least = config.horizon + 1
    if cut.train < least or min(cut) < 1:
        which = f", series {series!r}" if series else ""
        raise LabError(
            f"{config.data}{which}: training needs horizon + 1 = {least} rows, and validation and "
            f"test one each; got {cut.train}, {cut.valid}, {cut.test} of {rows}"
        )
    return cut
