"""Processes that begin at once, and processes that may hang."""

import multiprocessing
import os
import signal
import subprocess
import threading
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

HANGS = 400.0  # seconds after which something is taken to hang, on a machine however slow


def context():
    """Return a context of processes, which are forked from one that has imported what they need.

    Its server begins here, in the place of the command's.
    """
    found = multiprocessing.get_context("forkserver")
    forkserver._forkserver._stop()
    found.set_forkserver_preload(["test_kills", "test_sweep_kills"])
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(Path(__file__).parent)}):
        first = found.Process(target=int)
        first.start()
        first.join()
    return found


def start(words, **more):
    """Start a command, as a terminal does: with a group of its own."""
    return subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"} | more.pop("env", {}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever ignored it
        **more,
    )


def output_of(process):
    """Wait for the end of what ``start`` began, and return what it said and nobody read.

    Where it hangs, its group ends, and each process in it says at what line it was.
    """
    watch = threading.Timer(HANGS, os.killpg, (process.pid, signal.SIGABRT))
    watch.start()
    with process.stdout as output:
        text = output.read()
    ended = process.wait()
    watch.cancel()
    assert ended != -signal.SIGABRT, text
    return text
