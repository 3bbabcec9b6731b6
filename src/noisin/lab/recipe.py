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
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from noisin.lab import LabError
from noisin.text import parse

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


VERSION = 1  # of what a run does: raised when the same settings give other numbers


class Config(BaseModel):
    """Everything that decides a run but its seed; what all tasks share.

    Args:
        data: corpus name, or a path.
        cell: the recurrent cell; tanh, relu and sigmoid are Elman RNNs.
        hidden_size: H.
        num_layers: L.
        noise: terms in text form; ``none`` for the plain network.
        nonzeros: connections that each unit of weight_hh keeps at the start; all without it.
        spectral_radius: of each gate of weight_hh at the start; as drawn without it.
        optimizer: adam, sgd (with momentum), nt-asgd (sgd, averaged from when validation stops
            improving) or nesterov-rmsprop.
        lr: step size.
        lr_hold: epochs at that step size; all without it.
        lr_factor: what each later epoch multiplies it by.
        momentum: for sgd and nesterov-rmsprop.
        decay: of nesterov-rmsprop's mean square.
        trigger: nt-asgd averages once the last so many epochs brought no better validation score.
        clip: largest norm of the gradient.
        batch_size: B.
        epochs: at most.
        patience: epochs without a better validation score before training ends.
        train_samples: K draws of the noise for each training step.
        test_samples: K for the Monte Carlo averages at the end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str
    cell: Literal["lstm", "gru", "tanh", "relu", "sigmoid"] = "lstm"
    hidden_size: Count = 200
    num_layers: Count = 1
    noise: str = "none"
    nonzeros: Count | None = None
    spectral_radius: Positive | None = None
    optimizer: Literal["adam", "sgd", "nt-asgd", "nesterov-rmsprop"] = "adam"
    lr: Positive = 2e-3
    lr_hold: Count | None = None
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    trigger: Count = 5
    clip: Positive = 1.0
    batch_size: Count = 16
    epochs: Count = 200
    patience: Count = 20
    train_samples: Count = 1
    test_samples: tuple[Count, ...] = (1, 5, 25)

    @field_validator("noise")
    @classmethod
    def _canonical(cls, noise: str) -> str:
        return str(parse(noise) if parse(noise) is not None else "none")

    @field_validator("test_samples")
    @classmethod
    def _nested(cls, samples: tuple[int, ...]) -> tuple[int, ...]:
        ordered = sorted(set(samples))
        if not samples or any(b % a for a, b in itertools.pairwise(ordered)):
            raise ValueError(f"each must divide the next larger, got {list(samples)}")
        return tuple(ordered)

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: str) -> str:
        return str(Path(data).resolve()) if Path(data).exists() else data

    def hash(self, *more: object) -> str:
        """Return a short hash of the settings and whatever else decides the run.

        Where the data lies is not hashed; ``more`` has the hash of what they hold.
        """
        settings = self.model_dump(mode="json", exclude={"data"})
        text = json.dumps([VERSION, settings, *map(str, more)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def lr_at(self, epoch: int) -> float:
        """Return the step size of an epoch, counted from 1."""
        later = 0 if self.lr_hold is None else max(0, epoch - self.lr_hold)
        return self.lr * self.lr_factor**later


class MusicConfig(Config):
    """Settings of the music task.

    Args:
        output_bias: start of the output layer's biases; torch's own start without it.
        chunk: longest stretch of a piece in training; each begins from a state of zeros.
    """

    task: Literal["music"] = "music"
    output_bias: float | None = None
    chunk: Count = 100


class WordsConfig(Config):
    """Settings of the word task.

    Args:
        embedding_size: of the word vectors; H without it.
        tied: one matrix for word vectors and softmax.
        window: steps of truncated back-propagation through time; the state is carried on.
        loss: what a step of the optimizer sees: the loss summed over the ``window`` and averaged
            over the batch, as learning rates near 1 mean it, or averaged over ``token``.
        init_uniform: a: all weights start uniform on [-a, a]; torch's own start without it.
        min_count: how often a word must come in training to be in the vocabulary.
        train_share: how much of the training text is trained on, from its start.
        valid_streams: streams, each from a state of zeros, that validation while training is cut
            into. Scores in tables are of one stream; that of the training text is of 100.
    """

    task: Literal["words"] = "words"
    embedding_size: Count | None = None
    tied: bool = False
    window: Count = 35
    loss: Literal["window", "token"] = "window"
    init_uniform: Positive | None = 0.1
    min_count: Count = 1
    train_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    valid_streams: Count = 10
    num_layers: Count = 2
    optimizer: Literal["adam", "sgd", "nt-asgd", "nesterov-rmsprop"] = "sgd"
    lr: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Positive = 5.0
    batch_size: Count = 20
    epochs: Count = 39
    test_samples: tuple[Count, ...] = (1, 5)


TASKS: dict[str, type[MusicConfig] | type[WordsConfig]] = {
    "music": MusicConfig,
    "words": WordsConfig,
}
AnyConfig = Annotated[MusicConfig | WordsConfig, Field(discriminator="task")]


class Published(BaseModel):
    """A number in a paper.

    Args:
        test: the published test score.
        source: paper and table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    test: float
    source: str


class Row(BaseModel):
    """A method of the table.

    Args:
        config: its settings.
        label: name in tables; the row's own name without it.
        baseline: the row that it is compared with; that of the recipe without it.
        published: the paper's number, if there is one.
        note: what was chosen where the paper is silent, and why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: AnyConfig
    label: str
    baseline: str
    published: Published | None = None
    note: str = ""


class Recipe(BaseModel):
    """A table: rows that are compared on the same seeds.

    Args:
        name: of the recipe.
        title: heading of the table.
        variant: short hash of what was changed in every row; empty without changes.
        seeds: one run of each row for each of them.
        baseline: the row that the others are compared with.
        rows: the methods, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    variant: str
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    baseline: str
    rows: Annotated[dict[str, Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_different_seeds(self) -> Recipe:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        return self


# settings that stay text, whatever they look like
TEXTS = ("task", "data", "cell", "noise", "optimizer", "loss")
TOP_KEYS = ("title", "seeds", "baseline", "base", "rows")
ROW_KEYS = ("label", "baseline", "published", "note")
ROW_NAME = re.compile(r"[A-Za-z0-9][\w.+*-]*")


def names() -> list[str]:
    """Return the recipes that ship."""
    folder = resources.files("noisin.lab") / "recipes"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def default(changes: Sequence[str]) -> str:
    """Return the recipe that runs where none is named: that of the task."""
    return "ptb" if "task=words" in changes else "bach"


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
    top, changed = _changes(changes)
    kept = _kept(rows, only, name)
    if "noise" in changed and len(kept) > 1:
        raise LabError(
            "--set noise would make all rows one method; name one row by --only, "
            f"got {', '.join(kept)}"
        )
    title = str(raw.get("title", Path(name).stem)) + "".join(f", {change}" for change in changes)
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
        about = {k: rows[row][k] for k in ROW_KEYS if k in rows[row]}
        about = {"label": row, "baseline": baseline, **about}
        if about["baseline"] not in list(rows):
            raise LabError(
                f"{name}, row {row}: baseline must be a row, one of {list(rows)}; "
                f"got {about['baseline']!r}"
            )
        recipe["rows"][row] = {**about, "config": config}
    try:
        return Recipe.model_validate(recipe)
    except ValidationError as error:
        raise LabError(f"recipe {name}: {_told(error)}") from None


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
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
        lines.setdefault(f"{one['loc'][-1:]}{rule}{got}", f"{where}: {rule}{got}")
    return "\n".join(lines.values())
