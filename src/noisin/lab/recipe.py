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
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from noisin.lab import LabError
from noisin.lab.config import DECIDING, TASKS, corpus_key
from noisin.lab.rows import Recipe, Row
from noisin.lab.search import Scalar, Search, searches_of

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
    base, rows = raw.get("base", {}), raw.get("rows", {})
    if not isinstance(rows, dict) or not isinstance(base, dict):
        raise LabError(f"recipe {name}: base and rows must be tables")
    for row, said in rows.items():
        if not isinstance(said, dict):
            raise LabError(f"recipe {name}: rows.{row} must be a table")
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
    baseline = raw.get("baseline", next(iter(rows), ""))
    if rows:
        _check_baseline(baseline, rows, f"recipe {name}")
    recipe = {
        "name": Path(name).stem,
        "title": _title(str(raw.get("title", Path(name).stem)), changes),
        "variant": _variant(changed),
        "seeds": top.get("seeds", raw.get("seeds", [1, 2, 3])),
        "baseline": baseline,
        "rows": {row: _row(row, rows, base, baseline, changed, name) for row in kept},
    }
    try:
        found = Recipe.model_validate({**recipe, "searches": searches_of(raw.get("search"), rows)})
        checked = {
            row: _checked_search(search, rows, base, changed)
            for row, search in found.searches.items()
        }
    except ValidationError as error:
        raise LabError(f"recipe {name}: {_told(error)}") from None
    except ValueError as error:
        raise LabError(f"recipe {name}: search: {error}") from None
    searches = {row: search for row, search in checked.items() if search is not None}
    only_one = next(iter(searches.values())) if len(searches) == 1 else None
    return found.model_copy(update={"searches": searches, "search": only_one})


def _title(title: str, changes: Sequence[str]) -> str:
    """Return the heading of a table, with what was changed in all rows.

    What it says of the corpus is not true of another one, and other seeds make no other table.
    """
    keys = [change.partition("=")[0] for change in changes]
    shown = [] if "data" in keys else [title]
    for key, change in zip(keys, changes, strict=True):
        if key != "seeds":
            shown.append(f"data={Path(change[5:]).name}" if key == "data" else change)
    return ", ".join(shown)


def _row(
    row: str,
    rows: Mapping[str, Any],
    base: Mapping[str, Any],
    baseline: str,
    changed: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """Return what is said of a row, its own settings over those of the base.

    What is said of its corpus, published scores among it, is not said of another one.
    """
    said = rows[row]
    own = {key: value for key, value in said.items() if key not in ROW_KEYS}
    config = {"task": "music", **base, **own, **changed}
    _known(config, (*_settings(config["task"], name), *ROW_KEYS), f"{name}, row {row}")
    about = {key: said[key] for key in ROW_KEYS if key in said and key != "search"}
    if changed.keys() & set(CORPUS) and not _same_corpus({"task": "music", **base, **own}, config):
        about = {key: one for key, one in about.items() if key not in ("published", "note")}
    about = {"label": row, "baseline": baseline, **about}
    _check_baseline(about["baseline"], rows, f"{name}, row {row}")
    return {**about, "config": _with_none(config)}


def _same_corpus(*settings: Mapping[str, Any]) -> bool:
    """Return whether settings are of one corpus; where some are wrong, they are refused later."""
    try:
        made = [TASKS[one["task"]].model_validate(_with_none(one)) for one in settings]
    except (KeyError, ValidationError):
        return False
    return len({corpus_key(one) for one in made}) == 1


def _check_baseline(baseline: object, rows: Mapping[str, Any], where: str) -> None:
    if not isinstance(baseline, str) or baseline not in rows:
        raise LabError(f"{where}: baseline must be a row, one of {list(rows)}; got {baseline!r}")


def _resolved(rows: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the rows, those that are ``like`` an earlier one with its settings in them.

    Raises:
        LabError: one is like no earlier row, or an average of what is no earlier row.
    """
    found: dict[str, Any] = {}
    for row, said in rows.items():
        for key in ("like", "average"):
            if key in said:
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
        ValueError: it names what is no setting, or is that of an average.
    """
    if "average" in rows[search.row]:
        raise ValueError(f"row must be one that is trained; {search.row} is an average of others")
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
    found = error.errors()
    for one in found:
        inside = [other for other in found if other["loc"][: len(one["loc"])] == one["loc"]]
        if one["type"] == "too_short" and len(inside) > 1:
            continue  # for what is refused inside is left out of the count
        where = ".".join(str(part) for part in one["loc"] if part not in (*TASKS, "config"))
        rule = one["msg"].removeprefix("Value error, ")
        got = "" if isinstance(one["input"], dict) or "got" in rule else f", got {one['input']!r}"
        # what the base says wrongly is wrong in every row: it is told for the first
        told = f"{where}: {rule}{got}" if where else f"{rule}{got}"
        lines.setdefault(f"{one['loc'][-1:]}{rule}{got}", told)
    return "\n".join(lines.values())
