"""Rows that average models: which models, what score, what is refused."""

import dataclasses
import json

import pytest

from lab_cases import midi_folder
from noisin.lab import LabError, averages, evaluate, jobs, recipe, records, report, tasks
from noisin.lab.config import corpus_key
from test_cli import call as call  # a fixture

TEXT = """
title = "Averages"
seeds = [1, 2, 3, 4, 5]
baseline = "noisy"
[base]
data = "music"
hidden_size = 5
epochs = 2
chunk = 8
batch_size = 2
test_samples = [1]
[rows.noisy]
noise = "hidden * Gaussian(0.5)"
published = { test = 50.0, source = "A paper" }
[rows.two]
average = "noisy"
models = 2
label = "two models"
published = { test = 40.0, source = "A paper" }
"""


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.toml").write_text(TEXT)
    midi_folder(tmp_path / "music")
    return tmp_path


@pytest.mark.parametrize(
    ("models", "seeds", "expected"),
    [
        (1, [4, 2], [4, 2]),
        (2, [1, 2, 3, 4, 5], [1, 3]),
        (2, [2, 3, 1, 4], [1, 3]),
        (2, [1, 4, 5, 6], [4]),
        (5, [1, 2, 3, 4, 5], [1]),
        (3, [7], [7]),
        (3, [1, 2], [1]),
    ],
)
def test_no_model_is_in_two_averages(models, seeds, expected):
    assert averages.seeds_of(models, seeds) == expected


def test_an_average_is_that_of_the_evaluation(call, tiny):
    result = call("run", "tiny.toml")
    assert result.exit_code == 0, result.output
    assert "5 runs, 5 to do" in result.output
    assert "two, seed 3: the average of 2 models is scored" in result.output
    folder = tiny / "runs" / "tiny"
    found = {(one.row, one.seed): one for one in records.read([folder])}
    assert sorted(found) == [*(("noisy", seed) for seed in range(1, 6)), ("two", 1), ("two", 3)]
    for seed in (1, 3):
        parts = [found["noisy", one] for one in (seed, seed + 1)]
        runs = [evaluate.load(folder / f"noisy-{one.seed}-{one.hash}") for one in parts]
        both = found["two", seed]
        for split in ("valid", "test"):
            assert both.scores[split] == evaluate.evaluate(runs, split)[0]
        assert both.test < max(part.test for part in parts)  # the logarithm is concave
        assert both.test != found["noisy", seed].test
        assert (both.models, both.label, both.published.test) == (2, "two models", 40.0)
        assert both.parameters == 2 * parts[0].parameters
        assert both.hash not in {one.hash for one in parts}
    page = (folder / "report.html").read_text()
    assert "two models" in page
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}
    assert call("run", "tiny.toml").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")} == before


def test_an_average_is_compared_with_as_many_models(call, tiny):
    """With the row that the recipe names, whoever tells; a mixture is no worse than the mean."""
    text = TEXT.replace('baseline = "noisy"', 'baseline = "plain"')
    text = text.replace("[rows.noisy]", '[rows.plain]\nnoise = "none"\n[rows.noisy]')
    (tiny / "tiny.toml").write_text(text + 'baseline = "noisy"\n')
    assert call("run", "tiny.toml", "--seed", 1, "--seed", 2, "--seed", 3).exit_code == 0
    found = records.read([tiny / "runs"])
    (both,) = (one for one in found if one.row == "two")
    assert (both.baseline, both.title) == ("noisy", "Averages")
    parts = {one.seed: one.test for one in found if one.row == "noisy"}
    (line,) = (one for one in report.summary(report.by_row(found)) if one.name == "two")
    assert line.baseline == "noisy"
    assert line.difference.count == 1
    assert line.difference.mean == pytest.approx(both.test - (parts[1] + parts[2]) / 2)
    assert line.difference.mean < 0
    fewer = [one for one in found if (one.row, one.seed) != ("noisy", 2)]
    (line,) = (one for one in report.summary(report.by_row(fewer)) if one.name == "two")
    assert line.difference is None


def test_models_of_an_average_are_of_their_own_row(call, tiny):
    text = TEXT.replace("[rows.noisy]", '[rows.noisy]\nlabel = "Noisy"\nnote = "Chosen so"')
    (tiny / "tiny.toml").write_text(text)
    whole = recipe.load("tiny.toml")
    key = corpus_key(whole.rows["two"].config)
    table = jobs.plan(whole, tiny, {key: "corpus"})
    own = [job for job in table if job.name == "noisy"]
    both = [job for job in table if job.name == "two"]
    assert averages.runs(table) == own
    assert averages.runs(both, table) == own[:4]
    late = dataclasses.replace(both[0], seed=8)
    assert [job.row for job in averages.runs([late], table)] == [whole.rows["noisy"]] * 2
    assert call("run", "tiny.toml", "--seed", 1, "--seed", 2).exit_code == 0
    found = [one for one in records.read([tiny / "runs"]) if one.row == "noisy"]
    said = {(one.label, one.published.test, one.note) for one in found}
    assert said == {("Noisy", 50.0, "Chosen so")}


def test_an_average_has_no_weights_to_load(call, tiny):
    result = call("run", "tiny.toml", "--seed", 1, "--seed", 2)
    assert result.exit_code == 0, result.output
    folders = sorted(path.parent for path in (tiny / "runs").rglob("record.json"))
    assert len(folders) == 3
    refused = call("evaluate", *folders)
    assert refused.exit_code == 2
    rule = "an average has no weights of its own; name the runs of its models; got two, an "
    assert f"{folders[-1].name}: {rule}average of 2" in refused.output


def test_a_corpus_is_read_once(call, tiny, monkeypatch):
    result = call("run", "tiny.toml", "--only", "noisy", "--seed", 1, "--seed", 2)
    assert result.exit_code == 0, result.output
    folders = [path.parent for path in (tiny / "runs").rglob("record.json")]
    read, load = [], tasks.load
    monkeypatch.setattr(tasks, "load", lambda *given: read.append(given) or load(*given))
    assert len(evaluate.load_all(folders)) == 2
    assert len(read) == 1


def test_runs_of_two_corpora_are_not_averaged(call, tiny):
    midi_folder(tiny / "other", pieces=9)
    for data in ("music", "other"):
        words = ["--only", "noisy", "--seed", 1, "--set", f"data={data}", "--out", f"of-{data}"]
        assert call("run", "tiny.toml", *words).exit_code == 0
    folders = [
        path.parent for of in ("of-music", "of-other") for path in (tiny / of).rglob("record.json")
    ]
    with pytest.raises(
        LabError, match=r"of-music/.* is of .*music, sha256 .*of-other/.* of .*other, "
    ):
        evaluate.load_all(folders)


def test_an_average_alone_trains_its_models(call, tiny):
    result = call("run", "tiny.toml", "--only", "two", "--seed", 6)
    assert result.exit_code == 0, result.output
    assert "2 runs, 2 to do" in result.output
    found = sorted((one.row, one.seed) for one in records.read([tiny / "runs"]))
    assert found == [("noisy", 6), ("noisy", 7), ("two", 6)]


def test_of_a_model_that_diverged_there_is_no_average(call, tiny):
    assert call("run", "tiny.toml", "--only", "noisy").exit_code == 0
    (path,) = (tiny / "runs" / "tiny").glob("noisy-2-*/record.json")
    record = json.loads(path.read_text()) | {"status": "diverged", "reason": "by hand"}
    path.write_text(json.dumps(record) + "\n")
    result = call("run", "tiny.toml", "--only", "two")
    assert result.exit_code != 0
    assert "noisy, seed 2 diverged: by hand" in result.output
    found = {(one.row, one.seed) for one in records.read([tiny / "runs"])}
    assert ("two", 3) in found
    assert ("two", 1) not in found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("models = 2", "", "at least 2; got average 'noisy', models 1"),
        ('average = "noisy"', "", "at least 2; got average '', models 2"),
        ("models = 2", "models = 1", "at least 2"),
        ('average = "noisy"', 'average = "other"', "average must be an earlier row"),
        ("models = 2", "models = 2\nlr = 0.1", "settings of its models; got lr"),
    ],
)
def test_what_is_no_average_is_refused(tiny, old, new, message):
    path = tiny / "wrong.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(LabError, match=message):
        recipe.load(str(path))


def test_averages_are_not_averaged(tiny):
    path = tiny / "wrong.toml"
    path.write_text(TEXT + '[rows.four]\naverage = "two"\nmodels = 2\n')
    with pytest.raises(LabError, match=r"an earlier row, one of \['noisy'\]; got 'two'"):
        recipe.load(str(path))
