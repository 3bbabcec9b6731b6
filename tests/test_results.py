"""What tables stand beside: baselines without a network, trials that were spent, Markdown."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from lab_cases import benchmark_folder, midi_folder, rolls, small_bach
from noisin.lab import (
    LabError,
    baselines,
    best,
    markdown,
    recipe,
    records,
    report,
    spent,
    tasks,
    train,
)
from noisin.lab.config import layout_of
from noisin.lab.rolls import KEYS, Corpus
from noisin.lab.sweep import Worker
from test_cli import call as call  # a fixture
from test_sweep import corpus, trials_of
from test_sweep import made as made  # a fixture
from test_train import job

PUBLISHED = {"piano-midi": (11.05, 8.26), "nottingham": (10.25, None), "muse-data": (11.51, None)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_baselines_of_the_benchmarks(name):
    found = baselines.of(tasks.load(baselines.settings(name), benchmark_folder()))
    for one, expected in zip(found, PUBLISHED[name], strict=True):
        assert expected is None or one.scores["test"] == pytest.approx(expected, abs=0.015)


def counted(train, piece, condition):
    """Score a piece by counts of single keys, in plain Python."""
    total = 0.0
    for t in range(1, len(piece)):
        for key in range(KEYS):
            seen = [
                int(one[s, key])
                for one in train
                for s in range(1 if condition else 0, len(one))
                if not condition or one[s - 1, key] == piece[t - 1, key]
            ]
            p = (sum(seen) + 0.5) / (len(seen) + 1)
            total -= math.log(p if piece[t, key] else 1 - p)
    return total / (len(piece) - 1)


@pytest.mark.parametrize("condition", [False, True])
def test_baselines_are_counts(condition):
    train, test = rolls([7, 1, 5], 1, rate=0.3), rolls([6], 2, rate=0.3)
    data = Corpus("tiny", {"train": train, "valid": train, "test": test})
    found = (baselines.copying if condition else baselines.frequencies)(data)
    assert found["test"] == pytest.approx(counted(train, test[0], condition))


def test_a_key_that_never_sounds_is_not_impossible():
    silent = [np.zeros((4, KEYS), np.uint8)]
    data = Corpus("tiny", {"train": silent, "valid": silent, "test": rolls([4], 1)})
    for score in baselines.METHODS.values():
        assert math.isfinite(score(data)["test"])


@pytest.fixture
def searched(made):
    """A finished sweep, and what it has spent."""
    found = made()
    Worker(found, corpus()).run()
    path = best.write_spent(found, trials_of(found))
    return found, path


def test_every_trial_is_kept(searched):
    found, path = searched
    (one,) = spent.read([path.parent])
    runs = {record.best for record in records.read([found.folder])}
    assert [trial.number for trial in one.trials] == [0, 1, 2, 3]
    assert {trial.valid for trial in one.trials} == runs
    assert one.best is not None
    assert one.best.valid == min(runs)
    assert set(one.trials[0].settings) == {"hidden_size", "lr", "std"}
    assert spent.count([one]) == "4"
    assert not any("test" in record.scores for record in records.read([found.folder]))


def test_files_of_something_else_are_refused(tmp_path):
    for damage, rule in (("{}", "; recipe: Field required"), ("x = 1", "; Invalid JSON: .*")):
        (tmp_path / "a.trials.json").write_text(damage)
        rule = rf"a\.trials\.json: must be the trials of a sweep{rule}"
        with pytest.raises(LabError) as caught:
            spent.read([tmp_path])
        assert re.search(rule + "$", str(caught.value))
        assert "\n" not in str(caught.value)
    (tmp_path / "a.baselines.json").write_text("\n{}\n")
    with pytest.raises(LabError, match=r"must be baselines, one a line; data: Field required$"):
        baselines.read([tmp_path])


def test_tables_as_markdown_and_page(call, tmp_path, searched):
    small_bach(tmp_path)
    result = call("run", "tiny.toml", "--out", "runs", "--seed", 5)
    assert result.exit_code == 0, result.output
    (record,) = [one for one in records.read([tmp_path / "runs"]) if one.row == "noisy"]
    assert record.seed == 5
    paper = record.model_dump(mode="json") | {"published": {"test": 50.0, "source": "A paper"}}
    table = tmp_path / "table"
    table.mkdir()
    (table / "tiny.jsonl").write_text(json.dumps(paper) + "\n")
    trials = spent.read([searched[1].parent])
    baseline = {"data": "x", "label": "by hand"}
    scores = dict.fromkeys(("train", "valid", "test"), 12.345)
    base = baselines.Baseline(**baseline, corpus=record.corpus, scores=scores)
    (table / "music.baselines.json").write_text(base.model_dump_json() + "\n")
    (kept,) = trials
    here = kept.model_copy(update={"own": ("std",), "corpus": record.corpus})
    (table / "tiny-noisy.trials.json").write_text(here.model_dump_json())
    again = here.model_copy(update={"study": "of another seed", "trials": kept.trials[:3]})
    (table / "tiny-noisy-2.trials.json").write_text(again.model_dump_json())
    elsewhere = here.model_copy(update={"study": "elsewhere", "corpus": "0" * 64})
    (table / "tiny-noisy-3.trials.json").write_text(elsewhere.model_dump_json())
    text = [one.model_copy(update={"settings": {"std": "small"}}) for one in kept.trials]
    texts = again.model_copy(update={"row": "plain", "trials": tuple(text)})  # no strength to draw
    (table / "tiny-plain.trials.json").write_text(texts.model_dump_json())
    result = call("report", "table", "--out", "page.html", "--markdown", "tables.md")
    assert result.exit_code == 0, result.output
    text, page = (tmp_path / "tables.md").read_text(), (tmp_path / "page.html").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| noisy | 50 |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    share = record.test / 50 - 1
    assert cells[3] == f"{100 * share:+.1f} %"
    assert cells[4] == ("reproduced" if abs(share) <= 0.02 else "better" if share < 0 else "worse")
    assert cells[-2:] == ["1", "7"]
    assert "one-unit.png" not in text  # a figure of a table that is not here
    assert "| by hand |  | 12.345 |" in text
    assert "12.345" in page
    assert "Strength against the validation score" in page


@pytest.mark.parametrize(
    ("paper", "test", "rival", "word", "share"),
    [
        *((50, 50.9, False, "reproduced", "+1.8 %"), (50, 51.1, False, "worse", "+2.2 %")),
        *((50, 48.9, False, "better", "-2.2 %"), (50, 49.1, False, "reproduced", "-1.8 %")),
        # of another model: there to be beaten
        *((50, 50.1, True, "worse", "+0.2 %"), (50, 49.9, True, "better", "-0.2 %")),
        # of densities
        *((-50, -51.1, False, "better", "-2.2 %"), (-50, -48.9, False, "worse", "+2.2 %")),
        *((-50, -50.9, False, "reproduced", "-1.8 %"), (-50, 1.0, True, "worse", "+102.0 %")),
        *((0, 0.5, False, "worse", ""), (0, -0.5, True, "better", "")),
    ],
)
def test_what_counts_as_reproduced(paper, test, rival, word, share, tmp_path):
    record = train.run(job(tmp_path, epochs=1), corpus())
    scores = record.scores | {"test": {"unscored": test, "scored": test}}
    published = {"test": paper, "source": "A paper", "rival": rival}
    data = record.model_dump() | {"scores": scores, "published": published}
    again = type(record).model_validate(data)
    (line,) = report.summary(report.by_row([again]))
    assert markdown._row(line, [again], "")[3:5] == [share, word]
    assert ("A paper, another model" in "".join(markdown._notes({"a": [again]}))) == rival


def test_a_label_is_one_cell(tmp_path):
    record = train.run(job(tmp_path, epochs=1), corpus())
    odd = {record.row: [record.model_copy(update={"label": "x|y\r\nz"})]}
    for lines in (markdown.table(odd, []), markdown._notes(odd)[1:4]):
        head, _, row = lines
        assert row.startswith(r"| x\|y z | ")
        assert len(re.findall(r"(?<!\\)\|", row)) == head.count("|")


def test_trials_have_no_score_of_the_test_split_and_have_not_diverged(searched):
    found, _ = searched
    rows = report.by_row(records.read([found.folder]))
    _, _, *lines = markdown.table(rows, [])
    assert len(lines) == 4
    assert not any("diverged" in line for line in lines)


def test_averages_over_draws_stand_beside_the_scores(tmp_path):
    """Those over most draws; a row without noise has none, and one draw is no average."""
    plain = train.run(job(tmp_path, epochs=1), corpus())
    drawn = {k: {"unscored": k + 0.5, "scored": 0.0} for k in (1, 5, 25)}
    noisy = plain.model_copy(update={"row": "noisy", "monte_carlo": drawn})
    head, _, *lines = markdown.table({"plain": [plain], "noisy": [noisy]}, [])
    place = [cell.strip() for cell in head.split("|")].index("25 draws")
    assert [line.split("|")[place].strip() for line in lines] == ["", "25.50"]
    once = noisy.model_copy(update={"monte_carlo": {1: drawn[1]}})
    assert "draws" not in markdown.table({"noisy": [once]}, [])[0]


def test_averages_key_by_key_stand_beside_the_scores(tmp_path):
    """Those over the most draws, or over models; no column where there is none."""
    plain = train.run(job(tmp_path, epochs=1, noise="none"), corpus())
    assert "key by key" not in markdown.table({"plain": [plain]}, [])[0]
    drawn = {k: {"unscored": 1.0, "scored": 1.0, "factorised": k + 0.5} for k in (1, 5, 25)}
    noisy = plain.model_copy(update={"row": "noisy", "monte_carlo": drawn})
    test = plain.scores["test"] | {"factorised": 3.25}
    three = {"row": "three", "models": 3, "scores": plain.scores | {"test": test}}
    rows = {"plain": [plain], "noisy": [noisy], "three": [plain.model_copy(update=three)]}
    head, _, *lines = markdown.table(rows, [])
    place = [cell.strip() for cell in head.split("|")].index("key by key")
    assert [line.split("|")[place].strip() for line in lines] == ["", "25.50", "3.250"]
    report.write([run for runs in rows.values() for run in runs], tmp_path / "report.html")
    assert "<th>key by key</th>" in (tmp_path / "report.html").read_text()


def test_trials_without_a_score_are_told():
    text = '{"number": 0, "state": "%s", "valid": null, "settings": {}}'
    trials = [spent.Trial.model_validate_json(text % one) for one in ("pruned", "failed", "pruned")]
    kept = next(iter(SEARCHED.values()))
    told = spent.count([kept.model_copy(update={"trials": tuple(trials)})])
    assert told == "3 (1 failed, 2 pruned)"


def test_baselines_by_the_command(call, tmp_path):
    small_bach(tmp_path)
    result = call("data", "baselines", "bach", "--data-dir", tmp_path, "--out", "x.json")
    assert result.exit_code == 2
    assert "must end in .baselines.json" in result.output
    folder = midi_folder(tmp_path / "own")
    (folder / "bad.mid").write_bytes(b"junk")
    told = call("data", "baselines", folder, "--out", "own.baselines.json")
    assert told.exit_code == 0, told.output
    assert "skipped bad.mid" in told.stderr
    (found,) = baselines.read([tmp_path]).values()
    assert [one.label for one in found] == list(baselines.METHODS)
    for words, rule in (
        ([folder, "--set", "horizon=2"], "--set is for series, .*own is music; got horizon=2"),
        (["ptb"], "baselines are of music, bach, .* or of series, lorenz, .*; got 'ptb'"),
    ):
        bad = call("data", "baselines", *words)
        assert bad.exit_code == 2
        assert re.search(rule, " ".join(bad.stderr.split())), bad.stderr


RESULTS = Path(__file__).parents[1] / "results"
RECORDS = records.read([RESULTS])


def test_the_page_of_results_is_made_from_the_records(tmp_path):
    made = tmp_path / "results.md"
    markdown.write(RECORDS, made, spent.read([RESULTS]), baselines.read([RESULTS]))
    assert made.read_text() == (RESULTS.parent / "docs" / "results.md").read_text()


@pytest.mark.parametrize(("name", "row"), sorted({(one.recipe, one.row) for one in RECORDS}))
def test_every_number_of_a_table_runs_again(name, row):
    """The row of the recipe that ships has the settings of the records, and their hash."""
    shown = [record for record in RECORDS if (record.recipe, record.row) == (name, row)]
    found = recipe.load(name, only=[row]).rows[row]
    for record in shown:
        assert found.config == record.config
        on = record.environment
        decides = layout_of(on.processes, on.precision, on.accelerator)
        own = (record.seed, record.corpus, RESULTS)
        assert train.Job(name, "", row, found, *own, decides=decides).hash == record.hash


SEARCHED = {(one.recipe, one.row): one for one in spent.read([RESULTS])}


def test_only_finished_trials_on_file_have_a_score():
    trials = [trial for one in SEARCHED.values() for trial in one.trials]
    assert len(trials) > 200
    assert all(trial.finished == (trial.valid is not None) for trial in trials)


@pytest.mark.parametrize(("name", "row"), SEARCHED)
def test_a_row_that_was_searched_has_what_was_found(name, row):
    """Its settings are those of the best trial, to four digits."""
    searched = recipe.load(name).swept(row)
    best = SEARCHED[name, row].best
    assert best is not None
    found = recipe.trial(searched, best.settings).config.model_dump()
    for key, value in searched.rows[row].config.model_dump().items():
        if isinstance(value, float):
            assert value == pytest.approx(found[key], rel=1e-3), key
        elif key == "noise":
            numbers, others = (re.findall(r"[\d.]+", text) for text in (value, found[key]))
            assert list(map(float, numbers)) == pytest.approx(list(map(float, others)), rel=1e-3)
        else:
            assert value == found[key], key
