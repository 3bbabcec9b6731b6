"""``noisin run``."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping
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
    records,
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
from noisin.lab.report import Piece
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
        undrawn = _finish(done, found, bases)
        if as_json:
            print_json(report.by_row(done))
        _tell_failed(jobs.finished(runs), undrawn)


@dataclass(frozen=True)
class _Plan:
    """What a command is to do.

    Args:
        recipe: with the rows that were chosen.
        corpora: by ``corpus_key``.
        folder: of the runs.
        jobs: the runs.
        table: the runs of all rows whose corpus is loaded, or known from runs that are done; the
            report shows those that are.
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
    baselines.read([folder])  # refused now, not after all runs
    digests = {key: corpus.digest() for key, corpus in corpora.items()}
    planned = jobs.plan(chosen, folder, digests, tensorboard, ranks.decides)
    digests |= _known(whole, folder, digests)
    table = jobs.plan(whole.on(digests), folder, digests, decides=ranks.decides)
    return _Plan(chosen, corpora, folder, planned, table)


def _known(whole: Recipe, folder: Path, loaded: Container[CorpusKey]) -> dict[CorpusKey, str]:
    """Return the sha256 of corpora that are not loaded, by the last run on each."""
    keys = {corpus_key(row.config) for row in whole.rows.values()}
    missing = {key for key in keys if key not in loaded}
    paths = folder.glob("*/record.json") if missing else ()
    found = {}
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        record = records.read([path])[0]
        found[corpus_key(record.config)] = record.corpus
    return {key: found[key] for key in missing if key in found}


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
    """Score series without a network, and leave the scores beside the runs, with those there."""
    series = [one for one in corpora if isinstance(one, Observations)]
    found = {one.digest(): baselines.of_series(one, say) for one in series}
    known = baselines.read([folder])
    for corpus, own in found.items():
        both = {one.label: one for one in (*known.get(corpus, ()), *own)}
        known[corpus] = [*both.values()]
    if any(found.values()):
        every = itertools.chain(*known.values())
        baselines.write(every, folder / f"series{baselines.ENDING}")
    return known


def _finish(done: list[Record], found: _Plan, bases: Mapping[str, list[Baseline]]) -> list[str]:
    """Print the table, write samples and the report; return what could not be drawn, and why."""
    tables = report.sections(done)
    for heading, rows in tables.items():
        if len(tables) > 1:
            say(heading)
        print_table(rows)
        for one in bases.get(next(iter(rows.values()))[0].corpus, ()):
            scores = ", ".join(f"{split} {score:.3f}" for split, score in one.scores.items())
            say(f"{one.label}, no network: {scores}")
    pieces, undrawn = _samples(done, found)
    report.write(done, found.folder / "report.html", pieces=pieces, baselines=bases)
    say(f"report: {found.folder / 'report.html'}")
    if pieces:
        say(f"samples: {found.folder / 'samples'}")
    return undrawn


def _samples(done: list[Record], found: _Plan) -> tuple[list[Piece], list[str]]:
    """Draw samples of the best rows on the corpora that are loaded."""
    corpora = {corpus.digest(): corpus for corpus in found.corpora.values()}
    rows = report.by_row([record for record in done if record.corpus in corpora])
    pieces, undrawn = [], []
    for name in report.worth_hearing(rows):
        best = min((r for r in rows[name] if r.status == "finished"), key=lambda r: r.best)
        path = found.folder / f"{best.row}-{best.seed}-{best.hash}"
        try:
            run = evaluate.load(path, corpus=corpora[best.corpus])
            pieces.append(draw_sample(run, found.folder / "samples" / name, LENGTHS, seed=1))
        except LabError as error:
            undrawn.append(f"no sample of {name}: {error}")
    return pieces, undrawn


def _tell_failed(done: list[Record], undrawn: list[str]) -> None:
    """Refuse to call a command done of which runs diverged, or samples could not be drawn."""
    diverged = [
        f"{record.row}, seed {record.seed} diverged: {record.reason}"
        for record in done
        if record.status == "diverged"
    ]
    if failed := [*diverged, *undrawn]:
        raise LabError("\n".join(failed))
