"""What a recipe is once it is read: a table of methods, their settings and their searches."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noisin.lab import LabError
from noisin.lab.config import AnyConfig, CorpusKey, Seed, corpus_key
from noisin.lab.search import Search


class Published(BaseModel):
    """A number in a paper.

    Args:
        test: the published test score.
        source: paper and table.
        rival: whether it is the best number of another model, to beat and not to reproduce.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    test: float
    source: str
    rival: bool = False


class Row(BaseModel):
    """A method of the table.

    Args:
        config: its settings.
        label: name in tables; the row's own name without it.
        baseline: the row that it is compared with; that of the recipe without it.
        published: the paper's number, if there is one.
        note: what was chosen where the paper is silent, and why.
        average: the row whose models are averaged; empty of a row with models of its own.
        models: how many, of consecutive seeds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: AnyConfig
    label: str
    baseline: str
    published: Published | None = None
    note: str = ""
    average: str = ""
    models: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _averages_several(self) -> Row:
        if (self.models > 1) != bool(self.average):
            raise ValueError(
                "average names a row, and models says how many of it, at least 2; "
                f"got average {self.average!r}, models {self.models}"
            )
        return self

    @model_validator(mode="after")
    def _averages_before_it_ends(self) -> Row:
        config = self.config
        if config.optimizer == "nt-asgd" and config.trigger >= config.patience:
            raise ValueError(
                f"trigger of nt-asgd must be below patience = {config.patience}, which ends a run; "
                f"got {config.trigger}"
            )
        return self


class Recipe(BaseModel):
    """A table: rows that are compared on the same seeds.

    Args:
        name: of the recipe.
        title: heading of the table.
        variant: short hash of what was changed in every row; empty without changes.
        seeds: one run of each row for each of them.
        baseline: the row that the others are compared with.
        rows: the methods, by name.
        searches: what a sweep tries, by the row that it begins from.
        search: the one of them that is swept; None where none or several are there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    variant: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    baseline: str
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    searches: dict[str, Search] = {}
    search: Search | None = None

    def swept(self, row: str | None) -> Recipe:
        """Return the recipe with the search of a row, or its only one.

        Raises:
            LabError: no such search, or several to choose from.
        """
        if not self.searches:
            raise LabError(
                f"recipe {self.name}: a sweep needs a table [search] that says what is drawn, and "
                "--set must not fix all of it; got nothing to draw"
            )
        if row is None and len(self.searches) == 1:
            (row,) = self.searches
        if row is None or row not in self.searches:
            raise LabError(
                f"recipe {self.name}: --only must name the row to search, one of "
                f"{', '.join(self.searches)}; got {row or 'none'}"
            )
        return self.model_copy(update={"search": self.searches[row]})

    def on(self, corpora: Container[CorpusKey]) -> Recipe:
        """Return the recipe with only the rows whose corpus (by its key) is among some."""
        rows = {name: row for name, row in self.rows.items() if corpus_key(row.config) in corpora}
        return self.model_copy(update={"rows": rows})

    @model_validator(mode="after")
    def _has_different_seeds(self) -> Recipe:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        return self
