"""Trials of an earlier search, taken up by a sweep that has none."""

import json
import re

import pytest
from matplotlib.figure import Figure
from optuna.trial import TrialState

from lab_cases import corpus
from noisin.lab import LabError, best, panels, recipe, spent, sweep, sweep_command
from noisin.lab.sweep import Worker
from noisin.lab.trials import LOST, finished
from test_cli import call as call  # a fixture
from test_sweep import RECIPE, trials_of, written
from test_sweep import made as made  # a fixture


@pytest.fixture
def earlier(made):
    """A finished sweep of four trials, and what it has spent."""
    found = made()
    Worker(found, corpus()).run()
    return trials_of(found), spent.read_one(best.write_spent(found, trials_of(found)))


def take_up(found, one):
    worker = Worker(found, corpus())
    best.take_up(found, worker.study, one)
    return worker


def test_they_count_and_those_that_follow_are_the_same(made, earlier, tmp_path):
    trials, one = earlier
    first = one.model_copy(update={"trials": one.trials[:2]})
    found = made(storage=str(tmp_path / "elsewhere.log"))
    done = []
    worker = take_up(found, first)
    worker.told = lambda number, *_: done.append(number)
    worker.run()
    assert done == [2, 3]
    assert [(t.params, t.value) for t in trials_of(found)] == [(t.params, t.value) for t in trials]
    for mine, old in zip(trials_of(found), trials, strict=True):
        assert mine.intermediate_values == pytest.approx(old.intermediate_values, abs=1e-4)
        assert min(mine.intermediate_values.values()) == pytest.approx(mine.value, abs=1e-4)


def test_each_keeps_its_number_and_its_end(made, earlier, tmp_path):
    _, one = earlier
    zero, _, two, three = one.trials
    failed = two.model_copy(update={"state": "failed", "valid": None, "reason": "too large"})
    pruned = three.model_copy(update={"state": "pruned", "valid": None})
    found = made(storage=str(tmp_path / "elsewhere.log"))
    worker = take_up(found, one.model_copy(update={"trials": (zero, failed, pruned)}))
    trials = worker.trials()
    states = (TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.PRUNED)
    assert tuple(t.state for t in trials) == states
    assert LOST in trials[1].user_attrs
    assert trials[2].user_attrs["reason"] == "too large"
    assert len(finished(trials)) == 3
    again = spent.read_one(best.write_spent(found, trials))
    assert again.trials == (zero, failed, pruned)


@pytest.fixture
def cut_short(made, monkeypatch):
    """A sweep that pruned some of its trials."""
    monkeypatch.setattr(sweep, "STARTUP", 1)
    found = made(["epochs=6", "patience=6"], prune=True, trials=8)
    Worker(found, corpus()).run()
    return found


def test_only_a_finished_trial_has_a_score(cut_short, made, tmp_path):
    """Optuna gives a pruned one its last score, which is of no whole run."""
    trials = trials_of(cut_short)
    one = spent.read_one(best.write_spent(cut_short, trials))
    pruned = [trial for trial in one.trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.valid is None and trial.course for trial in pruned)
    assert all(trial.valid is not None for trial in one.trials if trial.finished)
    old = one.model_copy(update={"trials": tuple(map(with_its_last_score, one.trials))})
    for number, known in enumerate((one, old)):  # older files have scores of pruned ones
        again = made(["epochs=6", "patience=6"], storage=str(tmp_path / f"{number}.log"), trials=8)
        taken = take_up(again, known).trials()
        assert [t.state for t in taken] == [t.state for t in trials]
        assert [t.value for t in taken] == [trial.valid for trial in one.trials]
        assert spent.read_one(best.write_spent(again, taken)).trials == one.trials


def with_its_last_score(trial):
    last = trial.course[max(trial.course)]
    return trial if trial.finished else trial.model_copy(update={"valid": last})


def test_the_best_of_an_older_file_is_a_finished_one(earlier):
    _, one = earlier
    low = one.trials[2].model_copy(update={"state": "pruned", "valid": 0.0})
    old = one.model_copy(update={"trials": (*one.trials[:2], low)})
    assert old.best in one.trials[:2]
    axes = Figure().subplots()
    panels.draw_strength([old.model_copy(update={"own": ("std",)})], axes)
    assert sum(len(line.get_xydata()) for line in axes.get_lines()) == 2


def test_only_finished_trials_are_told_as_the_best(cut_short, capsys):
    trials = trials_of(cut_short)
    sweep_command._print_trials(trials, count=len(trials))
    told = re.findall(r"^trial (\d+): valid", capsys.readouterr().out, re.M)
    whole = [t.number for t in trials if t.state == TrialState.COMPLETE]
    assert sorted(map(int, told)) == whole


def test_another_search_is_refused(made, earlier):
    _, one = earlier
    for other in (made(seed=3), made(sampler="tpe"), made(["epochs=3"]), made(["lr=0.1"])):
        with pytest.raises(LabError, match=f"same search, {other.study}; got those of"):
            take_up(other, one)


def test_a_search_that_has_trials_keeps_them(made, earlier):
    """Also from the file of another search, which is refused all the same."""
    trials, one = earlier
    shorter = one.model_copy(update={"trials": one.trials[:1]})
    assert len(take_up(made(), shorter).trials()) == len(trials)
    with pytest.raises(LabError, match="of the same search"):
        take_up(made(), one.model_copy(update={"study": "another"}))


def test_settings_outside_the_space_are_refused_and_nothing_is_kept(made, earlier, tmp_path):
    _, one = earlier
    wide = one.trials[1].model_copy(update={"settings": one.trials[1].settings | {"std": 9.0}})
    found = made(storage=str(tmp_path / "elsewhere.log"))
    with pytest.raises(LabError, match="must lie in the space"):
        take_up(found, one.model_copy(update={"trials": (one.trials[0], wide)}))
    assert not trials_of(found)


def test_what_was_found_may_become_the_row_itself(tmp_path):
    """The study of a row is the same whatever the row says of what is searched."""

    def study(text):
        path = tmp_path / "tiny.toml"
        path.write_text(text)
        return sweep.study_name(recipe.load(str(path)), "corpus", "random", 0)

    usual = study(RECIPE)
    assert study(RECIPE.replace("Gaussian(1.0)", "Gaussian(0.2)")) == usual
    assert study(RECIPE.replace("[rows.noisy]", "[rows.noisy]\nlr = 0.03")) == usual
    assert study(RECIPE.replace("[rows.noisy]", "[rows.noisy]\nclip = 0.03")) != usual
    assert study(RECIPE.replace("high = 1.0", "high = 2.0")) != usual


def test_the_command(call, tmp_path):
    path, music = written(tmp_path)
    command = ("sweep", path, "--processes", 1, "--set", f"data={music}")
    result = call(*command, "--trials", 2)
    assert result.exit_code == 0, result.output
    (kept,) = (tmp_path / "runs").rglob("*.trials.json")
    assert len(spent.read_one(kept).trials) == 2
    more = (*command, "--trials", 3, "--out", tmp_path / "elsewhere", "--known", kept)
    result = call(*more)
    assert result.exit_code == 0, result.output
    assert "1 of 3 trials to do" in result.output
    again = call(*more)  # what is there already is not taken up twice
    assert again.exit_code == 0, again.output
    assert "0 of 3 trials to do" in again.output
    strange = tmp_path / "strange.trials.json"
    strange.write_text(json.dumps({"trials": []}))
    refused = call(*command, "--out", tmp_path / "third", "--known", strange)
    assert refused.exit_code == 2
    assert "must be the trials of a sweep" in refused.output


def test_trials_are_written_as_they_end(made, monkeypatch, tmp_path):
    """A sweep that is killed leaves those that were done."""
    counts = []
    kept = best.write_spent

    def write(found, trials):
        counts.append(len(finished(trials)))
        return kept(found, trials)

    monkeypatch.setattr(best, "write_spent", write)
    path, music = written(tmp_path)
    sweep_command.sweep(
        name=str(path),
        trials=3,
        storage="",
        changes=[f"data={music}"],
        data_dir=None,
        out=tmp_path / "runs",
        processes=1,
    )
    assert counts[-1] == 3
    assert len(counts) >= 2
