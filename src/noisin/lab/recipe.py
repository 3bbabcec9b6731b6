"""Recipes: one TOML file a table, a base and a row for each method with only what differs.

title = "…"
seeds = [1, 2, 3]
baseline = "plain"

[base]
task = "music"
data = "jsb-chorales"
hidden_size = 200

[rows.plain]
noise = "none"

[rows.noisin]
noise = "hidden * Gaussian(1.0)"

[rows.wide]
like = "noisin"  # its settings and its baseline, but for what is said here
hidden_size = 400

[rows.noisin-3]
average = "noisin"  # no training of its own: the mean of the predictions of 3 of its models
models = 3
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Container, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noisin.lab import LabError
from noisin.lab.config import DECIDING, TASKS, AnyConfig, CorpusKey, Seed, corpus_key
from noisin.lab.search import Scalar, Search, searches_of


class Published(BaseModel):
    """A number in a paper.

    Args:
        test: the published test score.
        source: paper and table.
        rival: whether it is the best number of another model, to beat and not to reproduce.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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


# settings that stay text, whatever they look like
TEXTS = ("task", "data", "cell", "noise", "optimizer", "loss", "padding", "moments", "head")
TOP_KEYS = ("title", "seeds", "baseline", "base", "rows", "search")
CORPUS = ("task", "data", *itertools.chain(*DECIDING.values()))  # decide the corpus of a run
ROW_KEYS = ("label", "baseline", "published", "note", "search", "average", "models")
ONE_ROW = tuple(key for key in ROW_KEYS if key != "baseline")  # no row takes it over from another
ROW_NAME = re.compile(r"[A-Za-z0-9][\w.+*-]*")


def names() -> list[str]:
    """Return the recipes that ship."""
    folder = resources.files("noisin.lab") / "recipes"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def default(changes: Sequence[str]) -> str:
    """Return the recipe that runs where none is named: that of the task."""
    named = {"task=words": "ptb", "task=series": "series"}
    return next((name for change, name in named.items() if change in changes), "bach")


def load(name: str, changes: Sequence[str] = (), only: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: of a recipe that ships, or the path of a TOML file.
        changes: ``key=value``, in place of what all rows say.
        only: rows to keep; all without it.

    Raises:
        LabError: no such recipe, an unknown key, or a value out of range.
    """
    raw = _read(name)
    _known(raw, TOP_KEYS, name)
    rows = raw.get("rows", {})
    if not isinstance(rows, dict) or not isinstance(raw.get("base", {}), dict):
        raise LabError(f"recipe {name}: base and rows must be tables")
    for row in rows:
        if not ROW_NAME.fullmatch(row):
            raise LabError(
                f"recipe {name}: a row's name is letters, digits and . _ + * -; got {row!r}"
            )
    rows = _resolved(rows, name)
    top, changed = _changes(changes)
    kept = _kept(rows, only, name)
    if "noise" in changed and len(kept) > 1:
        raise LabError(
            "--set noise would make all rows one method; name one row by --only, "
            f"got {', '.join(kept)}"
        )
    # what a title says of the corpus is not true of another one; seeds make no other table
    own = [] if "data" in changed else [str(raw.get("title", Path(name).stem))]
    shown = [f"data={Path(c[5:]).name}" if c.startswith("data=") else c for c in changes]
    title = ", ".join([*own, *(c for c in shown if c.partition("=")[0] != "seeds")])
    recipe: dict[str, Any] = {"name": Path(name).stem, "title": title, "variant": _variant(changed)}
    recipe["seeds"] = top.get("seeds", raw.get("seeds", [1, 2, 3]))
    baseline = raw.get("baseline", next(iter(rows), ""))
    if rows and (not isinstance(baseline, str) or baseline not in rows):
        raise LabError(
            f"recipe {name}: baseline must be a row, one of {list(rows)}; got {baseline!r}"
        )
    recipe["baseline"] = baseline
    recipe["rows"] = {}
    for row in kept:
        if not isinstance(rows[row], dict):
            raise LabError(f"recipe {name}: rows.{row} must be a table")
        own = {k: v for k, v in rows[row].items() if k not in ROW_KEYS}
        config = {"task": "music", **raw.get("base", {}), **own, **changed}
        fields = _settings(config["task"], name)
        _known(config, (*fields, *ROW_KEYS), f"{name}, row {row}")
        about = {k: rows[row][k] for k in ROW_KEYS if k in rows[row] and k != "search"}
        about = {"label": row, "baseline": baseline, **about}
        if about["baseline"] not in list(rows):
            raise LabError(
                f"{name}, row {row}: baseline must be a row, one of {list(rows)}; "
                f"got {about['baseline']!r}"
            )
        recipe["rows"][row] = {**about, "config": _with_none(config)}
    try:
        recipe["searches"] = searches_of(raw.get("search"), rows)
        found = Recipe.model_validate(recipe)
        searches = {
            row: left
            for row, search in found.searches.items()
            if (left := _checked_search(search, rows, raw.get("base", {}), changed)) is not None
        }
    except ValidationError as error:
        raise LabError(f"recipe {name}: {_told(error)}") from None
    except ValueError as error:
        raise LabError(f"recipe {name}: search: {error}") from None
    only_one = next(iter(searches.values())) if len(searches) == 1 else None
    return found.model_copy(update={"searches": searches, "search": only_one})


def _resolved(rows: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the rows, those that are ``like`` an earlier one with its settings in them.

    Raises:
        LabError: one is like no earlier row, or an average of what is no earlier row.
    """
    found: dict[str, Any] = {}
    for row, said in rows.items():
        for key in ("like", "average"):
            if isinstance(said, dict) and key in said:
                said = _taken(said, key, row, found, name)
        found[row] = said
    return found


def _taken(
    said: dict[str, Any], key: str, row: str, found: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return a row with the settings of the earlier one that it names."""
    other, earlier = said[key], [one for one in found if "average" not in found[one]]
    if not isinstance(other, str) or other not in earlier:
        raise LabError(
            f"{name}, row {row}: {key} must be an earlier row, one of {earlier}; got {other!r}"
        )
    own = {k: v for k, v in said.items() if k != "like"}
    if key == "average" and (more := [k for k in own if k not in ROW_KEYS]):
        raise LabError(
            f"{name}, row {row}: an average has the settings of its models; got {', '.join(more)}"
        )
    return {**{k: v for k, v in found[other].items() if k not in ONE_ROW}, **own}


def _checked_search(
    search: Search, rows: Mapping[str, Any], base: Mapping[str, Any], changed: Mapping[str, Any]
) -> Search | None:
    """Return a search without what was changed in every row; None where nothing is left.

    Raises:
        ValueError: it names what is no setting.
    """
    task = {**base, **rows[search.row], **changed}.get("task", "music")
    fields = [name for name in _settings(task, search.row) if name not in CORPUS]
    search.check(fields, CORPUS)
    return search.without(changed, fields)


def trial(recipe: Recipe, drawn: Mapping[str, Scalar]) -> Row:
    """Return a row with the settings of a trial.

    Args:
        recipe: with a search.
        drawn: a value for each name of its space.

    Raises:
        LabError: settings that do not fit each other.
    """
    search = recipe.search
    assert search is not None
    row = recipe.rows[search.row]
    config = row.config
    try:
        changed = search.changed(drawn, list(type(config).model_fields), TEXTS)
        made = type(config).model_validate({**config.model_dump(), **changed})
    except ValidationError as error:
        raise LabError(_told(error)) from None
    except ValueError as error:
        raise LabError(str(error)) from None
    shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in drawn.items()}
    label = ", ".join(f"{name} {value}" for name, value in shown.items())
    return row.model_copy(update={"config": made, "label": label, "published": None, "note": ""})


def _with_none(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which "none" is None where it is no text; TOML has no word for it."""
    return {k: None if v == "none" and k not in TEXTS else v for k, v in config.items()}


def _read(name: str) -> dict[str, Any]:
    shipped = resources.files("noisin.lab") / "recipes" / f"{name}.toml"
    path = shipped if name in names() else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise LabError(
            f"a recipe is one of {', '.join(names())}, or the path of a TOML file; "
            f"got {name!r}{hint}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise LabError(f"recipe {name}: must be a TOML file; {error}") from None


def _changes(changes: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what ``key=value`` changes at the top and in every row."""
    top: dict[str, Any] = {}
    base: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise LabError(f"--set takes key=value, got {change!r}")
        try:
            value = text if key in TEXTS else tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        fields = dict.fromkeys(f for task in TASKS.values() for f in task.model_fields)
        _known({key: value}, ("seeds", *fields), "--set")
        (top if key == "seeds" else base)[key] = value
    return top, base


def _variant(changed: Mapping[str, Any]) -> str:
    """Return a short hash of changes, for a folder of their own."""
    text = json.dumps(changed, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:6] if changed else ""


def _settings(task: object, name: str) -> list[str]:
    """Return the settings of a task."""
    if not isinstance(task, str) or task not in TASKS:
        raise LabError(f"recipe {name}: task must be one of {', '.join(TASKS)}; got {task!r}")
    return list(TASKS[task].model_fields)


def _kept(rows: Mapping[str, Any], only: Sequence[str], name: str) -> list[str]:
    for row in only:
        if row not in rows:
            near = difflib.get_close_matches(row, list(rows), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise LabError(f"--only takes a row of {name}, {hint}one of {list(rows)}; got {row!r}")
    return [row for row in rows if not only or row in only]


def _known(keys: Mapping[str, Any], valid: Sequence[str], where: str) -> None:
    for key in keys:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise LabError(f"{where}: unknown key {key!r}; {hint}valid are {', '.join(valid)}")


def _told(error: ValidationError) -> str:
    """Return what pydantic found wrong, one line an error."""
    lines: dict[str, str] = {}
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"] if part not in (*TASKS, "config"))
        rule = one["msg"].removeprefix("Value error, ")
        got = "" if isinstance(one["input"], dict) or "got" in rule else f", got {one['input']!r}"
        # what the base says wrongly is wrong in every row: it is told for the first
        told = f"{where}: {rule}{got}" if where else f"{rule}{got}"
        lines.setdefault(f"{one['loc'][-1:]}{rule}{got}", told)
    return "\n".join(lines.values())
