"""Several workers of a sweep at a time, one process of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console

from noisin.lab import LabError, starting, tasks, turns
from noisin.lab.config import Accelerator
from noisin.lab.jobs import Display, Interrupted
from noisin.lab.ranks import FabricRanks, Layout, Ranks
from noisin.lab.sweep import Sweep, Worker
from noisin.lab.task import Stopped
from noisin.lab.trainer import Progress
from noisin.lab.trials import finished
from noisin.lab.turns import Turn

# what a worker tells: progress of a run, the end of a trial, or why it gave up
News = Progress | tuple[int, str, str] | str


def do(
    sweep: Sweep,
    *,
    processes: int,
    data_dir: Path | None,
    console: Console,
    replicas: int = 1,
    accelerator: Accelerator = "cpu",
    precision: str = "32-true",
    ended: Callable[[], object] = lambda: None,
) -> None:
    """Work on a sweep until enough trials are finished.

    Args:
        sweep: what is searched.
        processes: workers here; others may work on the same sweep elsewhere.
        data_dir: folder with corpus files.
        console: where progress goes.
        replicas: workers that share a process.
        accelerator: where, if they do.
        precision: of one run a process; see ``Layout``.
        ended: called when trials have ended; what it raises stops the workers.

    Raises:
        Interrupted: the user pressed Ctrl-C; trials at work are given back.
        LabError: no worker could go on.
    """
    context = starting.context(__name__)
    told, stop = context.Queue(), context.Event()
    given = sweep, data_dir, replicas, accelerator, precision, told, stop, dict(os.environ)
    workers = [context.Process(target=_work, args=given) for _ in range(processes)]
    reasons: list[str] = []
    with starting.held() as heed:
        try:
            with starting.unheard():
                for worker in workers:
                    worker.start()
            with Display(0, console) as display:
                while any(worker.is_alive() for worker in workers):
                    heed()
                    reasons += _show(told, display, console, ended)
                    time.sleep(0.2)
                reasons += _show(told, display, console, ended)
        except BaseException as error:
            stop.set()
            console.print("stopping: each run finishes its update and gives its trial back")
            while any(worker.is_alive() for worker in workers if worker.pid is not None):
                _emptied(told)  # a worker does not end before all that it told is taken
                time.sleep(0.05)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted from None
            raise
    _check(workers, reasons)


def _check(workers: Sequence[BaseProcess], reasons: list[str]) -> None:
    """Refuse to call a sweep finished that no worker finished."""
    if any(worker.exitcode == 0 for worker in workers):
        return
    codes = ", ".join(str(worker.exitcode) for worker in workers)
    ended = f"all workers were killed (exit codes {codes}); the same command goes on"
    raise LabError("\n".join(dict.fromkeys(reasons)) or ended)


def _show(
    told: Queue[News], display: Display, console: Console, ended: Callable[[], object]
) -> list[str]:
    """Show what the workers told, and return why workers gave up."""
    reasons, progress, some = [], [], False
    for news in _emptied(told):
        if isinstance(news, Progress):
            progress.append(news)
        elif isinstance(news, tuple):
            display.show(iter(progress))
            progress.clear()
            display.drop(news[2])
            console.print(f"trial {news[0]}: {news[1]}", markup=False, soft_wrap=True)
            some = True
        else:
            reasons.append(news)
    display.show(iter(progress))
    if some:
        ended()
    return reasons


def _emptied(told: Queue[News]) -> list[News]:
    """Return what the workers told since the last time."""
    news: list[News] = []
    while True:
        try:
            news.append(told.get_nowait())
        except queue.Empty:
            return news


def _work(
    sweep: Sweep,
    data_dir: Path | None,
    replicas: int,
    accelerator: Accelerator,
    precision: str,
    told: Queue[News],
    stop: Event,
    environment: dict[str, str],
) -> None:
    """Be a worker, or several that share a process."""
    starting.begin(environment)
    parent = multiprocessing.parent_process()

    def stopping() -> bool:
        return stop.is_set() or (parent is not None and not parent.is_alive())

    def ended(*news: Any) -> None:
        told.put(news)

    try:
        row = sweep.recipe.rows[sweep.search.row]
        corpus = tasks.load(row.config, data_dir)
        if replicas == 1 and accelerator == "cpu":
            layout = Layout(precision=precision)
            ranks = Ranks() if layout.plain else FabricRanks(layout)
            Worker(sweep, corpus, told.put, ended, stopping, ranks).run()
            return

        def work(turn: Turn[None]) -> None:
            def cancelled() -> bool:
                return turn.cancelled or stopping()

            Worker(sweep, corpus, told.put, ended, cancelled, turn).run()

        turns.take([work] * replicas, accelerator)
    except Stopped:
        return
    except LabError as error:
        told.put(str(error))
        raise SystemExit(2) from None
    except Exception as error:  # the main process has no other way to learn of it
        told.put(f"{type(error).__name__}: {error}")
        raise


def left(sweep: Sweep, trials: list[FrozenTrial]) -> int:
    """Return how many trials are still to be finished."""
    return max(0, sweep.trials - len(finished(trials)))
