"""A sweep by workers in this process: what is drawn, run, counted, and kept as the best."""

import dataclasses
import io
import json
import multiprocessing

import pytest
from optuna.trial import TrialState
from rich.console import Console

from lab_cases import corpus, midi_folder
from noisin.lab import LabError, best, recipe, records, rolls, sweep, train, trials, workers
from noisin.lab.sweep import Sweep, Worker
from noisin.lab.trials import distributions, finished
from test_cli import call as call  # a fixture

RECIPE = """
title = "Tiny"
seeds = [2]
[base]
task = "music"
data = "bach"
batch_size = 3
chunk = 6
epochs = 2
test_samples = [1]
[rows.noisy]
noise = "hidden * Gaussian(1.0)"
[search]
row = "noisy"
[search.space]
hidden_size = [3, 4, 5]
lr = {low = 1e-3, high = 1e-1, log = true}
std = {low = 0.1, high = 1.0}
[search.settings]
noise = "hidden * Gaussian({std})"
"""


@pytest.fixture
def made(tmp_path):
    """Return a function that makes a sweep."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)

    def make(changes=(), **options):
        chosen = recipe.load(str(path), changes)
        folder = tmp_path / "runs"
        usual = {"storage": str(folder / "journal.log"), "trials": 4, "grace": 1.0}
        return Sweep(chosen, corpus().digest(), folder, **usual | options)

    return make


def written(folder):
    """Write the recipe and a folder of music."""
    path, music = folder / "tiny.toml", folder / "music"
    path.write_text(RECIPE)
    music.mkdir()
    midi_folder(music)
    return path, music


def trials_of(found):
    return Worker(found, corpus()).trials()


def test_every_trial_is_run_and_none_twice(made):
    found = made()
    told = []
    Worker(found, corpus(), told=lambda *news: told.append(news)).run()
    trials = trials_of(found)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
    assert [number for number, *_ in told] == [0, 1, 2, 3]
    assert told[0][1].startswith("valid ")
    runs = {record.hash: record for record in records.read([found.folder])}
    assert len(runs) == 4
    for trial in trials:
        record = records.read([found.folder / trial.user_attrs["run"]])[0]
        assert record.best == trial.value
        assert record.config.hidden_size == trial.params["hidden_size"]
        assert set(record.scores) == {"train", "valid"}  # the test split is for the best alone
        assert not record.monte_carlo
    told.clear()
    Worker(found, corpus(), told=lambda *news: told.append(news)).run()
    assert not told


def test_the_draws_of_a_trial_are_its_numbers_own(made, tmp_path):
    """Whoever draws them, and whatever was drawn before."""
    found = made()
    Worker(found, corpus()).run()
    other = made(storage=str(tmp_path / "other.log"))
    studies = [Worker(other, corpus()).study for _ in range(2)]
    space = distributions(found.search)
    drawn = [studies[i].ask(space).params for i in (1, 0, 0, 1)]
    assert drawn == [t.params for t in trials_of(found)]
    assert len({json.dumps(one) for one in drawn}) == 4
    another = made(storage=str(tmp_path / "third.log"), seed=1)
    assert Worker(another, corpus()).study.ask(space).params != drawn[0]


def test_the_best_trial_becomes_a_row_that_runs_again(made):
    found = made()
    Worker(found, corpus()).run()
    path = best.write(found, trials_of(found))
    chosen = recipe.load(str(path))
    first = min(records.read([found.folder]), key=lambda record: record.best)
    assert list(chosen.rows) == ["best"]
    assert chosen.rows["best"].config.hash(found.corpus, 2) == first.hash
    assert chosen.seeds == (2,)
    with pytest.raises(LabError, match="no trial has a score"):
        best.write(found, [])


@pytest.mark.parametrize("changes", [["lr=1e30"], ["chunk=0.5"]])
def test_failed_trials_say_why_and_count(made, changes, monkeypatch):
    if changes == ["chunk=0.5"]:

        def fail(*_):
            raise MemoryError("no more")

        monkeypatch.setattr(train, "run", fail)
        found, reason = made(), "MemoryError: no more"
    else:
        found, reason = made(["lr=1e30", "optimizer=sgd", "momentum=0.9"]), "not finite"

        def diverged(*args):
            raise RuntimeError("the loss is not finite")

        monkeypatch.setattr(train, "run", diverged)
    told = []
    Worker(found, corpus(), told=lambda *news: told.append(news)).run()
    trials = trials_of(found)
    assert [t.state for t in trials] == [TrialState.FAIL] * 4
    assert len(finished(trials)) == 4
    assert all(reason in t.user_attrs["reason"] for t in trials)
    assert all(how.startswith("failed: ") for _, how, _ in told)
    with pytest.raises(LabError, match=f"no trial has a score\n.*{reason}"):
        best.write(found, trials)


def test_a_diverged_run_is_a_failed_trial(made, monkeypatch):
    from noisin.lab.trainer import Diverged, Trainer

    def update(self, loss):
        raise Diverged("the loss is nan at update 1")

    monkeypatch.setattr(Trainer, "_update", update)
    found = made(trials=1)
    Worker(found, corpus()).run()
    (trial,) = trials_of(found)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "the loss is nan at update 1"


def test_more_trials_may_be_asked_for_later(made):
    Worker(made(trials=1), corpus()).run()
    Worker(made(trials=3), corpus()).run()
    assert len(finished(trials_of(made()))) == 3


def test_trials_worse_than_the_median_end_early(made, monkeypatch):
    monkeypatch.setattr(sweep, "STARTUP", 1)
    found = made(["epochs=6", "patience=6"], prune=True, trials=8)
    Worker(found, corpus()).run()
    trials = trials_of(found)
    states = [t.state for t in trials]
    assert len(finished(trials)) == 8
    assert TrialState.PRUNED in states
    assert states.count(TrialState.COMPLETE) >= 2
    pruned = next(t for t in trials if t.state == TrialState.PRUNED)
    assert 1 <= len(pruned.intermediate_values) < 6
    assert not (found.folder / pruned.user_attrs["run"] / "record.json").exists()


def test_tpe(made):
    found = made(sampler="tpe")
    Worker(found, corpus()).run()
    assert len(finished(trials_of(found))) == 4
    assert found.study != made().study


def test_workers_that_begin_anew_do_not_draw_the_same_again(made, tmp_path):
    for sampler in ("random", "tpe"):
        found = made(sampler=sampler, storage=str(tmp_path / f"{sampler}.log"))
        space = distributions(found.search)
        drawn = [Worker(found, corpus()).study.ask(space).params for _ in range(4)]
        assert len({one["std"] for one in drawn}) == 4


def test_a_worker_says_why_it_ended(made, monkeypatch):
    found = made(["data=nottingham"])
    console = Console(file=io.StringIO())
    monkeypatch.setenv("NOISIN_CACHE", str(found.folder / "nothing"))
    monkeypatch.delenv("NOISIN_DATA", raising=False)
    with pytest.raises(LabError, match="nottingham"):
        workers.do(found, processes=2, data_dir=found.folder.parent, console=console)


def test_workers_stop_where_the_command_fails(made, tmp_path):
    music = midi_folder(tmp_path / "music")
    found = made([f"data={music}"], trials=500)
    found = dataclasses.replace(found, corpus=rolls.load(str(music)).digest())

    def fails():
        raise OSError("no space left")

    options = {"processes": 2, "data_dir": None, "console": Console(file=io.StringIO())}
    with pytest.raises(OSError, match="no space left"):
        workers.do(found, **options, ended=fails)
    assert not multiprocessing.active_children()
    assert len(finished(trials_of(found))) < 500


def test_the_command(call, tmp_path):
    path, music = written(tmp_path)
    command = ("sweep", path, "--trials", 3, "--processes", 2, "--set", f"data={music}")
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert "3 of 3 trials to do" in result.output
    assert "3 finished" in result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(records.read([folder])) == 3
    again = call(*command)
    assert "0 of 3 trials to do" in again.output
    rerun = call("run", folder / "best.toml", "--processes", 1)
    assert rerun.exit_code == 0, rerun.output
    (best,) = records.read([tmp_path / "runs" / "best"])
    assert "test" in best.scores
    trial = next(r for r in records.read([folder]) if r.hash == best.hash)
    assert trial.weights == best.weights
    report = call("report", folder)
    assert report.exit_code == 0, report.output
    refused = call("sweep", "ptb")
    assert refused.exit_code == 2
    assert "[search]" in refused.output
    refused = call("sweep", path, "--sampler", "grid", "--set", f"data={music}")
    assert "random or tpe" in refused.output
    nobody = "postgresql://nobody@127.0.0.1:1/none"
    refused = call("sweep", path, "--storage", nobody, "--set", f"data={music}")
    assert refused.exit_code == 2
    assert "must be a database that answers" in refused.output


def test_a_search_with_products_in_bfloat16(call, tmp_path):
    """Is another search, whose best trial runs again with the same option."""
    path, music = written(tmp_path)
    command = ("sweep", path, "--trials", 1, "--processes", 1, "--set", f"data={music}")
    result = call(*command, "--precision", "bf16-mixed")
    assert result.exit_code == 0, result.output
    assert "best.toml --precision bf16-mixed" in " ".join(result.output.split())
    (folder,) = (tmp_path / "runs").iterdir()
    (trial,) = records.read([folder])
    assert trial.environment.precision == "bf16-mixed"
    rerun = call("run", folder / "best.toml", "--precision", "bf16-mixed")
    assert rerun.exit_code == 0, rerun.output
    (found,) = records.read([tmp_path / "runs" / "best-bf16-mixed"])
    assert (found.hash, found.weights) == (trial.hash, trial.weights)
    assert call(*command).exit_code == 0
    assert len([*(tmp_path / "runs").glob("*-search-*")]) == 2
    refused = call(*command, "--precision", "16-mixed")
    assert refused.exit_code == 2
    assert "--precision must be one of 32-true, bf16-mixed" in refused.output


def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path):
    path = tmp_path / "mine.txt"
    for text in ("the only copy", "garbage\n"):
        path.write_text(text)
        with pytest.raises(LabError, match=r"a journal of trials; .*mine.txt is neither"):
            trials.check(str(path))
        assert path.read_text() == text
    for text in ("", '{"op_c'):  # new, and torn in its first line
        path.write_text(text)
        trials.check(str(path))
