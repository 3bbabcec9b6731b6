"""What the commands share: options, messages, tables, refusals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import noisin
from noisin.lab import LabError, evaluate, jobs, report, tasks
from noisin.lab.ranks import Elsewhere
from noisin.lab.records import Record
from noisin.lab.rows import Recipe, Row
from noisin.lab.task import Corpus

# a pipe has no width of its own; a closed output (>&-) is None
SHOWS = sys.stdout is not None and sys.stdout.isatty()
WIDE = None if SHOWS or "COLUMNS" in os.environ else 160
console = Console(highlight=False, emoji=False, width=WIDE)
errors = Console(stderr=True, highlight=False, emoji=False)
shown = {"tracebacks": False}  # --debug

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
Samples = Annotated[
    list[int],
    typer.Option("--samples", help="Average K draws of the noise; may be repeated for several K."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, nothing else.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the draws.")]


def refusing(command: Callable[..., None]) -> Callable[..., None]:
    """Turn bad input into one message and exit code 2, an interruption into 130."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Elsewhere:
            raise typer.Exit(2) from None
        except LabError as error:
            if shown["tracebacks"]:
                errors.print_exception()
            errors.print(f"noisin: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except RuntimeError as error:  # torch has no class of its own for this one
            if not any(words in str(error) for words in ("allocate memory", "size calculation")):
                raise
            errors.print(f"noisin: there must be memory for it; {error}", markup=False)
            raise typer.Exit(2) from None
        except (jobs.Interrupted, KeyboardInterrupt):
            if not console.quiet:  # the first of several processes says it
                errors.print("noisin: stopped; the same command goes on from here", markup=False)
            raise typer.Exit(130) from None

    return wrapped


def examples(*lines: str) -> str:
    """Return what a command's help ends with."""
    return "\n\n".join(("Examples:", *lines))


def tell_version(wanted: bool) -> None:
    """Print the version and end, if it is wanted."""
    if wanted:
        say(noisin.__version__)
        raise typer.Exit


def encoded(value: Any) -> bytes:
    """Return JSON; numbers that are not finite are strings, as in records."""
    return to_json(value, inf_nan_mode="strings")


def dump(value: Any) -> None:
    """Print JSON."""
    print(encoded(value).decode())


def print_json(rows: dict[str, list[Record]]) -> None:
    """Print the table of some rows for programs: a list of rows, with the scores of each seed."""
    found = [
        {
            "row": name,
            "label": runs[0].label,
            "noise": runs[0].config.noise,
            "metric": runs[0].metric,
            "runs": [
                {"seed": run.seed, "status": run.status, "hash": run.hash, "scores": run.scores}
                for run in runs
            ],
        }
        for name, runs in rows.items()
    ]
    dump(found)


def outline(chosen: Recipe, name: str, row: Row, corpus: Corpus | None = None) -> tasks.AnyModel:
    """Return the outline of a row's model; noise that cannot act is refused before any run."""
    with of_row(chosen, name):
        return tasks.outline(row.config, corpus)


@contextmanager
def of_row(chosen: Recipe, name: str) -> Iterator[None]:
    """Name the row in what is refused."""
    try:
        yield
    except LabError as error:
        raise LabError(f"recipe {chosen.name}, row {name}: {error}") from None


def say(text: str) -> None:
    """Print a line."""
    console.print(text, markup=False, soft_wrap=True)


def tell_skipped(corpus: Corpus) -> None:
    """Say which files or columns of a corpus could not be used, and why."""
    for skipped in corpus.skipped:
        errors.print(f"skipped {skipped}", style="yellow", markup=False, soft_wrap=True)


def print_table(rows: dict[str, list[Record]]) -> None:
    """Print the table of some rows, and what they are."""
    lines = report.summary(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", overflow="fold")  # numbers are never cut
    for name in ("train", "valid", "test", "difference", "seeds", "epochs", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            escape(line.label),
            *(str(line.scores[split] or "-") for split in ("train", "valid", "test")),
            line.paired or "-",
            str(line.seeds),
            f"{line.epochs.mean:.0f}{'*' if line.limited else ''}" if line.epochs else "-",
            f"{line.seconds.mean:.0f}" if line.seconds else "-",
        )
    console.print(table)
    for line in lines:
        compared = f", compared with {line.baseline}" if line.baseline else ""
        say("; ".join(filter(None, (f"{line.label}: {line.noise}", line.settings))) + compared)
    units = tasks.UNITS[next(iter(rows.values()))[0].metric]
    say(
        f"{units}; mean ± standard deviation over seeds; difference in test, seed by seed, "
        "(n) over n of them; * some run reached the last epoch allowed"
    )


def tell_intervals(
    runs: Sequence[evaluate.Run],
    split: str,
    samples: Sequence[int],
    levels: Sequence[float],
    seed: int,
    as_json: bool,
) -> None:
    """Print how the prediction intervals of series hold, noise off and averaged over draws.

    Without ``samples`` as many draws are averaged as the largest test average of the runs takes.
    """
    configs = [run.record.config for run in runs]
    if not samples and all(config.noise != "none" for config in configs):
        samples = (max(configs[0].test_samples),)
    found = evaluate.intervals(runs, split, samples, levels, seed)
    if as_json:
        told = {
            k: {name: [asdict(c) for c in own] for name, own in of.items()}
            for k, of in found.items()
        }
        dump(told)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (split, "target", "level", "covered", "mean width"):
        table.add_column(column)
    for k, targets in found.items():
        how = f"average of {k} draws" if k else "noise off"
        for name, own in targets.items():
            for one in own:
                numbers = (f"{one.level:g}", f"{one.coverage:.3f}", f"{one.width:.5g}")
                table.add_row(how, escape(name), *numbers)
    console.print(table)
