"""Reports: tables and figures from records alone, as one HTML file with everything inside."""

from __future__ import annotations

import base64
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisin.lab import pages, panels, sound, tasks
from noisin.lab.baselines import Baseline
from noisin.lab.records import Record
from noisin.lab.rolls import Roll
from noisin.lab.spent import Spent, count
from noisin.lab.task import Scores
from noisin.lab.words import Token


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
        scored: of test by the other convention of music, every step; None of others.
        difference: test less the baseline's test, seed by seed.
        baseline: label of the row that it is compared with.
        published: the paper's number and where it stands.
        seeds: how many runs have scores.
        epochs: epochs trained.
        limited: how many runs ended at the most epochs allowed, still improving or not.
        seconds: of training.
        diverged: reasons of the runs that diverged.
        monte_carlo: of test, by the number of draws.
        factorised: of test, where probabilities are averaged key by key; over the most draws, or
            over the models of an average; None of others.
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
    seeds: int
    epochs: Estimate | None
    limited: int
    seconds: Estimate | None
    diverged: list[str]
    monte_carlo: dict[int, Estimate | None]
    factorised: Estimate | None

    @property
    def paired(self) -> str:
        """The difference, and of how many seeds it is where some have nothing to compare with."""
        if self.difference is None:
            return ""
        few = self.difference.count < self.seeds
        return f"{self.difference}{f' ({self.difference.count})' if few else ''}"


@dataclass(frozen=True)
class Piece:
    """A sample.

    Args:
        title: of what it is one.
        tokens: text to read.
        drawing: to look at.
        roll: to hear.
        files: that were written of it.
    """

    title: str
    tokens: Sequence[Token] = ()
    drawing: panels.Drawing | None = None
    roll: Roll | None = None
    files: Sequence[Path] = ()


def by_row(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the runs of each row, seeds in order, no seed twice.

    Runs of one row under different settings are rows of their own, named by what differs. So are
    those of a version that gave other numbers, which have another hash.
    """
    found: dict[tuple[Any, ...], list[dict[int, Record]]] = {}
    for record in sorted(records, key=lambda r: r.seed):
        lots = found.setdefault((record.row, *_traits(record).items()), [])
        for lot in lots:
            if lot.setdefault(record.seed, record).hash == record.hash:
                break
        else:
            lots.append({record.seed: record})
    rows: dict[str, list[list[Record]]] = {}
    for (row, *_), lots in found.items():
        rows.setdefault(row, []).extend([*lot.values()] for lot in lots)
    return {name: runs for row, own in rows.items() for name, runs in _named(row, own).items()}


def _traits(run: Record) -> dict[str, Any]:
    """Return what the runs of a line in a table have in common."""
    about = {"corpus": run.corpus, "models": run.models, "current": run.current}
    config = run.config.without_path().model_dump()
    return {**config, **about, "layout": run.environment.layout}


def _named(row: str, variants: Sequence[list[Record]]) -> dict[str, list[Record]]:
    """Return the variants of a row by names that say what differs."""
    pairs = [(_traits(runs[0]), runs) for runs in variants]
    told = differing([traits for traits, _ in pairs])
    corpora: dict[str, set[str]] = {}
    for traits, _ in pairs:
        corpora.setdefault(traits["data"], set()).add(traits["corpus"])
    named, times = {}, Counter[str]()
    for traits, runs in sorted(pairs, key=lambda pair: not pair[0]["current"]):
        parts = [f"{k}={traits[k]}" for k in type(runs[0].config).model_fields if k in told]
        parts += [f"sha256 {traits['corpus'][:8]}"] * (len(corpora[traits["data"]]) > 1)
        parts += [f"{runs[0].models} models"] * ("models" in told and runs[0].models > 1)
        extra = ", ".join(filter(None, [*parts, traits["layout"]]))
        again = times[extra]
        version = ["another version"] * (again > 0) + [str(again)] * (again > 1)
        times[extra] += 1
        extra = ", ".join(filter(None, [extra, *version]))
        named[f"{row} ({extra})" if extra and len(pairs) > 1 else row] = runs
    return named


def compared(rows: dict[str, list[Record]]) -> dict[str, str]:
    """Return the name of the row that each is compared with; empty where there is none.

    Of several variants of a baseline it is the one that agrees in all in which they differ, or in
    as much of it as tells the row's own variants apart.
    """
    traits = {name: _traits(runs[0]) for name, runs in rows.items()}
    variants: dict[str, list[str]] = {}
    for name, runs in rows.items():
        variants.setdefault(runs[0].row, []).append(name)
    differ = {row: differing([traits[name] for name in own]) for row, own in variants.items()}

    def reference(name: str, row: str, base: str) -> str:
        if base == row or base not in variants:
            return ""
        for keys in (differ[base], [key for key in differ[base] if key in differ[row]]):
            own = [traits[name].get(key) for key in keys]
            alike = [n for n in variants[base] if [traits[n].get(key) for key in keys] == own]
            if len(alike) == 1:
                return alike[0]
        return base if base in rows else ""

    return {name: reference(name, runs[0].row, runs[0].baseline) for name, runs in rows.items()}


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
    base = compared(rows)[noisy[0]]
    return [base, noisy[0]] if base in done and base != noisy[0] else noisy[:1]


def differing(dumps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings in which some configurations differ."""
    keys = dict.fromkeys(key for dump in dumps for key in dump)
    return [key for key in keys if any(d.get(key) != dumps[0].get(key) for d in dumps)]


def summary(rows: dict[str, list[Record]]) -> list[Line]:
    """Return the lines of a table, the runs of each row in one."""
    told = differing([runs[0].config.model_dump() for runs in rows.values()])
    settings = [key for key in told if key not in ("noise", "data")]
    bases = compared(rows)
    return [_line(name, rows, bases[name], settings) for name in rows]


def _label(name: str, rows: dict[str, list[Record]]) -> str:
    first = rows[name][0]
    return first.label if name == first.row else name


def _reference(run: Record, against: Mapping[int, Record]) -> list[float]:
    """Return what a run is compared with, an average with as many models; [] where one is missing.

    Args:
        run: the run.
        against: those of the baseline, by seed.
    """
    first = against.get(run.seed)
    if first is not None and first.models == run.models:
        return [first.test]
    parts = [against.get(seed) for seed in range(run.seed, run.seed + run.models)]
    return [one.test for one in parts if one is not None and one.models == 1] if all(parts) else []


def _line(name: str, rows: dict[str, list[Record]], base: str, settings: Sequence[str]) -> Line:
    runs = rows[name]
    done = [run for run in runs if run.status == "finished"]
    first, config = runs[0], runs[0].config
    against = {run.seed: run for run in rows.get(base, ()) if "test" in run.scores}
    draws = sorted({k for run in done for k in run.monte_carlo})
    tested = [run for run in done if "test" in run.scores]  # the trials of a search are not
    own = {key: getattr(config, key) for key in settings if hasattr(config, key)}
    layout = filter(None, [first.environment.layout])
    return Line(
        name=name,
        label=_label(name, rows),
        noise=config.noise,
        settings=", ".join([*(f"{key} {value}" for key, value in own.items()), *layout]),
        note=first.note,
        parameters=first.parameters,
        scores={
            split: Estimate.of([r.scores[split][r.metric] for r in done if split in r.scores])
            for split in ("train", "valid", "test")
        },
        scored=Estimate.of(
            [r.scores["test"]["scored"] for r in tested if "scored" in r.scores["test"]]
        ),
        difference=Estimate.of(
            [r.test - statistics.fmean(other) for r in tested if (other := _reference(r, against))]
        ),
        baseline=_label(base, rows) if base else "",
        published=f"{first.published.test} ({first.published.source})" if first.published else "",
        seeds=len(done),
        epochs=Estimate.of([len(run.history) for run in done if run.models == 1]),
        limited=sum(len(run.history) == run.config.epochs for run in done),
        seconds=Estimate.of([run.seconds for run in done]),
        diverged=[f"seed {run.seed}: {run.reason}" for run in runs if run.status == "diverged"],
        monte_carlo={
            k: Estimate.of([r.monte_carlo[k][r.metric] for r in done if k in r.monte_carlo])
            for k in draws
        },
        factorised=Estimate.of(
            [one["factorised"] for one in map(_averaged, tested) if "factorised" in one]
        ),
    )


def _averaged(run: Record) -> Scores:
    """Return the test scores of the largest average that a run has."""
    return run.monte_carlo[max(run.monte_carlo)] if run.monte_carlo else run.scores["test"]


def sections(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """Return the rows of each table by its heading: a recipe on a corpus.

    Recipes of one title are told apart by their names.
    """
    tables: dict[tuple[str, str], list[Record]] = {}
    names = [record.config.without_path().data for record in records]
    corpora: dict[str, dict[str, set[str]]] = {}
    for record, name in zip(records, names, strict=True):
        corpora.setdefault(record.recipe, {}).setdefault(name, set()).add(record.corpus)
    for record, name in zip(records, names, strict=True):
        own = corpora[record.recipe]
        which = name if len(own[name]) == 1 else f"{name}, sha256 {record.corpus[:8]}"
        alone = len(own) == len(own[name]) == 1
        heading = record.title if alone else f"{record.title} ({which})"
        tables.setdefault((heading, record.recipe), []).append(record)
    titles = Counter(heading for heading, _ in tables)
    return {
        f"{heading}, recipe {name}" if titles[heading] > 1 else heading: by_row(found)
        for (heading, name), found in tables.items()
    }


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
        trials = {
            own[0].label: count(one for one in spent if one.of(*searched(own[0])))
            for own in rows.values()
        }
        tables.append(
            {
                "title": heading,
                "units": tasks.UNITS[runs[0].metric],
                "data": runs[0].config.without_path().data,
                "metric": runs[0].metric,
                "lines": lines,
                "published": any(line.published for line in lines),
                "draws": sorted({k for line in lines for k in line.monte_carlo}),
                "apart": any(line.factorised for line in lines),
                "runs": runs,
                "environments": list(dict.fromkeys(_environment(run) for run in runs)),
                "figures": [(one.title, one.svg()) for one in panels.of(rows, spent)],
                "trials": {label: told for label, told in trials.items() if told},
                "baselines": baselines.get(runs[0].corpus, []),
            }
        )
    samples = [_shown(piece) for piece in pieces]
    pages.write("report.html.jinja", path, sections=tables, pieces=samples)


def searched(run: Record) -> tuple[str, str, str]:
    """Return what a search is of that chose the settings of a run: recipe, row and corpus."""
    return run.recipe, run.row, run.corpus


def _environment(run: Record) -> str:
    at = run.environment
    commit = f", commit {at.commit[:12]}{' (changed)' if at.dirty else ''}" if at.commit else ""
    return f"noisin {at.noisin}{commit}, torch {at.torch}, Python {at.python}, {at.machine}"


def _shown(piece: Piece) -> dict[str, Any]:
    """Return what the page needs of a sample."""
    return {
        "title": piece.title,
        "tokens": piece.tokens,
        "figure": piece.drawing.svg() if piece.drawing is not None else "",
        "wav": base64.b64encode(sound.wav(piece.roll)).decode() if piece.roll is not None else "",
    }
