"""Processes that begin at once: forked from one that has imported what they need."""

import multiprocessing
import os
from pathlib import Path
from unittest import mock


def context():
    """Return a context of processes; its server begins here."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["test_kills", "test_sweep_kills"])
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(Path(__file__).parent)}):
        first = found.Process(target=int)
        first.start()
        first.join()
    return found
