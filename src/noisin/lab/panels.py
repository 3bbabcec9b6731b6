"""Figures of a table, drawn from its records and the searches for its rows."""

from __future__ import annotations

import io
import math
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from noisin.lab import sound, tasks
from noisin.lab.files import write_aside
from noisin.lab.forecasts import LEVELS, interval
from noisin.lab.records import Record
from noisin.lab.rolls import LOWEST, Roll
from noisin.lab.series import Forecast
from noisin.lab.spent import Spent
from noisin.laws import Learned
from noisin.noise import Noise
from noisin.text import parse

Rows = dict[str, list[Record]]

ACROSS = 4  # panels of a figure side by side
TITLE = 24  # letters of a panel's title a line
MOST = 6  # series and targets in a figure of forecasts
WORST = 1.35  # of the best score: what is worse is not told apart
POINT: dict[str, Any] = {"markersize": 3, "color": "#0072b2"}
COLORS = (
    *("#444444", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933"),
    *("#882255", "#332288", "#117733", "#661100", "#aaaaaa", "#ff5555", "#00c5c5", "#b8860b"),
)
THIN: dict[str, Any] = {"linewidth": 1, "alpha": 0.8}
SMALL: dict[str, Any] = {"linewidth": 1, "markersize": 3}
TITLES = {"*": "noise that multiplies", "+": "noise that is added"}
FEW = 10  # rows that are told apart by a legend of full size


@dataclass(frozen=True)
class Drawing:
    """A figure of one or more panels.

    Args:
        name: of its file, without ending.
        title: what it shows.
        draw: draws into as many axes as there are panels.
        panels: how many; more than a page is wide stand in rows.
        height: in inches.
        across: panels side by side, at most.
    """

    name: str
    title: str
    draw: Callable[..., None]
    panels: int = 1
    height: float = 3.6
    across: int = ACROSS

    def svg(self) -> str:
        """Return it as SVG text."""
        text = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "noisin", "font.size": 9}):
            self._figure().savefig(text, format="svg", metadata={"Date": None})
        svg = text.getvalue()
        return svg[svg.index("<svg") :]

    def save(self, path: Path) -> None:
        """Write it as PNG."""
        with mpl.rc_context({"font.size": 9}), write_aside(path) as file:
            self._figure().savefig(file, format="png", dpi=110)

    def _figure(self) -> Figure:
        figure = Figure(figsize=(9, self.height), layout="constrained")
        across = min(self.panels, self.across)
        grid = figure.subplots(-(-self.panels // across), across, squeeze=False).flat
        self.draw(*(axes for _, axes in zip(range(self.panels), grid, strict=False)))
        for axes in figure.axes[self.panels :]:
            axes.set_axis_off()
        for axes in figure.axes:
            legend = axes.get_legend()
            named = legend.get_texts() if legend is not None else []
            for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *named):
                text.set_parse_math(False)  # a dollar in a name is no mathematics
        return figure


def of(rows: Rows, spent: Sequence[Spent] = ()) -> Iterator[Drawing]:
    """Return the figures of a table.

    Args:
        rows: its runs, by row.
        spent: searches, of which those for its rows are drawn.
    """
    known = {(run.recipe, run.row, run.corpus) for runs in rows.values() for run in runs}
    strong = [one for one in spent if any(one.of(*own) for own in known) and _is_number(one)]
    if strong:
        title = (
            "Strength against the validation score, a point a finished trial (the other settings "
            "differ, too; triangles are worse than the panel is high)"
        )
        height = 2.6 * -(-len(strong) // ACROSS)
        yield Drawing("strength", title, partial(draw_strength, strong), len(strong), height)
    laws = _by_law(rows)
    if len({law for law, _ in laws}) > 1:
        title = "Standard deviation of the noise against the score, a line a law"
        operators = len({operator for _, operator in laws})
        yield Drawing("laws", title, partial(draw_laws, rows), operators)
    rows = {name: runs for name, runs in rows.items() if runs[0].models == 1}  # no averages
    if not rows:
        return
    yield Drawing("curves", "Training and validation", partial(draw_curves, rows), 2)
    if any(epoch.spreads for runs in rows.values() for run in runs for epoch in run.history):
        yield Drawing("spreads", "Learned spreads", partial(draw_spreads, rows))
    title = (
        "Spectral radius of the recurrent weights W (of the candidate, first layer); dashed, where "
        "variances are propagated, of W ∘ W"
    )
    yield Drawing("radius", title, partial(draw_radius, rows))


def _is_number(one: Spent) -> bool:
    """Return whether what was drawn for a row alone is a number that can be drawn over."""
    values = [trial.settings[one.own[-1]] for trial in one.trials] if one.own else []
    return bool(values) and all(type(value) in (int, float) for value in values)


def rolls(title: str, pieces: Mapping[str, Roll]) -> Drawing:
    """Return piano rolls by their names, side by side on one scale."""
    return Drawing("rolls", title, partial(draw_rolls, pieces), len(pieces), height=2.8)


def forecast(title: str, one: Forecast, names: Sequence[str], steps: int) -> Drawing:
    """Return forecasts beside what came: the first series and targets, a panel each.

    Args:
        title: what it shows.
        one: the forecasts.
        names: of the targets.
        steps: how many of each series, at most.
    """
    pairs = [(series, f) for series in dict.fromkeys(one.series) for f in range(len(names))]
    draw = partial(draw_forecast, one, names, pairs[:MOST], steps)
    count = len(pairs[:MOST])
    return Drawing("forecast", title, draw, count, height=0.6 + 2.4 * count, across=1)


def draw_forecast(
    one: Forecast,
    names: Sequence[str],
    pairs: Sequence[tuple[str, int]],
    steps: int,
    *panels: Axes,
) -> None:
    """Draw the mean and the central intervals of forecasts, and what came."""
    mixture = one.mixture
    mean, truth = mixture.mean.mean(0).cpu(), one.truth.cpu()
    bands = [[end.cpu() for end in interval(mixture, level)] for level in LEVELS]
    for axes, (series, target) in zip(panels, pairs, strict=True):
        own = [i for i, name in enumerate(one.series) if name == series][:steps]
        rows = [one.rows[i] + 1 for i in own]
        for (low, high), level in reversed(list(zip(bands, LEVELS, strict=True))):
            axes.fill_between(
                *(rows, low[own, target], high[own, target]),
                color=COLORS[1],
                alpha=0.18,
                linewidth=0,
                label=f"{level:.0%}",
            )
        axes.plot(rows, mean[own, target], color=COLORS[1], linewidth=1, label="mean")
        axes.plot(rows, truth[own, target], ".", color=COLORS[0], markersize=3, label="truth")
        axes.set(ylabel=", ".join(filter(None, (series, names[target]))))
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=7, ncols=5)
    panels[-1].set(xlabel="row")


def draw_strength(spent: Sequence[Spent], *panels: Axes) -> None:
    """Draw the score of finished trials over the strength of the noise, a panel a method.

    Scores far above the best of all are triangles at the upper edge.
    """
    pairs = [
        [
            (t.settings[one.own[-1]], t.valid)
            for t in one.trials
            if t.finished and t.valid is not None
        ]
        for one in spent
    ]
    every = [valid for done in pairs for _, valid in done]
    low = min(every, default=1.0)
    top = low + (WORST - 1) * abs(low)  # a density's likelihood may be above 1
    for axes, one, done in zip(panels, spent, pairs, strict=True):
        name = one.own[-1]
        inside = [pair for pair in done if pair[1] <= top]
        beyond = [strength for strength, valid in done if valid > top]
        axes.plot(*(zip(*inside, strict=True) if inside else ([], [])), "o", **POINT)
        axes.plot(beyond, [top] * len(beyond), "^", **POINT)
        values = [strength for strength, _ in done]
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
        axes.set_title(textwrap.fill(one.label, TITLE), fontsize="medium")
        axes.set(xlabel=name, ylim=(low - 0.01 * abs(low), top + 0.01 * abs(top)))
        axes.grid(alpha=0.3)


def draw_curves(rows: Rows, valid: Axes, train: Axes) -> None:
    """Draw the validation score and the training objective over epochs, a thin line a seed."""
    for color, (name, runs) in zip(_colors(rows), rows.items(), strict=True):
        for index, run in enumerate(runs):
            label = name if index == 0 else None
            epochs = [epoch.epoch for epoch in run.history]
            line = {"color": color, **THIN}
            valid.plot(epochs, [run.valid(epoch) for epoch in epochs], label=label, **line)
            train.plot(epochs, [e.train for e in run.history], **line)
            if run.best_epoch:
                valid.plot(run.best_epoch, run.best, "o", color=color, markersize=4)
    every = [run for runs in rows.values() for run in runs]
    valid.set(title="validation (noise off)", ylabel=tasks.UNITS[every[0].metric])
    train.set(title="training objective (noise on)")
    music = every[0].metric == "unscored"
    for axes, values in (
        (valid, [run.valid(e.epoch) for run in every for e in run.history]),
        (train, [e.train for run in every for e in run.history]),
    ):
        _over_epochs(axes)
        if values and every[0].metric == "nll":
            axes.set_ylim(*_of_densities(values))
        elif values:
            low, wide = min(values), 1.35 if axes is valid and music else 2.5
            middle = statistics.median(values)  # of few epochs the first ones are not cut off
            axes.set_ylim(0.98 * low, 1.02 * min(max(values), max(wide * low, middle)) + 1e-3)
    _legend(valid, rows)


def _of_densities(values: Sequence[float]) -> tuple[float, float]:
    """Return limits for scores that may have any sign: what is far above the middle is cut off."""
    low = min(values)
    top = min(max(values), low + 4 * (statistics.median(values) - low))
    margin = 0.05 * (top - low) + 1e-3
    return low - margin, top + margin


def draw_laws(rows: Rows, *panels: Axes) -> None:
    """Draw the test score over the standard deviation of the noise, a line a law.

    One panel is for noise that multiplies, one for noise that is added; a horizontal line is the
    plain network.
    """
    lines = _by_law(rows)
    laws = list(dict.fromkeys(law for law, _ in lines))
    operators = list(dict.fromkeys(operator for _, operator in lines))
    plain = [run.test for runs in rows.values() for run in _tested(runs) if _is_plain(run)]
    for axes, operator in zip(panels, operators, strict=True):
        for (law, own), points in lines.items():
            if own == operator:
                color = COLORS[laws.index(law) % len(COLORS)]
                axes.plot(*zip(*sorted(points), strict=True), "o-", color=color, label=law, **SMALL)
        if plain:
            axes.axhline(math.fsum(plain) / len(plain), color="#999999", label="no noise")
        axes.set(title=TITLES[operator], xlabel="standard deviation")
        axes.grid(alpha=0.3)
    unit = next(tasks.UNITS[run.metric] for runs in rows.values() for run in runs)
    panels[0].set_ylabel(f"test, {unit}")
    shown = {
        label: line
        for axes in panels
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    panels[-1].legend([*shown.values()], [*shown], frameon=False, fontsize=7, **beside)
    for axes in panels[1:]:
        axes.sharey(panels[0])


def _by_law(rows: Rows) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return (spread, mean test score) of rows with one term of fixed spread, by law and operator.

    Only laws of which there are several spreads count, and only terms at the site that most rows
    have.
    """
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for runs in rows.values():
        term, scores = parse(runs[0].config.noise), [run.test for run in _tested(runs)]
        if isinstance(term, Noise) and not isinstance(term.law.std, Learned) and scores:
            key = (str(term.site), type(term.law).__name__, term.operator)
            found.setdefault(key, []).append((term.law.std, math.fsum(scores) / len(scores)))
    sites = [site for site, _, _ in found]
    usual = max(sites, key=sites.count, default="")
    return {
        (law, operator): points
        for (site, law, operator), points in found.items()
        if site == usual and len({std for std, _ in points}) > 1
    }


def _tested(runs: Sequence[Record]) -> list[Record]:
    return [run for run in runs if run.status == "finished" and "test" in run.scores]


def _is_plain(run: Record) -> bool:
    return run.config.noise == "none"


def _over_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.3)


def draw_spreads(rows: Rows, axes: Axes) -> None:
    """Draw learned standard deviations over epochs, their mean over each layer."""
    named = [name for name, runs in rows.items() if any(e.spreads for e in runs[0].history)]
    for index, name in enumerate(named):
        for seed, run in enumerate(rows[name]):
            for place in run.history[0].spreads if run.history else ():
                label = f"{name}, {place}" if seed == 0 else None
                spreads = [epoch.spreads[place] for epoch in run.history]
                epochs = [epoch.epoch for epoch in run.history]
                axes.plot(epochs, spreads, label=label, color=COLORS[index % len(COLORS)], **THIN)
    axes.set(ylabel="standard deviation", ylim=(0, None))
    _over_epochs(axes)
    axes.legend(frameon=False, fontsize=7)


def draw_radius(rows: Rows, axes: Axes) -> None:
    """Draw the spectral radius of the candidate's recurrent weights, W, over epochs.

    Dashed, where variances are propagated, that of W ∘ W.
    """
    for color, (name, runs) in zip(_colors(rows), rows.items(), strict=True):
        for index, run in enumerate(runs):
            label = name if index == 0 else None
            radius = [_candidate_radius(epoch.spectral_radius[0]) for epoch in run.history]
            epochs = [epoch.epoch for epoch in run.history]
            line = {"color": color, **THIN}
            axes.plot(epochs, radius, label=label, **line)
            squared = [e.squared_radius for e in run.history if e.squared_radius]
            if squared:
                ends = [_candidate_radius(radii[0]) for radii in squared]
                axes.plot(epochs, ends, linestyle="dashed", **line)
                axes.set_yscale("log")  # the two are far apart
    axes.set(ylabel="spectral radius")
    _over_epochs(axes)
    _legend(axes, rows)


def _candidate_radius(gates: Sequence[float]) -> float:
    """Return the radius of g of an LSTM, n of a GRU, or the only one of an Elman RNN."""
    return gates[2] if len(gates) > 1 else gates[0]


def draw_rolls(pieces: Mapping[str, Roll], *panels: Axes) -> None:
    """Draw piano rolls on one scale: time to the right, pitch upwards."""
    notes = [sound.notes_of(piece) for piece in pieces.values()]
    pitches = [key + LOWEST for own in notes for key, _, _ in own] or [60]
    for axes, name, own in zip(panels, pieces, notes, strict=True):
        for key in {key for key, _, _ in own}:
            held = [(start, end - start - 0.08) for pitch, start, end in own if pitch == key]
            axes.broken_barh(held, (key + LOWEST - 0.4, 0.8), color=COLORS[1], linewidth=0)
        axes.set(xlim=(0, max(map(len, pieces.values()))), title=name, xlabel="quarter note")
        axes.set_ylim(min(pitches) - 2, max(pitches) + 2)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("MIDI pitch")


def _colors(rows: Rows) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(rows))]


def _legend(axes: Axes, rows: Rows) -> None:
    many = len(rows) > FEW
    axes.legend(frameon=False, fontsize=6 if many else 8, ncols=2 if many else 1)
