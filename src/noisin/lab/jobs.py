"""Several runs at a time: one process of one thread each, progress, and a clean stop."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from noisin.lab import LabError, averages, records, starting, tasks, train, turns
from noisin.lab.config import Accelerator, CorpusKey, corpus_key
from noisin.lab.records import Record
from noisin.lab.rows import Recipe
from noisin.lab.task import Corpus
from noisin.lab.train import Job
from noisin.lab.trainer import Progress
from noisin.lab.turns import Turn

SAY_EVERY = 15.0  # seconds between lines of progress where there is no terminal


class Interrupted(Exception):
    """The user stopped the runs; checkpoints are written."""


@dataclass
class _Worker:
    """What a worker process keeps: where it tells, when to stop, corpora, whether it is at work."""

    told: Queue[Progress] | None = None
    stop: Event | None = None
    data_dir: Path | None = None
    corpora: dict[CorpusKey, Corpus] = field(default_factory=dict)
    working: threading.Lock = field(default_factory=threading.Lock)


_worker = _Worker()


def plan(
    recipe: Recipe,
    folder: Path,
    corpora: dict[CorpusKey, str],
    curves: bool = False,
    decides: tuple[str, ...] = (),
) -> list[Job]:
    """Return the runs and averages of a recipe, the seeds of all rows in turn.

    Args:
        recipe: the recipe.
        folder: where the runs of the recipe are kept.
        corpora: sha256 of each corpus, by ``corpus_key``.
        curves: whether they write curves for TensorBoard.
        decides: what else decides their numbers; see ``Ranks.decides``.
    """
    return [
        Job(
            recipe.name,
            recipe.title,
            name,
            row,
            seed,
            corpora[corpus_key(row.config)],
            folder,
            curves=curves,
            decides=decides,
        )
        for seed in recipe.seeds
        for name, row in recipe.rows.items()
        if seed in averages.seeds_of(row.models, recipe.seeds)
    ]


def finished(jobs: Sequence[Job]) -> list[Record]:
    """Return the records of the runs that are done, with what the recipe says of them now."""
    found = []
    for job in jobs:
        path = job.path / "record.json"
        if path.exists():
            row = job.row
            said = {"label": row.label, "published": row.published, "note": row.note}
            said |= {"title": job.title, "baseline": row.baseline}
            found.append(records.read([path])[0].model_copy(update=said))
    return found


def do(
    jobs: Sequence[Job],
    *,
    processes: int,
    data_dir: Path | None,
    console: Console,
    replicas: int = 1,
    accelerator: Accelerator = "cpu",
) -> None:
    """Do the runs that are not done yet.

    Args:
        jobs: the runs.
        processes: how many at a time.
        data_dir: folder with corpus files.
        console: where progress goes.
        replicas: how many runs share a process.
        accelerator: where, if they do.

    Raises:
        Interrupted: the user pressed Ctrl-C.
        LabError: what a run refused; the other runs that had begun are stopped cleanly.
    """
    todo = [job for job in jobs if not (job.path / "record.json").exists()]
    if todo:
        groups = [todo[start : start + replicas] for start in range(0, len(todo), replicas)]
        _do(groups, min(processes, len(groups)), data_dir, console, accelerator)


def _do(
    groups: Sequence[Sequence[Job]],
    processes: int,
    data_dir: Path | None,
    console: Console,
    accelerator: Accelerator,
) -> None:
    context = starting.context(__name__)
    told, stop = context.Queue(), context.Event()
    begun_with = told, stop, data_dir, dict(os.environ)
    pool = ProcessPoolExecutor(processes, context, _begin, begun_with)
    with pool, starting.held() as heed:
        try:
            with starting.unheard():
                futures = {pool.submit(_run, group, accelerator): group for group in groups}
            with Display(sum(map(len, groups)), console) as display:
                pending: set[Future[list[Record | None]]] = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    heed()
                    display.show(_emptied(told))
                    for future in done:
                        for job, record in zip(futures[future], future.result(), strict=True):
                            display.finish(job, record)
        except BrokenProcessPool:
            raise LabError(
                "a worker process was killed, perhaps for want of memory; "
                "the same command goes on from the checkpoints"
            ) from None
        except BaseException as error:
            stop.set()
            console.print("stopping: each run finishes its update and writes its checkpoint")
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted from None
            raise


def _begin(
    told: Queue[Progress], stop: Event, data_dir: Path | None, environment: dict[str, str]
) -> None:
    """Set a worker process up."""
    starting.begin(environment)
    told.cancel_join_thread()  # progress that nobody hears any more must not keep it from ending
    _worker.told, _worker.stop, _worker.data_dir = told, stop, data_dir
    threading.Thread(target=_leave, daemon=True).start()


def _leave() -> None:
    """End this worker after the main process has: it would wait for runs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        with _worker.working:  # its run ends first, with a checkpoint
            os._exit(1)


def _run(group: Sequence[Job], accelerator: Accelerator) -> list[Record | None]:
    """Do some runs in a worker; None for those that were stopped."""
    with _worker.working:
        if len(group) == 1 and accelerator == "cpu":
            return [_one(group[0])]
        return turns.take([partial(_one, job) for job in group], accelerator)


def _one(job: Job, turn: Turn[Record | None] | None = None) -> Record | None:
    def stopping() -> bool:
        return _stopping() or (turn is not None and turn.cancelled)

    if stopping():  # a worker holds one run more than it does, which nobody can call back
        return None
    key = corpus_key(job.row.config)
    if key not in _worker.corpora:
        _worker.corpora[key] = tasks.load(job.row.config, _worker.data_dir)
    assert _worker.told is not None
    try:
        return train.run(job, _worker.corpora[key], _worker.told.put, stopping, turn)
    except train.Stopped:
        return None


def _stopping() -> bool:
    """Return whether to stop: asked to, or left alone by the main process."""
    parent = multiprocessing.parent_process()
    assert _worker.stop is not None
    return _worker.stop.is_set() or (parent is not None and not parent.is_alive())


def _emptied(told: Queue[Progress]) -> Iterator[Progress]:
    while True:
        try:
            yield told.get_nowait()
        except Empty:
            return


class Display:
    """Bars in a terminal, lines elsewhere."""

    def __init__(self, runs: int, console: Console) -> None:
        self.console, self.said = console, time.monotonic()
        self.left, self.latest = runs, dict[str, Progress]()
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, news: Iterator[Progress]) -> None:
        """Take what the workers told."""
        for progress in news:
            title = progress.title
            self.latest[title] = progress
            if title not in self.tasks:
                self.tasks[title] = self.bars.add_task(title, total=progress.epochs, told="")
            told = f"{_scored(progress, best=True)}{_left(progress)}"
            done = progress.epoch + progress.within
            self.bars.update(self.tasks[title], completed=done, told=told)
        if not self.console.is_terminal and time.monotonic() - self.said > SAY_EVERY:
            self.said = time.monotonic()
            running = [
                f"{p.title}: epoch {p.epoch + p.within:.3g} of at most {p.epochs}, "
                f"{_scored(p)}{_left(p)}"
                for p in self.latest.values()
            ]
            self.console.print("; ".join(running) or "starting", soft_wrap=True)

    def drop(self, title: str) -> None:
        """Show a run no more."""
        self.latest.pop(title, None)
        if title in self.tasks:
            self.bars.remove_task(self.tasks.pop(title))

    def finish(self, job: Job, record: Record | None) -> None:
        """Take the end of a run."""
        self.drop(job.run_title)
        if record is None:
            return
        self.left -= 1
        if record.status == "diverged":
            self.console.print(f"{job.run_title}: {record.reason}", soft_wrap=True)
            return
        self.console.print(
            f"{job.run_title}: valid {record.best:.3f} at epoch {record.best_epoch} of "
            f"{len(record.history)}, {record.seconds:.0f} s; {self.left} runs left",
            soft_wrap=True,
        )


def _scored(progress: Progress, *, best: bool = False) -> str:
    """Return the validation scores so far, in words."""
    if not math.isfinite(progress.best):
        return "no epoch scored yet"
    return f"valid {progress.valid:.3f}" + f", best {progress.best:.3f}" * best


def _left(progress: Progress) -> str:
    """Return the time left to the last epoch allowed, in words."""
    if not math.isfinite(progress.left):
        return ""
    if progress.left <= 0:
        return ", scoring"
    minutes = progress.left / 60
    return (
        f", at most {minutes / 60:.1f} h left"
        if minutes > 90
        else f", at most {math.ceil(minutes)} min left"
        if minutes > 1
        else f", at most {math.ceil(progress.left)} s left"
    )
