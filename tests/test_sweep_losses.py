"""Sweeps when workers, machines or the storage fail: no trial is lost, none counts twice."""

import itertools
import json

import optuna
import pytest
from optuna.trial import TrialState

from lab_cases import corpus
from noisin.lab import LabError, records, sweep, train
from noisin.lab.sweep import Sweep, Worker
from noisin.lab.task import Stopped
from noisin.lab.trials import distributions, finished, is_lost, open_storage, patiently
from test_sweep import made as made  # a fixture
from test_sweep import trials_of


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
