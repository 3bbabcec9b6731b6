"""Four workers, one of them killed every few trials: every trial finished, none twice.

NOISIN_TRIALS sets how many trials; 200 take a minute or two.
"""

import os
import random
import time
from collections import Counter

import pytest
import torch
from optuna.trial import TrialState

from lab_cases import corpus
from noisin.lab import recipe, records
from noisin.lab.sweep import Sweep, Worker
from noisin.lab.trials import close, finished, is_lost
from postgres import Server
from processes import context
from test_sweep import RECIPE

WORKERS, TRIALS = 4, int(os.environ.get("NOISIN_TRIALS", "40"))
LIMIT = 400.0  # seconds


def be_worker(sweep):
    torch.set_num_threads(1)
    Worker(sweep, corpus()).run()


def survive(sweep, disturb=lambda done: None, seed=0):
    """Run a sweep by four processes, kill one after every few trials, begin another in its place.

    What is finished decides when to kill, not a clock: a fast machine is done within seconds.
    """
    processes = context()
    rng, kills, count = random.Random(seed), 0, 0
    view = Worker(sweep, corpus())

    def begin():
        nonlocal count
        count += 1
        process = processes.Process(target=be_worker, args=(sweep,), daemon=True)
        process.start()
        return process

    workers = [begin() for _ in range(WORKERS)]
    begun = time.monotonic()
    next_kill = 1
    while (done := len(finished(view.trials()))) < sweep.trials:
        assert time.monotonic() - begun < LIMIT, f"{done} of {sweep.trials} after {kills} kills"
        disturb(done)
        if done >= next_kill:
            victim = rng.randrange(WORKERS)
            workers[victim].kill()
            workers[victim].join()
            workers[victim] = begin()
            kills += 1
            next_kill = done + rng.randint(1, max(1, sweep.trials // 10))
        time.sleep(0.05)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    trials = view.trials()
    close(view.storage)
    return trials, kills


def check(sweep, trials, kills):
    """Every finished trial has the record of its own settings, and there are as many as asked."""
    counted = finished(trials)
    assert len(counted) == sweep.trials
    assert {t.state for t in counted} == {TrialState.COMPLETE}
    assert all(t.state.is_finished() or t.state == TrialState.WAITING for t in trials)
    assert kills >= 3
    runs = {record.hash: record for record in records.read([sweep.folder])}
    of_trials = Counter(t.user_attrs["run"].rsplit("-", 1)[1] for t in counted)
    assert set(of_trials) <= set(runs)
    assert set(of_trials.values()) == {1}
    for trial in counted:
        record = runs[trial.user_attrs["run"].rsplit("-", 1)[1]]
        assert record.best == trial.value
    for trial in trials:  # what was lost was tried again, or had not begun
        if is_lost(trial) and "sign of life" in trial.user_attrs["lost"] and trial.params:
            assert any(t.user_attrs.get("again") == trial.number for t in trials)


def sweep_of(folder, storage):
    path = folder / "tiny.toml"
    path.write_text(RECIPE.replace("[3, 4, 5]", "{low = 3, high = 6}"))
    chosen = recipe.load(str(path))
    return Sweep(chosen, corpus().digest(), folder / "runs", storage, TRIALS, grace=4.0)


def test_on_a_journal_file(tmp_path):
    sweep = sweep_of(tmp_path, str(tmp_path / "runs" / "journal.log"))
    check(sweep, *survive(sweep))


@pytest.mark.postgres
def test_on_a_postgresql_server_that_restarts(tmp_path):
    pytest.importorskip("psycopg")
    server = Server()
    server.start()
    restarts = []

    def disturb(done):
        if done > TRIALS // 3 and not restarts:
            restarts.append(done)
            server.restart()

    try:
        sweep = sweep_of(tmp_path, server.url)
        trials, kills = survive(sweep, disturb)
    finally:
        server.remove()
    assert restarts
    check(sweep, trials, kills)
