"""``noisin run``: what a folder keeps from command to command, and what never stops a report."""

import re

import pytest

from lab_cases import walk
from noisin.lab import baselines, records, tasks
from test_cli import call as call  # a fixture

TEXT = """
title = "Two"
seeds = [1]
[base]
task = "series"
hidden_size = 4
epochs = 1
test_samples = [1]
[rows.a]
data = "a.csv"
[rows.b]
data = "b.csv"
"""


@pytest.fixture
def two(call, tmp_path):
    """The folder of a recipe whose two rows are of two files."""
    (tmp_path / "two.toml").write_text(TEXT)
    walk(tmp_path / "a.csv")
    walk(tmp_path / "b.csv", seed=1)
    result = call("run", "two.toml")
    assert result.exit_code == 0, result.output
    return tmp_path / "runs" / "two"


def test_other_corpora_stay_in_the_report(call, two):
    every = baselines.read([two])
    assert {corpus: len(own) for corpus, own in every.items()} == dict.fromkeys(every, 2)
    assert len(every) == 2
    result = call("run", "two.toml", "--only", "b")
    assert result.exit_code == 0, result.output
    assert "1 runs, 0 to do" in result.output
    assert baselines.read([two]) == every
    page = (two / "report.html").read_text()
    assert re.findall(r"<h2>(Two .*?)</h2>", page) == ["Two (a.csv)", "Two (b.csv)"]
    assert page.count("<td>the mean</td>") == 2


def test_of_a_file_that_has_changed_the_last_run_is_in_the_report(call, two, tmp_path):
    (first,) = [one for one in records.read([two]) if one.row == "a"]
    walk(tmp_path / "a.csv", seed=2)
    assert call("run", "two.toml").exit_code == 0
    (last,) = [one for one in records.read([two]) if one.row == "a" and one.hash != first.hash]
    result = call("run", "two.toml", "--only", "b", "--json")
    assert result.exit_code == 0, result.output
    assert last.hash in result.stdout
    assert first.hash not in result.stdout


def test_known_baselines_that_are_none_are_refused_before_any_run(call, two):
    (two / "own.baselines.json").write_text("{}\n")
    (two / "report.html").unlink()
    result = call("run", "two.toml", "--seed", 2)
    assert result.exit_code == 2
    assert "must be baselines" in result.stderr
    assert len(records.read([two])) == 2


def test_the_report_is_written_where_a_sample_cannot_be(call, two):
    for path in two.rglob("model.safetensors"):
        path.unlink()
    (two / "report.html").unlink()
    result = call("run", "two.toml")
    assert result.exit_code == 2
    assert re.search("no sample of [ab]: .*model.safetensors: .* whole safetensors", result.stderr)
    page = (two / "report.html").read_text()
    assert page.count("<h2>Two (") == 2
    assert "<h2>Samples</h2>" not in page


def test_a_corpus_is_read_once(call, two, monkeypatch):
    read, load = [], tasks.load
    monkeypatch.setattr(tasks, "load", lambda *given: read.append(given) or load(*given))
    assert call("run", "two.toml").exit_code == 0
    assert len(read) == 2
    assert len(list((two / "samples").glob("*.csv"))) == 1
