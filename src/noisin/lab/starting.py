"""How processes of the laboratory begin: forked from one that has imported it and run nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerContext, SpawnContext

import torch


def context(*modules: str) -> ForkServerContext | SpawnContext:
    """Return what starts processes.

    Where there is fork, the first process takes seconds, to import, and all later ones of this
    command take none. This process itself is not forked: its threads would not be there.

    Args:
        modules: what the processes will need.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(modules))
    return found


def begin(environment: dict[str, str]) -> None:
    """Set a worker up: one thread, and Ctrl-C is for the process that started it.

    Args:
        environment: variables of that process, which may have changed since its first worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
