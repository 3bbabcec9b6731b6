"""Workers that are told to stop end, however much they told before that nobody heard."""

import io
import multiprocessing
import sys
import threading
import time

import pytest
from rich.console import Console

from lab_cases import midi_folder
from noisin.lab import jobs, recipe, rolls, starting, workers
from noisin.lab.config import corpus_key
from noisin.lab.sweep import Sweep
from processes import HANGS
from test_sweep import RECIPE

fcntl = pytest.importorskip("fcntl", reason="without it no pipe can be narrowed")
NARROW = 4096  # bytes, a dozen signs of progress
NUMBERS = ["epochs=100000", "patience=100000"]


class Deaf(Exception):
    """The main process heard nothing for a while, and then failed."""


@pytest.fixture(autouse=True)
def narrow_pipes(monkeypatch):
    """Let little of what workers tell wait in a pipe, so that they wait soon."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux lets a pipe be narrowed")
    context = starting.context

    def narrow(*modules):
        found = context(*modules)
        queue = found.Queue

        def narrow_queue():
            made = queue()
            fcntl.fcntl(made._writer, fcntl.F_SETPIPE_SZ, NARROW)
            return made

        monkeypatch.setattr(found, "Queue", narrow_queue, raising=False)
        return found

    monkeypatch.setattr(starting, "context", narrow)


@pytest.fixture
def killed():
    """Return a list of the processes that hung and were killed for it."""
    hung = []

    def kill():
        for process in multiprocessing.active_children():
            hung.append(process)
            process.kill()

    watch = threading.Timer(HANGS, kill)
    watch.start()
    yield hung
    watch.cancel()


@pytest.fixture
def deaf(monkeypatch):
    """Hear the first sign of progress, and no other."""
    show = jobs.Display.show

    def hear_once(display, news):
        heard = list(news)
        show(display, iter(heard))
        if heard:
            time.sleep(2)
            raise Deaf

    monkeypatch.setattr(jobs.Display, "show", hear_once)


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    music = midi_folder(tmp_path / "music")
    chosen = recipe.load(str(path), [f"data={music}", *NUMBERS])
    return chosen, rolls.load(str(music)).digest()


def test_runs(tmp_path, made, deaf, killed):
    chosen, digest = made
    (row,) = chosen.rows.values()
    planned = jobs.plan(chosen, tmp_path / "runs", {corpus_key(row.config): digest})
    with pytest.raises(Deaf):
        jobs.do(planned, processes=1, data_dir=None, console=Console(file=io.StringIO()))
    assert not killed


def test_trials(tmp_path, made, deaf, killed):
    chosen, digest = made
    folder = tmp_path / "runs"
    sweep = Sweep(chosen, digest, folder, str(folder / "journal.log"), trials=3, grace=60.0)
    with pytest.raises(Deaf):
        workers.do(sweep, processes=2, data_dir=None, console=Console(file=io.StringIO()))
    assert not killed
