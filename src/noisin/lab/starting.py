"""How processes of the laboratory begin: forked from one that has imported it and run nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext

import torch

FOUND_LATER = ("torch._dynamo",)
"""What torch imports at the first step of an optimizer, for a second, in each process anew."""


def context(*modules: str) -> ForkServerContext | SpawnContext:
    """Return what starts processes.

    On Linux the first process takes seconds, to import, and all later ones of this command take
    none. This process itself is not forked: its threads would not be there. Elsewhere there is no
    fork, or libraries of the system that do not bear it.

    Args:
        modules: what the processes will need.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([*modules, *FOUND_LATER])
    return found


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C count where what this gives is called, or at the end, and nowhere between.

    Raised anywhere, it could leave a lock taken, for which other threads would wait for ever.
    """
    heard: list[int] = []

    def heed() -> None:
        if heard:
            heard.clear()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def unheard() -> Iterator[None]:
    """Start processes that will not hear Ctrl-C; where it comes meanwhile, it counts at the end.

    What this thread blocks is blocked in the processes, too. Another thread may hear it here.
    """
    masks = hasattr(signal, "pthread_sigmask")
    with held():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
        try:
            yield
        finally:
            if masks:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def begin(environment: dict[str, str]) -> None:
    """Set a worker up: one thread, and Ctrl-C is for the process that started it.

    Args:
        environment: variables of that process, which may have changed since its first worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
