"""One run: train, or go on, score once, write the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from noisin.explanation import explain
from noisin.lab import LabError, checkpoint, records, tasks
from noisin.lab.curves import Curves
from noisin.lab.files import clear_aside, make_folder
from noisin.lab.ranks import Ranks
from noisin.lab.records import Record
from noisin.lab.rows import Row
from noisin.lab.task import Corpus, Stopped, Task
from noisin.lab.trainer import Diverged, Progress, Trainer

WAIT = 0.2  # seconds between two looks whether another is still at a run
SCORING_SEED = 0  # of the draws at test, as `noisin evaluate` takes it


@dataclass(frozen=True)
class Job:
    """A run to do.

    Args:
        recipe: name of the recipe.
        title: its heading.
        name: name of the row.
        row: the row.
        seed: of weights, order and noise.
        corpus: sha256 of the corpus.
        folder: where the runs of the recipe stand.
        test: whether to score the test split at the end.
        curves: whether to write curves for TensorBoard while training.
        decides: what else decides its numbers; see ``Ranks.decides``.
    """

    recipe: str
    title: str
    name: str
    row: Row
    seed: int
    corpus: str
    folder: Path
    test: bool = True
    curves: bool = False
    decides: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Hash of settings, corpus and seed."""
        return self.row.config.run_hash(self.corpus, self.seed, self.decides, self.row.models)

    @property
    def path(self) -> Path:
        """The run's own folder."""
        return self.folder / f"{self.name}-{self.seed}-{self.hash}"

    @property
    def run_title(self) -> str:
        """Name for progress and messages."""
        return f"{self.name}, seed {self.seed}"


def run(
    job: Job,
    corpus: Corpus,
    tell: Callable[[Progress], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> Record:
    """Do a run, or return its record if it is done.

    Args:
        job: the run.
        corpus: its corpus.
        tell: told the progress.
        stopping: asked whether to stop.
        ranks: the processes that do it together; each calls this.

    Raises:
        Stopped: asked to stop; the next call goes on from the checkpoint.
        LabError: another corpus than the job's, a damaged checkpoint, or a folder that cannot be
            written.
    """
    if corpus.digest() != job.corpus:
        raise LabError(
            f"{job.row.config.data} must stay as it is while it is worked on; its sha256 was "
            f"{job.corpus}, and now is {corpus.digest()}"
        )
    path = job.path / "record.json"
    ranks, lock = ranks or Ranks(), FileLock(job.path / ".lock")
    try:
        ranks.from_first(lambda: _take(job.path, lock, stopping, ranks))
        return _run(job, corpus, path, tell, stopping, ranks)
    finally:
        lock.release()


def _take(folder: Path, lock: FileLock, stopping: Callable[[], bool], ranks: Ranks) -> None:
    """Wait until no other command is at a run, nor another run of this process."""
    make_folder(folder)
    while True:
        try:
            lock.acquire(blocking=False)
            return
        except Timeout:
            if stopping():
                raise Stopped from None
            ranks.rest(WAIT)
        except OSError as error:
            raise LabError(f"{folder} must be a folder that can be written; {error}") from None


def _run(
    job: Job,
    corpus: Corpus,
    path: Path,
    tell: Callable[[Progress], None],
    stopping: Callable[[], bool],
    ranks: Ranks,
) -> Record:
    """Do a run that no other process is at."""

    def found() -> Record | None:
        clear_aside(job.path)
        return records.read([path])[0] if path.exists() else None

    done = ranks.from_first(found)
    if done is not None:
        return done
    config = job.row.config
    torch.manual_seed(job.seed)
    task = tasks.build(config, corpus)
    file = job.path / "checkpoint.safetensors"
    trainer = Trainer(task, config, job.seed, file, job.run_title, tell, stopping, ranks)
    drawn = job.curves and ranks.first
    curves = Curves(job.path / "curves", trainer.updates) if drawn else None
    trainer.curves = curves
    reason = ""
    try:
        trainer.run()
    except Diverged as error:
        reason = str(error)
    finally:
        if curves is not None:
            curves.close()

    def finish() -> Record:
        record = _record(job, task, trainer, corpus, reason)
        checkpoint.save(job.path / "model.safetensors", task.model.state_dict(), {"run": job.hash})
        records.write(record, path)
        return record

    return ranks.from_first(finish)


def _record(
    job: Job,
    task: Task,
    trainer: Trainer,
    corpus: Corpus,
    reason: str,
) -> Record:
    """Score the chosen weights and return the record."""
    config, model, ranks = job.row.config, task.model, trainer.ranks
    model.load_state_dict(trainer.best_weights)
    scores, monte_carlo = {}, {}
    if not reason:
        for split in ("train", "valid"):
            scores[split] = task.score(split)
    if not reason and job.test:
        samples = (0, *config.test_samples) if config.noise != "none" else (0,)
        torch.manual_seed(SCORING_SEED)
        monte_carlo = task.scores("test", samples)
        scores["test"] = monte_carlo.pop(0)
    return Record(
        recipe=job.recipe,
        row=job.name,
        label=job.row.label,
        title=job.title,
        baseline=job.row.baseline,
        note=job.row.note,
        seed=job.seed,
        hash=job.hash,
        config=config,
        published=job.row.published,
        corpus=job.corpus,
        sizes=corpus.sizes(),
        metric=task.metric,
        status="diverged" if reason else "finished",
        reason=reason,
        environment=records.environment(ranks.size, ranks.precision, ranks.accelerator),
        paths=[str(line) for line in explain(model)],
        parameters=sum(p.numel() for p in model.parameters()),
        updates=trainer.updates,
        seconds=trainer.seconds,
        peak_memory=records.peak_memory(),
        best_epoch=trainer.best_epoch,
        scores=scores,
        monte_carlo=monte_carlo,
        weights=checkpoint.weights_hash(model.state_dict()),
        history=trainer.history,
    )
