"""The tables of a report as Markdown: published numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from noisin.lab import figures, panels, report, tasks
from noisin.lab.baselines import Baseline
from noisin.lab.files import write_aside
from noisin.lab.records import Record
from noisin.lab.report import Line
from noisin.lab.spent import Spent, count

CLOSE = 0.02  # of the published number: a row that is as near is reproduced
HEAD = """# Results

Made by `noisin report` from the records of runs; no number is typed by hand. Scores are those
at the epoch with the best validation score, noise off; lower is better. Rows whose noise is
`@ moments` are scored by moments, rows with `averaging` by their averaged weights. *25 draws*
averages predictions over so many draws of the noise, noise on: a mixture, another class of outputs
than the papers' networks have. *Key by key*, the probability of each key is averaged on its own,
over the same draws or over the models of a row: keys stay independent, as they are in the papers.
Mean ± standard deviation over seeds.
`noisin run RECIPE --only ROW --seed S` runs any of them again (`noisin explain RECIPE` tells the
names of rows), with `--precision bf16-mixed` where the settings say so. *Settings* are those in
which the rows of a table differ; the recipe has the rest.

Settings were chosen on the validation split alone: the trials of a search are not scored on the
test split at all, and a run scores it once, at its end. *Trials* are
those of the search for a row's settings, failed and pruned ones included; where there is no number,
none are on file. What was tried before, in another space, is said in the recipe.
*Reproduced* are means within 2 % of the number that is published for the method; the best number
of another model is there to be beaten.
"""
ONE_UNIT = """\
![Loss of a network of one unit, and its mean under weight noise](figures/one-unit.png)

Ognawala and Bayer's Figures 2 and 3: a recurrent network of one unit is trained to be at 0.7 after
50 steps. Where a second fixed point appears the loss has a wall; under noise in the weight its
mean has a slope there. (`noisin.lab.figures.loss_surfaces` draws it.)
"""


def write(
    records: Sequence[Record],
    path: Path,
    spent: Sequence[Spent],
    baselines: Mapping[str, list[Baseline]],
) -> None:
    """Write the tables of all records, and their figures as PNG in ``figures`` beside them.

    Args:
        records: the runs.
        path: Markdown file to write.
        spent: what searches have spent.
        baselines: scores without a network, by corpus.
    """
    parts = [HEAD]
    if any(record.recipe == "ognawala-bayer" for record in records):
        figures.loss_surfaces(path.parent / "figures" / "one-unit.png")
        parts.append(ONE_UNIT)
    names: list[str] = []
    for heading, rows in report.sections(records).items():
        parts.append(_section(heading, rows, spent, baselines))
        recipe = next(iter(rows.values()))[0].recipe
        names.append(recipe)
        number = names.count(recipe)  # a recipe on several corpora has several tables
        stem = recipe if number == 1 else f"{recipe}-{number}"
        for drawing in panels.of(rows, spent):
            name = f"figures/{stem}-{drawing.name}.png"
            drawing.save(path.parent / name)
            parts.append(f"![{drawing.title}]({name})\n")
    with write_aside(path) as file:
        file.write("\n".join(parts).encode())


def _section(
    heading: str,
    rows: dict[str, list[Record]],
    spent: Sequence[Spent],
    baselines: Mapping[str, list[Baseline]],
) -> str:
    first = next(iter(rows.values()))[0]
    units = tasks.UNITS[first.metric]
    lines = [f"## {heading}", "", f"{units[0].upper()}{units[1:]}; `{first.recipe}`.", ""]
    lines += table(rows, spent, baselines.get(first.corpus, ()))
    return "\n".join([*lines, *_notes(rows), ""])


def table(
    rows: dict[str, list[Record]],
    spent: Sequence[Spent],
    baselines: Sequence[Baseline] = (),
) -> list[str]:
    """Return the lines of a table.

    Args:
        rows: the runs, by row.
        spent: what searches have spent.
        baselines: scores without a network on the same corpus.
    """
    lines = report.summary(rows)
    draws = max((k for line in lines for k in line.monte_carlo), default=1)
    shown = [draws] if draws > 1 else []
    apart = any(line.factorised for line in lines)
    heads = [*(f"{k} draws" for k in shown), *(["key by key"] if apart else [])]
    cells = [["method", "published", "test", "difference", "", "valid", *heads, "seeds", "trials"]]
    for one in baselines:
        scores = [f"{one.scores['test']:.3f}", "", "", f"{one.scores['valid']:.3f}"]
        cells.append([one.label, "", *scores, *("" for _ in heads), "", ""])
    for line, group in zip(lines, rows.values(), strict=True):
        trials = count(one for one in spent if one.of(*report.searched(group[0])))
        row = _row(line, group, trials, shown)
        if apart:
            row.insert(-2, str(line.factorised or ""))
        cells.append(row)
    return _table(cells)


def _row(line: Line, runs: Sequence[Record], trials: str, draws: Sequence[int] = ()) -> list[str]:
    test, published = line.scores["test"], runs[0].published
    difference = verdict = ""
    if test is not None and published is not None:
        apart, size = test.mean - published.test, abs(published.test)
        difference = f"{100 * apart / size:+.1f} %" if size else ""
        close = abs(apart) <= CLOSE * size and not published.rival
        verdict = "reproduced" if close else "better" if apart < 0 else "worse"
    return [
        line.label,
        f"{published.test:g}" if published is not None else "",
        str(test or ("diverged" if line.diverged else "")),
        difference,
        verdict,
        str(line.scores["valid"] or ""),
        *(str(line.monte_carlo.get(k) or "") for k in draws),
        str(test.count if test is not None else 0),
        trials,
    ]


def _notes(rows: dict[str, list[Record]]) -> list[str]:
    """Return what else must be said: sources, notes of rows, what diverged, noise and settings."""
    lines = report.summary(rows)
    published = [group[0].published for group in rows.values()]
    sources = dict.fromkeys(
        one.source + (", another model" if one.rival else "") for one in published if one
    )
    found = ["", f"Published: {'; '.join(sources)}."] if sources else []
    cells = [[line.label, f"`{line.noise}`", line.settings] for line in lines]
    found += ["", *_table([["method", "noise", "settings"], *cells])]
    found += [f"\n{line.label}: {line.note.rstrip('.')}." for line in lines if line.note]
    found += [f"\n{line.label} diverged, {why}." for line in lines for why in line.diverged]
    return found


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in cells]
    return [rows[0], "|" + "---|" * len(cells[0]), *rows[1:]]


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", r"\|")
