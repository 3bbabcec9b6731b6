"""Processes that begin at once: forked from one that has imported what they need."""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock


def context():
    """Return a context of processes; its server begins here, in the place of the command's."""
    found = multiprocessing.get_context("forkserver")
    forkserver._forkserver._stop()
    found.set_forkserver_preload(["test_kills", "test_sweep_kills"])
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(Path(__file__).parent)}):
        first = found.Process(target=int)
        first.start()
        first.join()
    return found
