"""What a sweep leaves: its best trial as a recipe, and all that it has spent, to be taken up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from noisin.lab import LabError, recipe
from noisin.lab.config import toml, toml_lines, toml_recipe
from noisin.lab.files import write_aside
from noisin.lab.spent import ENDING, Spent, State, Trial
from noisin.lab.sweep import Sweep
from noisin.lab.trials import LOST, REASON, distributions, is_lost

STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned",
}


def row_of(sweep: Sweep, trial: FrozenTrial) -> str:
    """Return a recipe in TOML with the settings of a trial as its only row."""
    config = recipe.trial(sweep.recipe, trial.params).config
    said = {"task", "data", *sweep.search.space}  # even where they are as without a recipe
    note = f"note = {toml(f'trial {trial.number}, valid {trial.value}')}"
    title = f"{sweep.recipe.title}: best of a search"
    return toml_recipe(title, sweep.recipe.seeds, "best", [note, *toml_lines(config, said)])


def write(sweep: Sweep, trials: list[FrozenTrial]) -> Path:
    """Write the best trial as a recipe.

    Raises:
        LabError: no trial has a score; it says why each has none.
    """
    scored = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    if not scored:
        reasons = dict.fromkeys(one.user_attrs.get(REASON, "") for one in trials)
        raise LabError("\n".join(["no trial has a score", *filter(None, reasons)]))
    best = min(scored, key=lambda t: (t.value, t.number))
    path = sweep.folder / "best.toml"
    with write_aside(path) as file:
        file.write(row_of(sweep, best).encode())
    return path


def write_spent(sweep: Sweep, trials: Sequence[FrozenTrial]) -> Path:
    """Write what a sweep has spent into its folder."""
    row = sweep.recipe.rows[sweep.search.row]
    shared = set.intersection(*(set(one.space) for one in sweep.recipe.searches.values()))
    several = len(sweep.recipe.searches) > 1
    spent = Spent(
        recipe=sweep.recipe.name,
        row=sweep.search.row,
        label=row.label,
        own=tuple(name for name in sweep.search.space if several and name not in shared),
        data=row.config.data,
        corpus=sweep.corpus,
        study=sweep.study,
        sampler=sweep.sampler,
        trials=tuple(
            Trial(
                number=one.number,
                state=STATES[one.state],
                valid=one.value if one.state == TrialState.COMPLETE else None,
                settings=one.params,
                course={at: round(value, 4) for at, value in one.intermediate_values.items()},
                reason=one.user_attrs.get(REASON, ""),
            )
            for one in trials
            if one.state in STATES and not is_lost(one)
        ),
    )
    path = sweep.folder / f"{spent.recipe}-{spent.row}{ENDING}"
    with write_aside(path) as file:
        file.write(spent.model_dump_json().encode() + b"\n")
    return path


def take_up(sweep: Sweep, study: Study, spent: Spent) -> None:
    """Put the trials of an earlier search into a study, unless it has trials already.

    Each keeps its number, on which the settings of later ones rest.

    Args:
        sweep: what is searched.
        study: of the sweep.
        spent: what the earlier search has spent.

    Raises:
        LabError: it was another search.
    """
    if spent.study != sweep.study:
        raise LabError(
            f"trials to take up must be of the same search, {sweep.study}; got those of "
            f"{spent.study}: another space, other settings, corpus, sampler or seed"
        )
    if study.get_trials(deepcopy=False):
        return
    space = distributions(sweep.search)
    known = {trial.number: trial for trial in spent.trials}
    try:
        made = [
            create_trial(
                state=_state(known[number]),
                value=known[number].valid if known[number].finished else None,
                params=known[number].settings,
                intermediate_values=dict(known[number].course),
                distributions=space,
                user_attrs={REASON: known[number].reason} if known[number].reason else {},
            )
            if number in known
            else create_trial(state=TrialState.FAIL, user_attrs={LOST: "not among those taken up"})
            for number in range(max(known, default=-1) + 1)
        ]
    except ValueError as error:
        raise LabError(f"trials to take up must lie in the space; {error}") from None
    for trial in made:
        study.add_trial(trial)


def _state(trial: Trial) -> TrialState:
    return next(state for state, name in STATES.items() if name == trial.state)
