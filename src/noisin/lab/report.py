"""Reports: tables and figures from records alone, as one HTML file with everything inside."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisin.lab import sound, tasks
from noisin.lab.baselines import Baseline
from noisin.lab.config import Config
from noisin.lab.files import write_aside
from noisin.lab.records import Record
from noisin.lab.rolls import Roll
from noisin.lab.spent import Spent

ACROSS = 4  # panels of a figure side by side
WORST = 1.35  # of the best score: what is worse is not told apart
POINT: dict[str, Any] = {"markersize": 3, "color": "#0072b2"}
COLORS = ("#444444", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its spread."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Return the mean and the standard deviation, or None of nothing."""
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 20 else 2
        spread = "" if math.isnan(self.std) else f"±{self.std:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Line:
    """A method in the table, over its seeds.

    Args:
        name: of the row.
        label: of the method.
        noise: its terms.
        settings: in what else it differs from other rows.
        note: what the recipe says of it.
        parameters: trained numbers.
        scores: of train, valid and test.
        scored: of test by the other convention of music, every step; None of words.
        difference: test less the baseline's test, seed by seed.
        baseline: label of the row that it is compared with.
        published: the paper's number and where it stands.
        epochs: epochs trained.
        limited: how many runs ended at the most epochs allowed, still improving or not.
        seconds: of training.
        diverged: reasons of the runs that diverged.
        monte_carlo: of test, by the number of draws.
    """

    name: str
    label: str
    noise: str
    settings: str
    note: str
    parameters: int
    scores: dict[str, Estimate | None]
    scored: Estimate | None
    difference: Estimate | None
    baseline: str
    published: str
    epochs: Estimate | None
    limited: int
    seconds: Estimate | None
    diverged: list[str]
    monte_carlo: dict[int, Estimate | None]


@dataclass(frozen=True)
class Piece:
    """A sample: a piece to look at and to hear, or text to read."""

    title: str
    roll: Roll | None = None
    text: str = ""


def by_row(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the runs of each row, seeds in order.

    Runs of one row under different settings are rows of their own, named by what differs.
    """
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: r.seed):
        settings = record.config.model_dump_json() + record.environment.layout
        rows.setdefault((record.row, settings), []).append(record)
    variants = {row: [r for (name, _), r in rows.items() if name == row] for row, _ in rows}
    named = {}
    for (row, _), runs in rows.items():
        several = variants[row]
        told = differing([other[0].config for other in several])
        parts = [f"{key}={getattr(runs[0].config, key)}" for key in told]
        extra = ", ".join(filter(None, [*parts, runs[0].environment.layout]))
        named[f"{row} ({extra})" if extra and len(several) > 1 else row] = runs
    return named


def worth_hearing(rows: dict[str, list[Record]]) -> list[str]:
    """Return the best row with noise, by validation, and before it the one it is compared with."""
    best = {
        name: min((r.best for r in runs if r.status == "finished"), default=math.inf)
        for name, runs in rows.items()
    }
    done = sorted((name for name, score in best.items() if score < math.inf), key=best.__getitem__)
    noisy = [name for name in done if rows[name][0].config.noise != "none"]
    if not noisy:
        return done[:1]
    base = rows[noisy[0]][0].baseline
    return [base, noisy[0]] if base in done and base != noisy[0] else noisy[:1]


def differing(configs: Sequence[Config]) -> list[str]:
    """Return the settings in which some configurations differ."""
    dumps = [config.model_dump() for config in configs]
    keys = dict.fromkeys(key for dump in dumps for key in dump)
    return [key for key in keys if any(d.get(key) != dumps[0].get(key) for d in dumps)]


def summary(rows: dict[str, list[Record]]) -> list[Line]:
    """Return the lines of a table, the runs of each row in one."""
    told = differing([runs[0].config for runs in rows.values()])
    settings = [key for key in told if key not in ("noise", "data")]
    return [_line(name, runs, rows.get(runs[0].baseline), settings) for name, runs in rows.items()]


def _line(
    name: str, runs: list[Record], base: list[Record] | None, settings: Sequence[str]
) -> Line:
    done = [run for run in runs if run.status == "finished"]
    first, config = runs[0], runs[0].config
    compared = base if base is not None and base is not runs else []
    reference = {run.seed: run.test for run in compared if "test" in run.scores}
    draws = sorted({k for run in done for k in run.monte_carlo})
    tested = [run for run in done if "test" in run.scores]  # the trials of a search are not
    own = {key: getattr(config, key) for key in settings if hasattr(config, key)}
    return Line(
        name=name,
        label=first.label if name == first.row else name,
        noise=config.noise,
        settings=", ".join(f"{key} {value}" for key, value in own.items()),
        note=first.note,
        parameters=first.parameters,
        scores={
            split: Estimate.of([r.scores[split][r.metric] for r in done if split in r.scores])
            for split in ("train", "valid", "test")
        },
        scored=Estimate.of(
            [r.scores["test"]["scored"] for r in tested if "scored" in r.scores["test"]]
        ),
        difference=Estimate.of([r.test - reference[r.seed] for r in tested if r.seed in reference]),
        baseline=compared[0].label if compared else "",
        published=f"{first.published.test} ({first.published.source})" if first.published else "",
        epochs=Estimate.of([len(run.history) for run in done]),
        limited=sum(len(run.history) == run.config.epochs for run in done),
        seconds=Estimate.of([run.seconds for run in done]),
        diverged=[f"seed {run.seed}: {run.reason}" for run in runs if run.status == "diverged"],
        monte_carlo={
            k: Estimate.of([r.monte_carlo[k][r.metric] for r in done if k in r.monte_carlo])
            for k in draws
        },
    )


def sections(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """Return the rows of each table by its heading: a recipe on a corpus."""
    tables: dict[str, list[Record]] = {}
    for record in records:
        own = {(r.corpus, r.config.data) for r in records if r.recipe == record.recipe}
        named = [corpus for corpus, data in own if data == record.config.data]
        which = (
            record.config.data
            if len(named) == 1
            else f"{record.config.data}, sha256 {record.corpus[:8]}"
        )
        heading = record.title if len(own) == 1 else f"{record.title} ({which})"
        tables.setdefault(heading, []).append(record)
    return {heading: by_row(found) for heading, found in tables.items()}


def write(
    records: Sequence[Record],
    path: Path,
    *,
    pieces: Sequence[Piece] = (),
    spent: Sequence[Spent] = (),
    baselines: Mapping[str, list[Baseline]] = {},
) -> None:
    """Write the report of all records, a section a table.

    Args:
        records: the runs.
        path: HTML file to write.
        pieces: samples to show and to play.
        spent: searches for the settings of rows.
        baselines: scores without a network, by corpus.
    """
    tables = []
    for heading, rows in sections(records).items():
        lines = summary(rows)
        runs = [run for group in rows.values() for run in group]
        tables.append(
            {
                "title": heading,
                "units": tasks.UNITS[runs[0].metric],
                "metric": runs[0].metric,
                "lines": lines,
                "published": any(line.published for line in lines),
                "draws": sorted({k for line in lines for k in line.monte_carlo}),
                "runs": runs,
                "environments": list(dict.fromkeys(_environment(run) for run in runs)),
                "curves": _svg(partial(draw_curves, rows), 2),
                "radius": _svg(partial(draw_radius, rows), 1),
                "baselines": baselines.get(runs[0].corpus, []) if lines[0].scored else [],
                **_searched(spent, rows),
            }
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("noisin.lab", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.jinja").render(
        sections=tables, pieces=[_shown(piece) for piece in pieces]
    )
    with write_aside(path) as file:
        file.write(page.encode())


def _searched(spent: Sequence[Spent], rows: dict[str, list[Record]]) -> dict[str, Any]:
    """Return what the page shows of the searches for the rows of a table."""
    known = {(run.recipe, run.row): run for group in rows.values() for run in group}
    own = [one for one in spent if (one.recipe, one.row) in known]
    lines = {known[one.recipe, one.row].label: str(one) for one in own}
    strong = [one for one in own if one.own]
    height = 2.6 * -(-len(strong) // ACROSS)
    drawn = [_svg(partial(draw_strength, strong), len(strong), height)] if strong else []
    return {"trials": lines, "strength": "".join(drawn)}


def draw_strength(spent: Sequence[Spent], *panels: Axes) -> None:
    """Draw the validation score of trials over the strength of the noise, a panel a method.

    Scores far above the best of all are triangles at the upper edge.
    """
    every = [t.valid for one in spent for t in one.trials if t.valid is not None]
    low, top = min(every, default=0.0), WORST * min(every, default=1.0)
    for axes, one in zip(panels, spent, strict=True):
        name = one.own[-1]
        done = [(t.settings[name], t.valid) for t in one.trials if t.valid is not None]
        inside = [pair for pair in done if pair[1] <= top]
        beyond = [strength for strength, valid in done if valid > top]
        axes.plot(*(zip(*inside, strict=True) if inside else ([], [])), "o", **POINT)
        axes.plot(beyond, [top] * len(beyond), "^", **POINT)
        values = [strength for strength, _ in done]
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
        axes.set(title=one.label, xlabel=name, ylim=(0.99 * low, 1.01 * top))
        axes.grid(alpha=0.3)


def _environment(run: Record) -> str:
    at = run.environment
    commit = f", commit {at.commit[:12]}{' (changed)' if at.dirty else ''}" if at.commit else ""
    return f"noisin {at.noisin}{commit}, torch {at.torch}, Python {at.python}, {at.machine}"


def _shown(piece: Piece) -> dict[str, str]:
    """Return what the page needs of a sample."""
    if piece.roll is None:
        return {"title": piece.title, "text": piece.text}
    return {
        "title": piece.title,
        "text": "",
        "roll": _svg(partial(draw_roll, piece.roll), 1, height=2.6),
        "wav": base64.b64encode(sound.wav(piece.roll)).decode(),
    }


def _svg(draw: Callable[..., None], panels: int, height: float = 3.6) -> str:
    """Return a figure as SVG text; more panels than a page is wide stand in rows."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "noisin", "font.size": 9}):
        figure = Figure(figsize=(9, height), layout="constrained")
        across = min(panels, ACROSS)
        grid = figure.subplots(-(-panels // across), across, squeeze=False).flat
        draw(*(axes for _, axes in zip(range(panels), grid, strict=False)))
        for axes in figure.axes[panels:]:
            axes.set_axis_off()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def draw_curves(rows: dict[str, list[Record]], valid: Axes, train: Axes) -> None:
    """Draw the validation score and the training objective over epochs, a thin line a seed."""
    for color, (name, runs) in zip(_colors(rows), rows.items(), strict=True):
        for index, run in enumerate(runs):
            label = name if index == 0 else None
            epochs = [epoch.epoch for epoch in run.history]
            line = {"color": color, "linewidth": 1, "alpha": 0.8}
            valid.plot(epochs, [run.valid(epoch) for epoch in epochs], label=label, **line)
            train.plot(epochs, [e.train for e in run.history], **line)
            if run.best_epoch:
                valid.plot(run.best_epoch, run.best, "o", color=color, markersize=4)
    every = [run for runs in rows.values() for run in runs]
    valid.set(title="validation (noise off)", xlabel="epoch", ylabel=tasks.UNITS[every[0].metric])
    train.set(title="training objective (noise on)", xlabel="epoch")
    for axes, values in (
        (valid, [run.valid(e.epoch) for run in every for e in run.history]),
        (train, [e.train for run in every for e in run.history]),
    ):
        axes.grid(alpha=0.3)
        if values:
            low, wide = min(values), 1.35 if every[0].metric == "unscored" else 2.5
            axes.set_ylim(0.98 * low, 1.02 * min(max(values), wide * low) + 1e-3)
    valid.legend(frameon=False)


def draw_radius(rows: dict[str, list[Record]], axes: Axes) -> None:
    """Draw the spectral radius of the candidate's recurrent weights, W, over epochs.

    Dashed, where variances are propagated, that of W ∘ W.
    """
    for color, (name, runs) in zip(_colors(rows), rows.items(), strict=True):
        for index, run in enumerate(runs):
            label = name if index == 0 else None
            radius = [_candidate_radius(epoch.spectral_radius[0]) for epoch in run.history]
            epochs = [epoch.epoch for epoch in run.history]
            line = {"color": color, "linewidth": 1, "alpha": 0.8}
            axes.plot(epochs, radius, label=label, **line)
            squared = [e.squared_radius for e in run.history if e.squared_radius]
            if squared:
                ends = [_candidate_radius(radii[0]) for radii in squared]
                axes.plot(epochs, ends, linestyle="dashed", **line)
                axes.set_yscale("log")  # the two are far apart
    axes.set(xlabel="epoch", ylabel="spectral radius")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _candidate_radius(gates: Sequence[float]) -> float:
    """Return the radius of g of an LSTM, n of a GRU, or the only one of an Elman RNN."""
    return gates[2] if len(gates) > 1 else gates[0]


def draw_roll(roll: Roll, axes: Axes) -> None:
    """Draw a piano roll: time to the right, pitch upwards."""
    notes = sound.notes_of(roll)
    for key, start, end in notes:
        axes.barh(key + 21, end - start - 0.08, left=start, height=0.8, color=COLORS[1])
    pitches = [key + 21 for key, _, _ in notes] or [60]
    axes.set(xlim=(0, len(roll)), ylim=(min(pitches) - 2, max(pitches) + 2))
    axes.set(xlabel="quarter note", ylabel="MIDI pitch")
    axes.grid(alpha=0.3)


def _colors(rows: dict[str, list[Record]]) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(rows))]
