"""``noisin sweep``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from noisin.lab import LabError, recipe, tasks
from noisin.lab.config import layout_of
from noisin.lab.files import cores, make_folder
from noisin.lab.ranks import Layout
from noisin.lab.terminal import (
    Changes,
    DataDir,
    Folder,
    RecipeName,
    console,
    outline,
    refusing,
    say,
    tell_skipped,
)


@refusing
def sweep(
    name: RecipeName,
    trials: Annotated[int, typer.Option(min=1, help="Trials that end, over all workers.")] = 32,
    storage: Annotated[
        str,
        typer.Option(
            help="postgresql://… or another database, or a journal file; one in --out without it."
        ),
    ] = "",
    sampler: Annotated[str, typer.Option(help="random or tpe.")] = "random",
    prune: Annotated[
        bool, typer.Option("--prune", help="End trials early that are worse than the median.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the settings that are tried.")] = 0,
    grace: Annotated[
        float,
        typer.Option(min=1.0, help="Seconds without a sign of life before a trial is done anew."),
    ] = 60.0,
    only: Annotated[str, typer.Option("--only", help="Row whose space is searched.")] = "",
    known: Annotated[
        Path | None,
        typer.Option("--known", help="Trials of this search done before: a file *.trials.json."),
    ] = None,
    changes: Changes = [],
    data_dir: DataDir = None,
    out: Folder = Path("runs"),
    processes: Annotated[int, typer.Option(min=1, help="Workers here, one thread each.")] = cores(),
    replicas: Annotated[
        int, typer.Option(min=1, help="Trials that share a process; on CUDA they train at once.")
    ] = 1,
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed.")] = "32-true",
    accelerator: Annotated[str, typer.Option(help="Of replicas: cpu, cuda or auto.")] = "cpu",
) -> None:
    """Search the space of a recipe; more workers may join, here and on other machines."""
    try:
        from noisin.lab import best, spent, workers
        from noisin.lab import sweep as sweeps
        from noisin.lab import trials as trial_store
    except ImportError as error:
        raise LabError(f'a sweep needs Optuna: pip install "noisin[lab]"; {error}') from None
    layout = Layout(precision=precision, accelerator=accelerator)
    shared = layout.shared(replicas)
    if shared is None and accelerator != "cpu":
        raise LabError(f"--accelerator is for --replicas above 1; got {accelerator!r}")
    decides = layout_of(1, precision, shared or "cpu")  # pyright: ignore[reportArgumentType]
    chosen = recipe.load(name, changes).swept(only or None)
    assert chosen.search is not None
    if sampler not in get_args(sweeps.Sampler):
        raise LabError(f"--sampler must be random or tpe; got {sampler!r}")
    row = chosen.rows[chosen.search.row]
    outline(chosen, chosen.search.row, row)
    corpus = tasks.load(row.config, data_dir, say)
    tell_skipped(corpus)
    digest = corpus.digest()
    folder = out / sweeps.study_name(chosen, digest, sampler, seed, decides)
    make_folder(folder)
    found = sweeps.Sweep(
        *(chosen, digest, folder, storage or str(folder / "journal.log"), trials),
        *(sampler, prune, seed, grace, decides),  # pyright: ignore[reportArgumentType]
    )
    trial_store.check(found.storage)
    view = sweeps.Worker(found, corpus)
    if known is not None:
        best.take_up(found, view.study, spent.read_one(known))
    say(f"{found.study}: {workers.left(found, view.trials())} of {trials} trials to do")
    if workers.left(found, view.trials()):
        how = {"processes": processes, "data_dir": data_dir, "console": console}
        how |= {"replicas": replicas, "accelerator": shared or "cpu", "precision": precision}
        workers.do(found, **how, ended=lambda: best.write_spent(found, view.trials()))
    done = view.trials()
    trial_store.close(view.storage)
    _print_trials(done)
    best.write_spent(found, done)
    path = best.write(found, done)
    options = "" if precision == "32-true" else f" --precision {precision}"
    say(f"best: {path}; noisin run {path}{options} trains it on every seed")


def _print_trials(trials: list[Any], count: int = 5) -> None:
    """Print the best of the finished trials, and how all ended."""
    scored = sorted((t for t in trials if sweep_state(t) == "finished"), key=lambda t: t.value)
    for one in scored[:count]:
        settings = ", ".join(f"{name} {value}" for name, value in one.params.items())
        say(f"trial {one.number}: valid {one.value:.4f}; {settings}")
    states = Counter(sweep_state(one) for one in trials)
    say(", ".join(f"{count} {state}" for state, count in sorted(states.items())))


def sweep_state(trial: Any) -> str:
    """Return in a word how a trial ended."""
    if trial.user_attrs.get("lost"):
        return "lost"
    words = {"COMPLETE": "finished", "FAIL": "failed"}
    return words.get(trial.state.name, str(trial.state.name).lower())
