"""The command ``noisin``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from noisin.lab import LabError, data, evaluate, jobs, recipe, records, report, sound
from noisin.lab.data import Corpus
from noisin.lab.files import make_folder, write_aside
from noisin.lab.music import MusicModel
from noisin.lab.recipe import Recipe
from noisin.lab.records import Record
from noisin.lab.report import Piece
from noisin.surgery import explain as explain_model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Regularize recurrent networks with noise: train, compare, report.",
)
data_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify corpora.")
app.add_typer(data_app, name="data")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder with corpus files.", show_default=False)
]
RecipeName = Annotated[str, typer.Argument(help="Name of a recipe that ships, or a TOML file.")]
Only = Annotated[list[str], typer.Option("--only", help="Row to do; may be repeated.")]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every row.")
]
Folder = Annotated[Path, typer.Option("--out", help="Folder for runs and reports.")]
RunPaths = Annotated[list[Path], typer.Argument(help="Folders of runs.")]
Samples = Annotated[list[int], typer.Option("--samples", help="Average K draws of the noise.")]
STEPS = 48  # of the samples in a report, in quarter notes


def refusing(command: Callable[..., None]) -> Callable[..., None]:
    """Turn bad input into one message and exit code 2, an interruption into 130."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except LabError as error:
            errors.print(f"noisin: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except (jobs.Interrupted, KeyboardInterrupt):
            errors.print("noisin: stopped; the same command goes on from here", markup=False)
            raise typer.Exit(130) from None

    return wrapped


@app.command()
@refusing
def run(
    name: RecipeName = "bach",
    only: Only = [],  # noqa: B006 - typer reads the default and never changes it
    changes: Changes = [],  # noqa: B006
    data_dir: DataDir = None,
    out: Folder = Path("runs"),
    processes: Annotated[
        int, typer.Option(min=1, help="Runs at a time, one thread each.")
    ] = jobs.processes_by_default(),
) -> None:
    """Train the rows of a recipe and report. What is done is not done again."""
    chosen = recipe.load(name, changes, only)
    corpora = _corpora(chosen, data_dir)
    _check_models(chosen)
    folder = out / chosen.name
    make_folder(folder)
    planned = jobs.plan(chosen, out, {name: corpus.digest() for name, corpus in corpora.items()})
    waiting = len(planned) - len(jobs.finished(planned))
    _say(f"{chosen.title}: {len(planned)} runs, {waiting} to do")
    done = jobs.do(planned, processes=processes, data_dir=data_dir, console=console)
    _finish(chosen, done, {job.hash: job.path for job in planned}, folder)
    diverged = [record for record in done if record.status == "diverged"]
    if diverged:
        raise LabError("\n".join(f"{r.row}, seed {r.seed} diverged: {r.reason}" for r in diverged))


def _corpora(chosen: Recipe, data_dir: Path | None) -> dict[str, Corpus]:
    """Load every corpus of a recipe, and say which files could not be read."""
    found = {}
    for row in chosen.rows.values():
        if row.config.data not in found:
            found[row.config.data] = data.load(row.config.data, data_dir, _say)
            for skipped in found[row.config.data].skipped:
                errors.print(f"skipped {skipped}", style="yellow", markup=False, soft_wrap=True)
    return found


def _check_models(chosen: Recipe) -> None:
    """Build every model once, so that noise that cannot act is refused before any run."""
    for name, row in chosen.rows.items():
        try:
            MusicModel(row.config)
        except ValueError as error:
            raise LabError(f"recipe {chosen.name}, row {name}: {error}") from None


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _finish(chosen: Recipe, done: list[Record], paths: dict[str, Path], folder: Path) -> None:
    """Print the table, write samples and the report."""
    rows = report.by_row(done)
    _print_table(rows, report.baseline_of(rows, chosen.baseline))
    pieces = []
    for name in _sampled(rows, chosen.baseline):
        best = min(
            (r for r in rows[name] if r.status == "finished"),
            key=lambda r: r.history[r.best_epoch - 1].valid.unscored,
        )
        roll = evaluate.sample(evaluate.load(paths[best.hash]), STEPS, seed=1)
        pieces.append(Piece(f"{best.label}, seed {best.seed}", roll))
        _write_sample(roll, folder / "samples" / name)
    report.write(
        done,
        folder / "report.html",
        titles={chosen.name: chosen.title},
        baselines={chosen.name: chosen.baseline},
        pieces=pieces,
    )
    _say(f"report: {folder / 'report.html'}")
    if pieces:
        _say(f"samples: {folder / 'samples'}")


def _sampled(rows: dict[str, list[Record]], baseline: str) -> list[str]:
    """Return the baseline and the row of noise that is best on validation."""
    scores = {
        name: min(
            (r.history[r.best_epoch - 1].valid.unscored for r in runs if r.status == "finished"),
            default=None,
        )
        for name, runs in rows.items()
    }
    finished = {name: score for name, score in scores.items() if score is not None}
    noisy = {name: score for name, score in finished.items() if name != baseline}
    best = [min(noisy, key=lambda name: noisy[name])] if noisy else []
    return [name for name in (baseline, *best) if name in finished]


def _write_sample(roll: data.Roll, stem: Path) -> None:
    sound.write_midi(roll, stem.with_suffix(".mid"))
    with write_aside(stem.with_suffix(".wav")) as file:
        file.write(sound.wav(roll))


def _print_table(rows: dict[str, list[Record]], baseline: str) -> None:
    lines = report.summary(rows, baseline)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for name in ("train", "valid", "test", "difference", "epochs", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.label,
            *(str(line.scores[split] or "-") for split in ("train", "valid", "test")),
            str(line.difference or "-"),
            f"{line.epochs.mean:.0f}" if line.epochs else "-",
            f"{line.seconds.mean:.0f}" if line.seconds else "-",
        )
    console.print(table)
    for line in lines:
        _say(f"{line.label}: {line.noise}")
    _say(
        "nats a step, first step of a piece unscored; mean ± standard deviation over seeds; "
        f"difference: test less that of {rows[baseline][0].label}, seed by seed"
    )


@app.command(name="evaluate")
@refusing
def evaluate_command(
    runs: RunPaths,
    samples: Samples = [],  # noqa: B006
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a run, or the average of several; with --samples also averaged over draws."""
    if split not in data.SPLITS:
        raise LabError(f"--split must be one of {', '.join(data.SPLITS)}; got {split!r}")
    if any(k < 1 for k in samples) or any(max(samples) % k for k in samples):
        raise LabError(f"--samples must be >= 1, and divide the largest of them; got {samples}")
    loaded = [evaluate.load(path) for path in runs]
    scores = evaluate.evaluate(loaded, split, samples, data_dir, seed=seed)
    if as_json:
        print(json.dumps({k: asdict(score) for k, score in scores.items()}))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (split, "unscored", "scored"):
        table.add_column(column)
    for k, score in scores.items():
        how = f"average of {k} draws" if k else "noise off"
        table.add_row(how, f"{score.unscored:.4f}", f"{score.scored:.4f}")
    console.print(table)


@app.command()
@refusing
def sample(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    steps: Annotated[int, typer.Option(min=1, help="Quarter notes.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Below 1 the keys are more certain.")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write, without ending.")
    ] = None,
) -> None:
    """Draw a piece from a run and write it as MIDI and WAV."""
    roll = evaluate.sample(evaluate.load(path), steps, seed, temperature)
    stem = out or path / f"sample-{seed}"
    _write_sample(roll, stem)
    _say(f"{stem.with_suffix('.mid')}, {stem.with_suffix('.wav')}")


@app.command(name="report")
@refusing
def report_command(
    paths: Annotated[list[Path], typer.Argument(help="Folders of runs, or files of records.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page about runs."""
    found = records.read(paths)
    for name in dict.fromkeys(record.recipe for record in found):
        rows = report.by_row([record for record in found if record.recipe == name])
        console.print(name, style="bold")
        _print_table(rows, report.baseline_of(rows))
    report.write(found, out)
    _say(f"report: {out}")


@app.command()
@refusing
def explain(
    name: RecipeName = "bach",
    only: Only = [],  # noqa: B006
    changes: Changes = [],  # noqa: B006
) -> None:
    """Say what the rows of a recipe are: model, sites, paths, parameters, memory."""
    chosen = recipe.load(name, changes, only)
    for row, settings in chosen.rows.items():
        config = settings.config
        try:
            model = MusicModel(config)
        except ValueError as error:
            raise LabError(f"recipe {chosen.name}, row {row}: {error}") from None
        parameters = sum(p.numel() for p in model.parameters())
        lines = explain_model(model)
        batch = config.batch_size * config.train_samples
        noise = sum(line.values for line in lines) * batch * config.chunk * 4
        activations = _activations(config) * batch * config.chunk * 4
        optimizer = {"adam": 4, "sgd": 3, "nesterov-rmsprop": 4}[config.optimizer]
        console.print(f"{row}: {model.rnn}", markup=False, soft_wrap=True)
        for line in lines:
            console.print(f"  {line}", markup=False, soft_wrap=True)
        console.print(
            f"  {parameters:,} parameters; expected memory of a training step: weights, gradients "
            f"and optimizer {_mib(parameters * 4 * optimizer)}, activations {_mib(activations)}, "
            f"noise {_mib(noise)} at most",
            soft_wrap=True,
        )


def _activations(config: recipe.Config) -> int:
    """Return about how many numbers a step of one sequence keeps for the backward pass."""
    gates = {"lstm": 4, "gru": 3}.get(config.cell, 1)
    inside = (2 * gates + 3) * config.hidden_size * config.num_layers
    return inside + 3 * data.KEYS


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


@data_app.command(name="list")
@refusing
def data_list(data_dir: DataDir = None) -> None:
    """List the corpora and where they are."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "file"):
        table.add_column(column, overflow="fold")
    for name in data.NAMES:
        path = data.locate(name, data_dir)
        origin = "read from music21 at first use" if name == "bach" else "not here; fetched at use"
        table.add_row(name, str(path or origin))
    console.print(table)


@data_app.command(name="fetch")
@refusing
def data_fetch(names: Annotated[list[str], typer.Argument(help="Corpora.")]) -> None:
    """Download corpora into the user's cache."""
    for name in names:
        path = data.locate(name) if name in data.BENCHMARKS else None
        if name == "bach":
            data.load(name, say=_say)
            path = data.locate(name)
        _say(f"{name}: {path or data.fetch(name, _say)}")


@data_app.command(name="verify")
@refusing
def data_verify(
    names: Annotated[list[str], typer.Argument(help="Corpora.")], data_dir: DataDir = None
) -> None:
    """Count pieces and steps again, and compare notes with what is published."""
    for name in names:
        corpus = data.load(name, data_dir, _say)
        counts = ", ".join(f"{s} {n} pieces {t} steps" for s, (n, t) in corpus.counts().items())
        _say(f"{name}: {counts}; sha256 {corpus.digest()}")
        if name in data.BENCHMARKS:
            known = data.BENCHMARKS[name]
            expected = dict(
                zip(data.SPLITS, zip(known.pieces, known.steps, strict=True), strict=True)
            )
            if corpus.counts() != expected:
                raise LabError(f"{name}: expected {expected}, got {corpus.counts()}")


def main() -> None:
    """Run the command."""
    torch.set_num_threads(1)
    sys.exit(app())
