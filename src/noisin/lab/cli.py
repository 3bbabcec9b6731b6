"""The command ``noisin``."""

from __future__ import annotations

import signal
import traceback
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from noisin.explanation import explain as explain_model
from noisin.lab import (
    LabError,
    baselines,
    bench,
    data,
    dynamics,
    evaluate,
    markdown,
    recipe,
    records,
    report,
    spent,
    tasks,
    together,
)
from noisin.lab.config import DECIDING, corpus_key, propagates
from noisin.lab.export_command import export
from noisin.lab.files import write_aside
from noisin.lab.forecasts import LEVELS
from noisin.lab.run_command import run
from noisin.lab.samples import LENGTHS, draw_sample
from noisin.lab.store import SPLITS
from noisin.lab.sweep_command import sweep
from noisin.lab.terminal import (
    AsJson,
    Changes,
    DataDir,
    Only,
    RecipeName,
    RunPaths,
    Samples,
    Seed,
    console,
    dump,
    encoded,
    errors,
    examples,
    outline,
    print_json,
    print_table,
    refusing,
    say,
    shown,
    tell_intervals,
    tell_skipped,
    tell_version,
)
from noisin.lab.words import text_of

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify corpora.")
app.add_typer(data_app, name="data")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Regularize recurrent networks with noise: train, compare, report."""
    shown["tracebacks"] = debug
    console.quiet = False  # a command before it in this process may have been asked for JSON


app.command(
    epilog=examples(
        "noisin run",
        "noisin run ptb --only noisin --seed 1",
        "noisin run --set data=FOLDER --set hidden_size=300",
        "noisin run --set task=words --set data=novel.txt",
    )
)(run)
app.command(
    epilog=examples(
        "noisin sweep ognawala-bayer --only mns --trials 20",
        "noisin sweep mine.toml --sampler tpe --storage postgresql://me@host/sweeps",
    )
)(sweep)
app.command(epilog=examples("noisin export runs/bach/noisin-1-* my-model --license mit"))(export)


@app.command(
    name="evaluate",
    epilog=examples(
        "noisin evaluate runs/bach/noisin-1-* --samples 5 --samples 25",
        "noisin evaluate runs/bach/noisin-*  (averages the models)",
    ),
)
@refusing
def evaluate_command(
    runs: RunPaths,
    samples: Samples = [],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    seed: Seed = 0,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    log_probs: Annotated[
        Path | None,
        typer.Option("--log-probs", help="JSON file of every token's own."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The plain network, of a run trained by moments.")
    ] = False,
    levels: Annotated[
        list[float],
        typer.Option("--level", help="Of --intervals, within (0, 1); may be repeated."),
    ] = list(LEVELS),
    intervals: Annotated[
        bool, typer.Option("--intervals", help="How the prediction intervals of series hold.")
    ] = False,
) -> None:
    """Score a run, or the average of several; with --samples also averaged over draws."""
    if split not in SPLITS:
        raise LabError(f"--split must be one of {', '.join(SPLITS)}; got {split!r}")
    if any(k < 1 for k in samples) or any(max(samples) % k for k in samples):
        raise LabError(f"--samples must be >= 1, and divide the largest of them; got {samples}")
    if log_probs is not None and len(runs) > 1:
        raise LabError(f"--log-probs takes one run, got {len(runs)}")
    if sum((intervals, plain, log_probs is not None)) > 1:
        raise LabError(
            "--intervals, --plain and --log-probs stand without each other; got several of them"
        )
    if not all(0 < level < 1 for level in levels):
        raise LabError(f"--level must be within (0, 1), got {levels}")
    if levels != list(LEVELS) and not intervals:
        raise LabError(f"--level is of --intervals, which is not there; got {levels}")
    loaded = evaluate.load_all(runs, data_dir)
    if plain and not any(propagates(run.record.config.noise) for run in loaded):
        raise LabError(
            f"--plain is for runs trained by moments, got noise {loaded[0].record.config.noise}"
        )
    if intervals:
        tell_intervals(loaded, split, samples, levels, seed, as_json)
        return
    if plain and samples:
        raise LabError(f"--plain has no noise to draw; got --samples {samples}")
    scores = evaluate.evaluate(loaded, split, samples, seed, plain)
    if log_probs is not None:
        with write_aside(log_probs) as file:
            file.write(encoded(evaluate.log_probabilities(loaded[0], split)))
        errors.print(f"log-probabilities: {log_probs}", markup=False, soft_wrap=True)
    if as_json:
        dump(scores)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = list(dict.fromkeys(name for score in scores.values() for name in score))
    for column in (split, *columns):
        table.add_column(escape(column))
    for k, score in scores.items():
        how = "moments" if propagates(loaded[0].record.config.noise) and not plain else "noise off"
        how = (f"average of {k} draws" if k > 1 else "one draw") if k else how
        table.add_row(how, *(f"{score[name]:.4f}" if name in score else "" for name in columns))
    console.print(table)
    if len(loaded) > 1:
        console.print(f"average of the predictive distributions of {len(loaded)} runs")


@app.command(epilog=examples("noisin sample runs/bach/noisin-1-* --length 200 --temperature 0.9"))
@refusing
def sample(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    length: Annotated[
        int | None, typer.Option(min=1, help="Quarter notes, tokens, or steps.", show_default=False)
    ] = None,
    seed: Seed = 1,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Below 1 what is likely comes more often.")
    ] = 1.0,
    prompt: Annotated[str, typer.Option(help="Words to start from.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write, without ending.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Draw a piece as MIDI and WAV, or text, from a run; of series, forecasts of the test part.

    Beside the text a page shows the probability that the model gave each word.
    """
    run = evaluate.load(path, data_dir)
    stem = path / f"sample-{seed}" if out is None else out
    if not stem.name or stem.is_dir():
        raise LabError(f"--out must be the name of a file without its ending, got {out}")
    lengths = LENGTHS if length is None else dict.fromkeys(LENGTHS, length)
    piece = draw_sample(run, stem, lengths, seed, temperature, prompt)
    if piece.tokens:
        console.print(text_of(piece.tokens), markup=False, soft_wrap=True)
    say(", ".join(map(str, piece.files)))


@app.command(
    name="report",
    epilog=examples(
        "noisin report runs/bach other/runs --out page.html", "noisin report results --json"
    ),
)
@refusing
def report_command(
    paths: Annotated[list[Path], typer.Argument(help="Folders of runs, or files of records.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    text: Annotated[
        Path | None, typer.Option("--markdown", help="File for the tables alone, as Markdown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about runs, searches and baselines."""
    found, trials, bases = records.read(paths), spent.read(paths), baselines.read(paths)
    if as_json:
        print_json(report.by_row(found))
        return
    for heading, rows in report.sections(found).items():
        console.print(heading, style="bold", markup=False)
        print_table(rows)
    report.write(found, out, spent=trials, baselines=bases)
    say(f"report: {out}")
    if text is not None:
        markdown.write(found, text, trials, bases)
        say(f"tables: {text}, their figures in {text.parent / 'figures'}")


@app.command(epilog=examples("noisin explain noisin --only ptb-medium"))
@refusing
def explain(
    name: RecipeName = "",
    only: Only = [],
    changes: Changes = [],
    data_dir: DataDir = None,
) -> None:
    """Say what the rows of a recipe are: model, sites, paths, parameters, memory."""
    chosen = recipe.load(name or recipe.default(changes), changes, only)
    configs = [settings.config for settings in chosen.rows.values()]
    own = {
        corpus_key(config): config
        for config in configs
        if config.data not in data.NAMES or getattr(config, "min_count", 1) > 1
    }
    corpora = {key: tasks.load(config, data_dir, say) for key, config in own.items()}
    for row, settings in chosen.rows.items():
        config = settings.config
        model = outline(chosen, row, settings, corpora.get(corpus_key(config)))
        parameters = sum(p.numel() for p in model.parameters())
        sequences = config.batch_size * config.train_samples
        table = explain_model(model, time=tasks.steps(config), batch=sequences)
        weights, activations = tasks.memory(config, model)
        noise = sum(line.memory for line in table)
        say(f"{row}: {model.rnn}, {model.head.out_features} outputs")
        say(str(table))
        say(
            f"  {parameters:,} parameters; expected memory of a training step: weights, gradients "
            f"and optimizer {_mib(weights)}, activations {_mib(activations)}, "
            f"noise {_mib(noise)}"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


@app.command(name="bench", epilog=examples("noisin bench --only moments"))
@refusing
def bench_command(
    only: Annotated[
        list[str], typer.Option("--only", help=f"{', '.join(bench.PARTS)}; may be repeated.")
    ] = [],
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are taken over so many.")] = 11,
) -> None:
    """Time noisy layers on this machine beside torch's plain ones, in turn, with peak memory."""
    if unknown := sorted(set(only) - set(bench.PARTS)):
        raise LabError(f"--only must be one of {', '.join(bench.PARTS)}; got {', '.join(unknown)}")
    with bench.running(threads):
        for line in bench.lines(only or bench.PARTS, rounds):
            say(line)


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
        origin = "computed at each use" if name in dynamics.EXAMPLES else origin
        table.add_row(name, escape(str(path or origin)))
    console.print(table)


@data_app.command(name="fetch")
@refusing
def data_fetch(names: Annotated[list[str], typer.Argument(help="Corpora.")]) -> None:
    """Download corpora into the user's cache."""
    for name in names:
        say(f"{name}: {data.fetch(name, say) or 'computed at each use'}")


@data_app.command(name="verify")
@refusing
def data_verify(
    names: Annotated[list[str], typer.Argument(help="Corpora.")], data_dir: DataDir = None
) -> None:
    """Count a corpus again, and compare with what is published."""
    for name in names:
        say(f"{name}: {data.verify(name, data_dir, say)}")


@data_app.command(
    name="baselines",
    epilog=examples(
        "noisin data baselines jsb-chorales",
        "noisin data baselines sales.csv --set targets=sold --set head=poisson --set horizon=7",
    ),
)
@refusing
def data_baselines(
    names: Annotated[
        list[str],
        typer.Argument(help="Corpora of music or series, folders of MIDI files, or tables."),
    ],
    changes: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help=f"What decides a corpus of series: {', '.join(DECIDING['series'])}.",
        ),
    ] = [],
    data_dir: DataDir = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; it must end in .baselines.json.")
    ] = None,
) -> None:
    """Score music or series without a network, in nats a step; series as their recipe says."""
    if out is not None and not out.name.endswith(baselines.ENDING):
        raise LabError(f"--out must end in {baselines.ENDING}, got {out}")
    found = []
    for config in [baselines.settings(name, changes) for name in names]:
        corpus = tasks.load(config, data_dir, say)
        tell_skipped(corpus)
        found += baselines.of(corpus, say)
    for one in found:
        scores = ", ".join(f"{split} {score:.3f}" for split, score in one.scores.items())
        say(f"{one.data}, {one.label}: {scores}")
    if out is not None:
        baselines.write(found, out)
        say(f"baselines: {out}")


def main() -> None:
    """Run the command; an end by SIGTERM is an interruption."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except SystemExit as end:
        together.leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except BaseException as error:
        if shown["tracebacks"]:
            traceback.print_exc()
        else:
            said = f"{type(error).__name__}: {error}"
            errors.print(f"noisin: {said}; --debug shows where", style="red", markup=False)
        together.leave(1)
        raise SystemExit(1) from None
