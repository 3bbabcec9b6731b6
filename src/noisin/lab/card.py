"""The model card of a run: what the model is, its scores, how to run it again and to load it."""

from __future__ import annotations

import math
from importlib import resources
from typing import TYPE_CHECKING

from noisin.lab import tasks
from noisin.lab.config import toml_lines, toml_recipe
from noisin.lab.records import Record
from noisin.lab.tasks import AnyModel

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TEMPLATE = resources.files("noisin.lab") / "card.md.jinja"
RECIPE = "recipe.toml"
TASK_TYPES = {  # as the Hub calls them, where it has a name
    "music": "music-generation",
    "words": "text-generation",
    "series": "time-series-forecasting",
}

METRICS = {  # of music, whose names say which steps count
    "unscored": "negative log-likelihood in nats a step without the first of each piece",
    "scored": "negative log-likelihood in nats a step with the first of each piece",
    "factorised": "negative log-likelihood in nats a step without the first of each piece "
    "of probabilities averaged key by key",
}


def texts(record: Record, model: AnyModel, license: str | None) -> dict[str, str]:
    """Return the model card and the recipe of a run, by file name.

    Args:
        record: of the run.
        model: of the run.
        license: of the model; none is told without it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config = record.config.without_path()
    name = f"{record.recipe}-{record.row}-{record.seed}"
    about = ModelCardData(
        library_name="noisin",
        license=license,
        tags=["noisin", "pytorch", "recurrent-neural-network", config.cell, config.task],
        datasets=[config.data] if config.named else None,
        model_name=name,
        eval_results=_results(record) or None,
    )
    rows = _rows(record)
    card = ModelCard.from_template(
        about,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=name,
        record=record,
        config=config,
        rnn=model.rnn,
        units=tasks.UNITS[record.metric],
        rows=rows,
        names=list(dict.fromkeys(name for scores in rows.values() for name in scores)),
        settings="\n".join(toml_lines(config, ("task", "data"))),
        command=_command(record),
        own=not config.named,
    )
    return {"README.md": f"{card}\n", RECIPE: _recipe(record, name)}


def _recipe(record: Record, title: str) -> str:
    """Return the run as a recipe of one row, with all its settings."""
    config = record.config.without_path()
    lines = toml_lines(config, type(config).model_fields)
    return toml_recipe(title, [record.seed], record.row, lines)


def _command(record: Record) -> str:
    """Return the command that does the run again."""
    where = record.environment
    options = {
        "--devices": (where.processes, 1),
        "--precision": (where.precision, "32-true"),
        "--accelerator": (where.accelerator, "cpu"),
    }
    told = [f"{name} {value}" for name, (value, default) in options.items() if value != default]
    return " ".join(["noisin run", RECIPE, *told])


def _rows(record: Record) -> dict[str, dict[str, float]]:
    """Return the scores by what they are of."""
    drawn = {f"test, {_average(k)}": scores for k, scores in sorted(record.monte_carlo.items())}
    return {**record.scores, **drawn}


def _average(draws: int) -> str:
    return f"average of {draws} draws" if draws > 1 else "one draw"


def _results(record: Record) -> list[EvalResult]:
    """Return the scores of the test split, as the Hub lists them."""
    from huggingface_hub import EvalResult

    config = record.config.without_path()
    found = {0: record.scores.get("test", {}), **record.monte_carlo}
    return [
        EvalResult(
            task_type=TASK_TYPES[config.task],
            dataset_type=config.data if config.named else "custom",
            dataset_name=config.data,
            dataset_split="test",
            dataset_args={"sha256": record.corpus},
            metric_type="nll" if name in METRICS else name.partition(" ")[0],
            metric_name=METRICS.get(name, name) + (f", {_average(k)}" if k else ""),
            metric_args={"draws": k} if k else None,
            metric_value=value,
        )
        for k, scores in sorted(found.items())
        for name, value in scores.items()
        if math.isfinite(value)
    ]
