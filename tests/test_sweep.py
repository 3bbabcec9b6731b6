"""A sweep by workers in this process: what counts, what is lost, what is tried again."""

import io
import itertools
import json

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from lab_cases import corpus, midi_folder
from noisin.lab import LabError, best, recipe, records, sweep, train, workers
from noisin.lab.sweep import Sweep, Worker
from noisin.lab.task import Stopped
from noisin.lab.trials import distributions, finished, is_lost, open_storage, patiently
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
    assert best.write(found, []) is None


def test_a_silent_workers_trial_is_done_by_another(made):
    found = made(trials=2)
    gone = Worker(found, corpus())
    trial = gone.study.ask(distributions(found.search))  # and never heard of again
    Worker(found, corpus()).run()
    trials = trials_of(found)
    assert is_lost(trials[0])
    assert trials[0].user_attrs["lost"] == "its worker gave no sign of life"
    assert len(finished(trials)) == 2
    again = [t for t in trials if t.user_attrs.get("again") == 0]
    assert [t.params for t in again] == [trial.params]
    assert again[0].state == TrialState.COMPLETE


def test_a_trial_that_was_taken_away_is_left_alone(made, monkeypatch):
    """Its first worker was only slow; it goes on to another trial and tells nothing."""
    found = made(trials=1)
    slow, taken = Worker(found, corpus()), []
    run = train.run

    def stall(job, data, tell, stopping, ranks=None):
        if not taken:
            (trial,) = trials_of(found)
            slow._lose(trial, "its worker gave no sign of life", again=True)
            taken.append(job.hash)
        return run(job, data, tell, stopping, ranks)

    monkeypatch.setattr(train, "run", stall)
    slow.run()
    first, second = trials_of(found)
    assert is_lost(first)
    assert first.value is None
    assert second.state == TrialState.COMPLETE
    assert second.params == first.params


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
    assert best.write(found, trials) is None


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


def test_stopped_trials_are_given_back_and_go_on(made):
    whole = made(trials=1)
    Worker(whole, corpus()).run()
    (expected,) = records.read([whole.folder])
    cut = made(trials=1, seed=0, storage=str(whole.folder / "cut.log"))
    cut = Sweep(**{**vars(cut), "folder": whole.folder / "cut"})
    questions = itertools.count()
    with pytest.raises(Stopped):
        Worker(cut, corpus(), stopping=lambda: next(questions) > 6).run()
    lost, waiting = trials_of(cut)
    assert is_lost(lost)
    assert waiting.state == TrialState.WAITING
    Worker(cut, corpus()).run()
    (found,) = records.read([cut.folder])
    assert found.weights == expected.weights
    assert len(finished(trials_of(cut))) == 1


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


def test_a_faulty_machine_is_no_result(made):
    """The trial goes back, and the worker ends with what was wrong."""
    found = made(trials=2)
    Worker(found, corpus())
    (found.folder / "in the way").write_text("")
    there = Sweep(**{**vars(found), "folder": found.folder / "in the way"})
    with pytest.raises(LabError, match="must be a folder that can be written"):
        Worker(there, corpus()).run()
    lost, waiting = trials_of(found)
    assert is_lost(lost)
    assert waiting.state == TrialState.WAITING
    Worker(found, corpus()).run()
    assert len(finished(trials_of(found))) == 2


@pytest.mark.parametrize("silent", ["set_trial_state_values", "create_new_trial"])
def test_an_answer_that_is_lost(made, monkeypatch, silent):
    """What was done although no answer came is not done twice, and not forgotten."""
    found = made(trials=1)
    worker = Worker(found, corpus())
    trial = worker.study.ask(distributions(found.search))
    real, calls = getattr(worker.storage, silent), []

    def once(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(args)
        if len(calls) == 1:
            raise OSError("the connection was closed")
        return result

    monkeypatch.setattr(worker.storage, silent, once)
    worker._lose(trial, "its worker gave no sign of life", again=True)
    lost, *waiting = trials_of(found)
    assert is_lost(lost)
    assert [t.user_attrs["again"] for t in waiting] == [0]


def test_what_was_queued_twice_is_done_once(made):
    """As a database does whose answer is lost: it asks itself again."""
    found = made(trials=3)
    worker = Worker(found, corpus())
    trial = worker.study.ask(distributions(found.search))
    worker._lose(trial, "its worker gave no sign of life", again=True)
    worker.study.enqueue_trial(trial.params, {"again": 0})
    worker.run()
    trials = trials_of(found)
    assert len(finished(trials)) == 3
    same = [t for t in trials if t.params == trial.params and t.number]
    assert [is_lost(t) for t in same] == [False, True]
    assert same[1].user_attrs["lost"] == "queued twice"


def test_settings_that_were_drawn_in_part_are_kept(made):
    """A worker killed while it took a trial from the queue."""
    found = made(trials=1)
    worker = Worker(found, corpus())
    drawn = {"hidden_size": 4, "lr": 0.01, "std": 0.5}
    worker.study.enqueue_trial(drawn)
    trial = worker.study.ask()
    trial.suggest_float("std", 0.1, 1.0)
    worker._lose(trial, "its worker gave no sign of life", again=True)
    assert Worker(found, corpus()).study.ask(distributions(found.search)).params == drawn


def test_nobody_is_blamed_for_a_storage_that_was_away(made, monkeypatch):
    found = made(trials=1, grace=100.0)
    busy, idle = Worker(found, corpus()), Worker(found, corpus())
    busy.study.ask(distributions(found.search))
    trials, now = idle.trials(), [0.0]
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now[0])

    def look(*times):
        for now[0] in times:
            idle._take_back(trials)
        return is_lost(trials_of(found)[0])

    assert not look(0.0, 10.0, 400.0, 430.0, 460.0)  # away from 10 to 400
    assert look(490.0, 520.0)


def test_a_worker_says_why_it_ended(made, monkeypatch):
    found = made(["data=nottingham"])
    console = Console(file=io.StringIO())
    monkeypatch.setenv("NOISIN_CACHE", str(found.folder / "nothing"))
    with pytest.raises(LabError, match="nottingham"):
        workers.do(found, processes=2, data_dir=found.folder.parent, console=console)


def test_one_more_than_were_asked_for_is_lost(made, monkeypatch):
    """Two workers that asked at the same moment: the second one sees both trials."""
    found = made(trials=1)
    worker, asked = Worker(found, corpus()), []
    ask = optuna.Study.ask

    def both(study, space):
        if not asked:
            asked.append(ask(study, space))
        return ask(study, space)

    monkeypatch.setattr(optuna.Study, "ask", both)
    worker.run()
    trials = trials_of(found)
    assert len(finished(trials)) == 1
    assert any(t.user_attrs.get("lost") == "one more than were asked for" for t in trials)


def test_a_torn_line_of_the_journal_is_mended(made):
    found = made(trials=1)
    Worker(found, corpus()).run()
    path = found.folder / "journal.log"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker')
    more = made(trials=2)
    Worker(more, corpus()).run()
    assert len(finished(trials_of(more))) == 2
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_storage_that_does_not_answer(made, monkeypatch):
    answers = iter([OSError("down"), OSError("down"), 7])

    def call():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(call) == 7
    monkeypatch.setattr("noisin.lab.trials.PATIENCE", 0.0)

    def down():
        raise OSError("down")

    with pytest.raises(LabError, match="did not answer"):
        patiently(down)
    with pytest.raises(LabError, match="--storage must be a database or a journal file"):
        open_storage("nothing://here")


def test_the_command(call, tmp_path):
    music = tmp_path / "music"
    music.mkdir()
    midi_folder(music)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
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
