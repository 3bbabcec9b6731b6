"""Runs that share a process: the numbers of each are those that it has alone."""

import dataclasses
import threading

import pytest
import torch

from lab_cases import corpus, small_bach
from noisin import Replicas
from noisin.lab import LabError, records, train, turns
from noisin.lab.ranks import Layout
from noisin.lab.rows import Row
from test_cli import call as call  # a fixture
from test_sweep import made as made  # a fixture
from test_train import StopAfter, job, told
from test_words import config as of_words
from test_words import corpus as words  # noqa: F401 (a fixture)

LEVELS = [f"hidden * Gaussian({std})" for std in (0.3, 0.6, 0.9)]


def music_jobs(folder, **changes):
    return [
        dataclasses.replace(job(folder, noise=noise, **changes), seed=seed)
        for seed, noise in enumerate(LEVELS, 1)
    ]


def runs(jobs, data, stopping=lambda: False):
    """Return functions that do runs in a turn each."""

    def one(job):
        return lambda turn: train.run(
            job, data, stopping=lambda: turn.cancelled or stopping(), ranks=turn
        )

    return [one(job) for job in jobs]


def test_in_turn_every_bit_is_that_of_a_run_alone(tmp_path):
    alone = [told(train.run(one, corpus())) for one in music_jobs(tmp_path / "alone")]
    shared = turns.take(runs(music_jobs(tmp_path / "shared"), corpus()))
    assert [told(one) for one in shared] == alone


def assert_close(shared, alone):
    for one, other in zip(shared, alone, strict=True):
        assert one.scores["test"] == pytest.approx(other.scores["test"], rel=1e-4)
        pairs = zip(one.history, other.history, strict=True)
        for epoch, of_other in pairs:
            assert epoch.train == pytest.approx(of_other.train, rel=1e-4)
            assert epoch.valid == pytest.approx(of_other.valid, rel=1e-4)


def test_a_run_that_another_is_at_is_waited_for(tmp_path):
    """Two trials of the same settings are one run: the second finds what the first has done."""
    (alone,) = music_jobs(tmp_path / "alone")[:1]
    same = [*music_jobs(tmp_path / "shared")[:1] * 2, *music_jobs(tmp_path / "shared")[1:]]
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(turns.take(runs(same, corpus()))), daemon=True
    )
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "they wait for each other"
    assert told(found[0]) == told(found[1]) == told(train.run(alone, corpus()))


@pytest.mark.parametrize("changes", [{}, {"padding": "front"}, {"cell": "gru", "train_samples": 2}])
def test_together_they_differ_by_rounding(tmp_path, changes):
    alone = [train.run(one, corpus()) for one in music_jobs(tmp_path / "alone", **changes)]
    shared = runs(music_jobs(tmp_path / "shared", **changes), corpus())
    assert_close(turns.take(shared, together=True), alone)


@pytest.mark.parametrize("levels", [LEVELS, [f"{one} @ moments" for one in LEVELS] + LEVELS[:1]])
def test_together_on_words(tmp_path, words, levels):  # noqa: F811 (the fixture)
    """The state is carried from window to window; runs of other lengths end one by one."""

    def jobs(folder):
        found = []
        for seed, noise in enumerate(levels, 1):
            row = Row(config=of_words(noise=noise, epochs=seed), label="a", baseline="a")
            found.append(train.Job("tiny", "A", "a", row, seed, words.digest(), folder))
        return found

    alone = [train.run(one, words) for one in jobs(tmp_path / "alone")]
    shared = turns.take(runs(jobs(tmp_path / "shared"), words), together=True)
    assert_close(shared, alone)


def test_one_pass_serves_all(tmp_path, monkeypatch):
    passes, mapped = [], Replicas._mapped

    def counted(self, group, *given):
        passes.append(len(group))
        return mapped(self, group, *given)

    monkeypatch.setattr(Replicas, "_mapped", counted)
    jobs = music_jobs(tmp_path, padding="front")  # batches of one shape
    done = turns.take(runs(jobs, corpus()), together=True)
    assert passes == [3] * done[0].updates


@pytest.mark.parametrize("together", [False, True])
def test_stopped_and_resumed(tmp_path, together):
    whole = turns.take(runs(music_jobs(tmp_path / "whole"), corpus()), together=together)
    jobs = music_jobs(tmp_path / "cut")
    with pytest.raises(train.Stopped):
        turns.take(runs(jobs, corpus(), StopAfter(20)), together=together)
    resumed = turns.take(runs(jobs, corpus()), together=together)
    if together:
        assert_close(resumed, whole)
    else:
        assert [told(one) for one in resumed] == [told(one) for one in whole]


def test_a_refused_run_stops_the_others(tmp_path):
    jobs = music_jobs(tmp_path)
    jobs[1].path.mkdir(parents=True)
    (jobs[1].path / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(LabError, match="checkpoint"):
        turns.take(runs(jobs, corpus()))
    assert not (jobs[0].path / "record.json").exists()
    assert (jobs[0].path / "checkpoint.safetensors").exists()


def test_each_draws_from_its_own_stream():
    def draw(turn):
        torch.manual_seed(3)
        first = torch.rand(2)
        turn.rest(0)
        return first, torch.rand(2)

    torch.manual_seed(3)
    expected = torch.rand(2), torch.rand(2)
    for found in turns.take([draw, draw]):
        assert all(map(torch.equal, found, expected))


def test_rest_lets_the_others_work():
    done = []

    def waits(turn):
        while not done:
            turn.rest(0.01)

    turns.take([waits, lambda turn: done.append(turn)])


@pytest.mark.parametrize("command", [["run", "--seed", 1, "--seed", 2], ["sweep", "--trials", 2]])
def test_the_command_has_the_same_records(tmp_path, call, made, command):
    small_bach(tmp_path)
    made()
    name, *options = command
    found = []
    for shared in (1, 3):
        options = [*options, "--replicas", shared, "--processes", 1, "--out", f"of-{shared}"]
        result = call(name, "tiny.toml", *options)
        assert result.exit_code == 0, result.output
        paths = sorted((tmp_path / f"of-{shared}").glob("*/*/record.json"))
        found.append({one.hash: told(one) for one in records.read(paths)})
    assert len(found[0]) == 2
    assert found[0] == found[1]


def test_layouts_that_replicas_have_not(call, made):
    made()
    for options in (["--devices", 2], ["--precision", "bf16-mixed"]):
        result = call("run", "tiny.toml", "--replicas", 2, *options)
        assert result.exit_code == 2
        assert "--replicas are runs of one device" in result.output
    result = call("sweep", "tiny.toml", "--accelerator", "cuda")
    assert result.exit_code == 2
    assert "--accelerator is for --replicas above 1" in result.output


def test_where_runs_can_share(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Layout().shared(1) is None
    assert Layout().shared(4) == "cpu"
    assert Layout(accelerator="auto").shared(4) == "cpu"
    with pytest.raises(LabError, match="there is none"):
        Layout(accelerator="cuda").shared(4)
    with pytest.raises(LabError, match="leave out"):
        Layout(devices=2).shared(4)


@pytest.mark.parametrize(
    ("name", "values"), [("final_moments", (True, False)), ("train_samples", (1, 2))]
)
def test_settings_that_a_loss_reads_stay_their_own(tmp_path, name, values):
    noise = "fast_dropout(recurrent=0.5)" if name == "final_moments" else LEVELS[0]
    jobs = [
        dataclasses.replace(job(tmp_path / str(value), noise=noise, **{name: value}), seed=1)
        for value in values
    ]
    alone = [train.run(one, corpus()) for one in jobs]
    again = [dataclasses.replace(one, folder=one.folder / "shared") for one in jobs]
    assert_close(turns.take(runs(again, corpus()), together=True), alone)
    assert alone[0].history[-1].train != pytest.approx(alone[1].history[-1].train, rel=1e-4)
