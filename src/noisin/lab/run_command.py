"""``noisin run``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from noisin.lab import (
    LabError,
    averages,
    baselines,
    evaluate,
    jobs,
    recipe,
    report,
    tasks,
    together,
)
from noisin.lab.baselines import Baseline
from noisin.lab.config import CorpusKey, corpus_key
from noisin.lab.files import cores, make_folder
from noisin.lab.observations import Observations
from noisin.lab.ranks import FabricRanks, Layout, Ranks, check_cut
from noisin.lab.records import Record
from noisin.lab.rows import Recipe
from noisin.lab.samples import LENGTHS, draw_sample
from noisin.lab.task import Corpus
from noisin.lab.terminal import (
    AsJson,
    Changes,
    DataDir,
    Folder,
    Only,
    RecipeName,
    console,
    of_row,
    outline,
    print_json,
    print_table,
    refusing,
    say,
    tell_skipped,
)
from noisin.lab.train import Job


@refusing
def run(
    name: RecipeName = "",
    only: Only = [],
    seeds: Annotated[
        list[int], typer.Option("--seed", help="Seed to run, in place of the recipe's; repeatable.")
    ] = [],
    changes: Changes = [],
    data_dir: DataDir = None,
    out: Folder = Path("runs"),
    processes: Annotated[
        int, typer.Option(min=1, help="Runs at a time, one thread each.")
    ] = cores(),
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves to watch while training.")
    ] = False,
    devices: Annotated[
        int,
        typer.Option(min=1, help="Processes a run here, which share its batches; runs in turn."),
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines a run.")] = 1,
    strategy: Annotated[str, typer.Option(help="ddp: gradients are averaged.")] = "ddp",
    precision: Annotated[
        str, typer.Option(help="32-true or bf16-mixed; runs in turn.")
    ] = "32-true",
    accelerator: Annotated[str, typer.Option(help="cpu, cuda or auto; runs in turn.")] = "cpu",
    replicas: Annotated[
        int, typer.Option(min=1, help="Runs that share a process; on CUDA they train at once.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Train the rows of a recipe and report. What is done is not done again."""
    changes = [*changes, f"seeds={seeds}"] if seeds else changes
    layout = Layout(devices, nodes, strategy, precision, accelerator)
    layout.check_started()
    shared = layout.shared(replicas)
    ranks = Ranks() if layout.plain or shared else FabricRanks(layout)
    ranks.accelerator = shared or ranks.accelerator
    console.quiet = as_json or not ranks.first
    found = ranks.on_all(lambda: _planned(name, only, changes, data_dir, out, tensorboard, ranks))
    hashes = [job.hash for job in found.jobs]
    ranks.check_same(hashes, "recipe, data and settings")
    ranks.from_first(lambda: make_folder(found.folder))
    runs = averages.runs(found.jobs, found.table)
    waiting = ranks.from_first(lambda: len(runs) - len(jobs.finished(runs)))
    say(f"{found.recipe.title}: {len(runs)} runs, {waiting} to do")
    if layout.plain or shared:
        how = {"processes": processes, "data_dir": data_dir, "console": console}
        jobs.do(runs, **how, replicas=replicas, accelerator=shared or "cpu")
    else:
        together.do(runs, found.corpora, ranks, console)
    if ranks.first:
        averages.do(found.jobs, found.corpora, say)
        bases = _baselines(found.corpora.values(), found.folder)
        done = jobs.finished(found.table)
        _finish(done, found.folder, data_dir, bases)
        if as_json:
            print_json(report.by_row(done))
        _tell_diverged(jobs.finished(runs))


@dataclass(frozen=True)
class _Plan:
    """What a command is to do.

    Args:
        recipe: with the rows that were chosen.
        corpora: by ``corpus_key``.
        folder: of the runs.
        jobs: the runs.
        table: the runs of all rows, which the report shows where they are done.
    """

    recipe: Recipe
    corpora: dict[CorpusKey, Corpus]
    folder: Path
    jobs: list[Job]
    table: list[Job]


def _planned(
    name: str,
    only: list[str],
    changes: list[str],
    data_dir: Path | None,
    out: Path,
    tensorboard: bool,
    ranks: Ranks,
) -> _Plan:
    """Read recipe and corpora, and refuse what does not fit before anything is written."""
    name = name or recipe.default(changes)
    chosen = recipe.load(name, changes, only)
    one_noise = any(change.startswith("noise=") for change in changes)
    whole = chosen if one_noise else recipe.load(name, changes)
    for row, settings in chosen.rows.items():
        outline(chosen, row, settings)
    corpora = _corpora(chosen, data_dir)
    for row, settings in chosen.rows.items():
        with of_row(chosen, row):
            tasks.check(settings.config, corpora[corpus_key(settings.config)])
            check_cut(settings.config, ranks.size)
    layout = "-".join(ranks.decides).replace(" ", "-")
    folder = out / "-".join(filter(None, (chosen.name, chosen.variant, layout)))
    digests = {key: corpus.digest() for key, corpus in corpora.items()}
    table = jobs.plan(whole.on(digests), folder, digests, decides=ranks.decides)
    planned = jobs.plan(chosen, folder, digests, tensorboard, ranks.decides)
    return _Plan(chosen, corpora, folder, planned, table)


def _corpora(chosen: Recipe, data_dir: Path | None) -> dict[CorpusKey, Corpus]:
    """Load every corpus of a recipe, and say which files could not be read."""
    found = {}
    for row in chosen.rows.values():
        key = corpus_key(row.config)
        if key not in found:
            found[key] = tasks.load(row.config, data_dir, say)
            tell_skipped(found[key])
    return found


def _baselines(corpora: Iterable[Corpus], folder: Path) -> dict[str, list[Baseline]]:
    """Score series without a network, and leave the scores beside the runs."""
    series = [one for one in corpora if isinstance(one, Observations)]
    found = {one.digest(): baselines.of_series(one, say) for one in series}
    if any(found.values()):
        every = itertools.chain(*found.values())
        baselines.write(every, folder / f"series{baselines.ENDING}")
    return found


def _finish(
    done: list[Record],
    folder: Path,
    data_dir: Path | None,
    bases: Mapping[str, list[Baseline]],
) -> None:
    """Print the table, write samples and the report."""
    tables = report.sections(done)
    for heading, rows in tables.items():
        if len(tables) > 1:
            say(heading)
        print_table(rows)
    rows = report.by_row(done)
    for one in itertools.chain(*bases.values()):
        scores = ", ".join(f"{split} {score:.3f}" for split, score in one.scores.items())
        say(f"{one.label}, no network: {scores}")
    pieces = []
    for name in report.worth_hearing(rows):
        best = min((r for r in rows[name] if r.status == "finished"), key=lambda r: r.best)
        run = evaluate.load(folder / f"{best.row}-{best.seed}-{best.hash}", data_dir)
        stem = folder / "samples" / name
        pieces.append(draw_sample(run, stem, LENGTHS, seed=1))
    report.write(done, folder / "report.html", pieces=pieces, baselines=bases)
    say(f"report: {folder / 'report.html'}")
    if pieces:
        say(f"samples: {folder / 'samples'}")


def _tell_diverged(done: list[Record]) -> None:
    """Refuse to call a command done of which runs diverged."""
    diverged = [record for record in done if record.status == "diverged"]
    if diverged:
        raise LabError("\n".join(f"{r.row}, seed {r.seed} diverged: {r.reason}" for r in diverged))
