"""Runs one after another, each on several processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from rich.console import Console

from noisin.lab import LabError, train
from noisin.lab.config import CorpusKey, corpus_key
from noisin.lab.jobs import Display, Interrupted
from noisin.lab.ranks import Ranks
from noisin.lab.task import Corpus, Stopped
from noisin.lab.train import Job
from noisin.lab.trainer import Progress

BROKEN = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")


def do(
    jobs: Sequence[Job],
    corpora: Mapping[CorpusKey, Corpus],
    ranks: Ranks,
    console: Console,
) -> None:
    """Do the runs that are not done yet. Every process of them calls this.

    Args:
        jobs: the runs.
        corpora: their corpora, by ``corpus_key``.
        ranks: the processes.
        console: where progress goes.

    Raises:
        Interrupted: one of the processes was asked to stop, by Ctrl-C or SIGTERM.
        LabError: what a run refused, or another process ended.
    """
    with _asked() as asked, _connected():
        try:
            _do(jobs, corpora, ranks, console, lambda: bool(asked))
        except Stopped:
            raise Interrupted from None


def _do(
    jobs: Sequence[Job],
    corpora: Mapping[CorpusKey, Corpus],
    ranks: Ranks,
    console: Console,
    stopping: Callable[[], bool],
) -> None:
    todo = ranks.from_first(
        lambda: [n for n, job in enumerate(jobs) if not (job.path / "record.json").exists()]
    )
    with Display(len(todo), console) as display:

        def tell(progress: Progress) -> None:
            display.show(iter([progress]))

        for job in (jobs[n] for n in todo):
            corpus = corpora[corpus_key(job.row.config)]
            display.finish(job, train.run(job, corpus, tell, stopping, ranks))


def leave(code: int) -> None:
    """End this process at once if it works with others, or return.

    Threads of a connection that broke may never end, and would hold the process at its end.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for stream in filter(None, (sys.stdout, sys.stderr)):  # a closed one is None
            stream.flush()
        os._exit(code)


@contextmanager
def _asked() -> Iterator[list[int]]:
    """Collect signals to stop; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _connected() -> Iterator[None]:
    """Say in words that another process ended."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in BROKEN):
            raise
        raise LabError(
            "another process of the run ended; the same command goes on from the last checkpoint"
        ) from error
