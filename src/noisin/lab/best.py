"""The best trial of a sweep, as a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from noisin.lab import recipe
from noisin.lab.files import write_aside
from noisin.lab.sweep import Sweep


def row_of(sweep: Sweep, trial: FrozenTrial) -> str:
    """Return a recipe in TOML with the settings of a trial as its only row."""
    config = recipe.trial(sweep.recipe, trial.params).config
    default = type(config).model_fields
    settings = {
        name: value
        for name, value in config.model_dump().items()
        if name in ("task", "data") or value != default[name].default
    }
    lines = [
        f"title = {json.dumps(f'{sweep.recipe.title}: best of a search')}",
        f"seeds = {list(sweep.recipe.seeds)}",
        "",
        "[rows.best]",
        f"note = {json.dumps(f'trial {trial.number}, valid {trial.value}')}",
        *(f"{name} = {_toml(value)}" for name, value in settings.items()),
    ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def write(sweep: Sweep, trials: list[FrozenTrial]) -> Path | None:
    """Write the best trial as a recipe; None where no trial has a score."""
    scored = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    if not scored:
        return None
    best = min(scored, key=lambda t: (t.value, t.number))
    path = sweep.folder / "best.toml"
    with write_aside(path) as file:
        file.write(row_of(sweep, best).encode())
    return path
