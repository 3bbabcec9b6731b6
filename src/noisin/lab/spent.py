"""What a search has spent: every trial of a sweep, kept beside the records of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from noisin.lab import LabError
from noisin.lab.records import told

ENDING = ".trials.json"
State = Literal["finished", "failed", "pruned"]


class Trial(BaseModel):
    """One trial.

    Args:
        number: in its sweep.
        state: how it ended.
        valid: the best validation score, of a finished one; None of others.
        settings: what was drawn.
        course: the validation score, by epoch; by it later trials are pruned.
        reason: why it failed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    state: State
    valid: float | None
    settings: dict[str, Any]
    course: dict[int, float] = {}
    reason: str = ""

    @property
    def finished(self) -> bool:
        """Whether it ended with a score."""
        return self.state == "finished"


class Spent(BaseModel):
    """A search for the settings of a row, finished or not. No trial was scored on the test split.

    Args:
        schema_version: of this layout.
        recipe: its name.
        row: whose settings were searched.
        label: of the row in tables.
        own: what was drawn for this row alone, the strength of its noise or penalty.
        data: name of the corpus.
        corpus: its sha256.
        study: name of the sweep.
        sampler: how settings were drawn.
        trials: in their order, lost ones left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    recipe: str
    row: str
    label: str
    own: tuple[str, ...]
    data: str
    corpus: str
    study: str
    sampler: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best score, the first of equals."""
        done = [one for one in self.trials if one.finished]
        return min(done, key=lambda one: (one.valid, one.number), default=None)

    def of(self, recipe: str, row: str, corpus: str) -> bool:
        """Return whether it is a search for the settings of a row, on a corpus of this sha256."""
        return (self.recipe, self.row, self.corpus) == (recipe, row, corpus)


def count(searches: Iterable[Spent]) -> str:
    """Return how many trials some searches have had, those without a score told; empty of none."""
    states = Counter(one.state for search in searches for one in search.trials)
    other = [f"{states[state]} {state}" for state in ("failed", "pruned") if states[state]]
    return f"{states.total() or ''}" + (f" ({', '.join(other)})" if other else "")


def read(paths: Iterable[Path]) -> list[Spent]:
    """Return what searches have spent, one that stands in several places once.

    Args:
        paths: files, or folders that are looked through.

    Raises:
        LabError: a file that is something else.
    """
    found: dict[tuple[str, str, str], Spent] = {}
    for path in paths:
        for file in sorted(path.rglob(f"*{ENDING}")) if path.is_dir() else ():
            one = read_one(file)
            found[one.recipe, one.row, one.study] = one
    return list(found.values())


def read_one(file: Path) -> Spent:
    """Return what one search has spent.

    Raises:
        LabError: the file is something else.
    """
    try:
        return Spent.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        why = told(error) if isinstance(error, ValidationError) else error
        raise LabError(f"{file}: must be the trials of a sweep; {why}") from None
