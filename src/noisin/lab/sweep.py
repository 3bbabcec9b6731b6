"""A search over the settings of a recipe, by any number of workers on any number of machines.

Optuna keeps the trials, in a journal file or a database. A worker draws the settings of a trial,
runs it, and tells its best validation score; the test split is left alone. While it runs a worker
gives signs of life: a counter in the trial. A trial whose counter stands still for the grace
period is taken from its worker and begun again by another one, from its checkpoint where the
folder is shared. Trials that were taken away or given back are ``lost``; they do not count.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from noisin.lab import LabError, recipe, tasks, train
from noisin.lab.ranks import Ranks
from noisin.lab.records import Record
from noisin.lab.rows import Recipe
from noisin.lab.search import Search
from noisin.lab.task import Corpus, Stopped
from noisin.lab.train import Job
from noisin.lab.trainer import Progress
from noisin.lab.trials import (
    AGAIN,
    BEAT,
    LOST,
    REASON,
    RUN,
    TAKER,
    Numbered,
    Unanswered,
    distributions,
    finished,
    is_lost,
    open_storage,
    patiently,
    taken,
)

Sampler = Literal["random", "tpe"]
STARTUP = 8  # epochs, and finished trials, before anything is pruned


@dataclass(frozen=True)
class Sweep:
    """What all workers of a sweep agree on.

    Args:
        recipe: with a search.
        corpus: sha256 of the corpus.
        folder: where its runs stand.
        storage: URL of a database, or the path of a journal file.
        trials: how many shall be finished, over all workers.
        sampler: how settings are drawn.
        prune: whether trials worse than the median of the others at their epoch end early.
        seed: of the draws of settings.
        grace: seconds without a sign of life after which a trial is taken from its worker.
        decides: what else decides the numbers of its runs; see ``Ranks.decides``.
    """

    recipe: Recipe
    corpus: str
    folder: Path
    storage: str
    trials: int
    sampler: Sampler = "random"
    prune: bool = False
    seed: int = 0
    grace: float = 60.0
    decides: tuple[str, ...] = ()

    @property
    def search(self) -> Search:
        """The search of the recipe."""
        assert self.recipe.search is not None
        return self.recipe.search

    @property
    def study(self) -> str:
        """Name of the study: another one for another space, corpus, sampler or seed."""
        return study_name(self.recipe, self.corpus, self.sampler, self.seed, self.decides)


def study_name(
    recipe: Recipe,
    corpus: str,
    sampler: str,
    seed: int,
    decides: tuple[str, ...] = (),
) -> str:
    """Return the recipe's name with a hash of what decides its trials.

    What the row says of settings that are searched does not: it may become what was found. Nor does
    pruning, which may begin at any trial.
    """
    assert recipe.search is not None
    config = recipe.rows[recipe.search.row].config
    fields = type(config).model_fields
    searched = {name: fields[name].default for name in recipe.search.decided(fields)}
    run = config.model_copy(update=searched).hash(corpus, recipe.seeds[0], *decides)
    whole = [[recipe.search.model_dump(mode="json"), run], sampler, seed]
    text = json.dumps(whole, sort_keys=True)
    return f"{recipe.name}-search-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _sampler(sweep: Sweep) -> BaseSampler:
    if sweep.sampler == "random":
        return Numbered(RandomSampler, sweep.seed)
    return Numbered(lambda seed: TPESampler(seed=seed, constant_liar=True), sweep.seed)


def _pruner(sweep: Sweep) -> BasePruner:
    if sweep.prune:
        return MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=STARTUP)
    return NopPruner()


class _Unfit(LabError):
    """Settings of a trial that do not fit each other, or the corpus."""


class Worker:
    """Does trials, one after another, until enough are finished.

    Args:
        sweep: what is searched.
        corpus: the data.
        tell: told the progress of a run after each epoch.
        told: told each finished trial: its number, how it ended, and the title of its run.
        stopping: asked often whether to stop.
        ranks: how its runs compute, or the turn of a worker that shares its process with others.
    """

    def __init__(
        self,
        sweep: Sweep,
        corpus: Corpus,
        tell: Callable[[Progress], None] = lambda _: None,
        told: Callable[[int, str, str], None] = lambda *_: None,
        stopping: Callable[[], bool] = lambda: False,
        ranks: Ranks | None = None,
    ) -> None:
        self.sweep, self.corpus = sweep, corpus
        self.tell, self.told, self.stopping, self.ranks = tell, told, stopping, ranks or Ranks()
        self.storage = patiently(lambda: open_storage(sweep.storage), stopping)
        self.study = patiently(
            lambda: optuna.create_study(
                storage=self.storage,
                study_name=sweep.study,
                sampler=_sampler(sweep),
                pruner=_pruner(sweep),
                load_if_exists=True,
                direction="minimize",
            ),
            stopping,
        )
        self._seen: dict[int, tuple[Any, float]] = {}
        self._looked = -math.inf

    def trials(self) -> list[FrozenTrial]:
        """Return all trials as they are now."""
        return patiently(lambda: self.study.get_trials(deepcopy=False), self.stopping)

    def run(self) -> None:
        """Work to the end.

        Raises:
            Stopped: asked to; the trial is given back.
        """
        space = distributions(self.sweep.search)
        while not self.stopping():
            trials = self.trials()
            self._take_back(trials)
            if len(finished(trials)) >= self.sweep.trials:
                return
            if taken(trials) >= self.sweep.trials:
                self.ranks.rest(min(1.0, self.sweep.grace / 8))  # others are at the last ones
                continue
            trial = patiently(lambda: self.study.ask(space), self.stopping)
            trials = self.trials()
            if _is_double(trial, trials):
                self._lose(trial, "queued twice", again=False)
                continue
            if taken(trials) > self.sweep.trials:  # another asked at the same moment
                self._lose(trial, "one more than were asked for", again=AGAIN in trial.user_attrs)
                self.ranks.rest(random.uniform(0, 0.5))
                continue
            self._do(trial)
        raise Stopped

    def _take_back(self, trials: list[FrozenTrial]) -> None:
        """Take trials from workers that gave no sign of life for their grace period.

        Only time counts in which the storage was looked at all the while: nobody can give a sign
        while it does not answer.
        """
        now = time.monotonic()
        if now - self._looked > self.sweep.grace / 3:
            self._seen.clear()
        self._looked = now
        running = {t._trial_id: t for t in trials if t.state == TrialState.RUNNING}
        self._seen = {number: seen for number, seen in self._seen.items() if number in running}
        for number, trial in running.items():
            beat = trial.system_attrs.get(BEAT)
            before, since = self._seen.setdefault(number, (beat, now))
            grace = beat[1] if beat else self.sweep.grace
            if before != beat:
                self._seen[number] = beat, now
            elif now - since > grace:
                self._lose(trial, "its worker gave no sign of life", again=True)

    def _lose(self, trial: Trial | FrozenTrial, why: str, *, again: bool) -> None:
        """End a trial that does not count; ``again`` puts its settings in the queue."""
        number, token = trial._trial_id, uuid.uuid4().hex

        def mark() -> None:
            self.storage.set_trial_user_attr(number, LOST, why)
            self.storage.set_trial_system_attr(number, TAKER, token)

        def end() -> None:
            self.storage.set_trial_state_values(number, TrialState.FAIL)

        try:
            patiently(mark, self.stopping)
            patiently(end, self.stopping)
        except UpdateFinishedTrialError:  # by another, or by this one, whose answer was lost
            ended = patiently(lambda: self.storage.get_trial(number), self.stopping)
            if ended.system_attrs.get(TAKER) != token or not is_lost(ended):
                return
        if again:
            patiently(lambda: self._again(number), self.stopping)

    def _again(self, number: int) -> None:
        """Put the settings of a lost trial in the queue, once."""
        trial = self.storage.get_trial(number)
        queued = self.study.get_trials(deepcopy=False)
        drawn = trial.system_attrs.get("fixed_params", {}) | trial.params
        if drawn and not any(t.user_attrs.get(AGAIN) == trial.number for t in queued):
            self.study.enqueue_trial(drawn, {AGAIN: trial.number})

    def _do(self, trial: Trial) -> None:
        """Run a trial and tell its result."""
        sweep, drawn = self.sweep, trial.params
        pruned, told = False, set[int]()
        with self._alive(trial) as lost:

            def tell(progress: Progress) -> None:
                nonlocal pruned
                self.tell(progress)
                if sweep.prune and not progress.within and progress.epoch < progress.epochs:
                    patiently(lambda: trial.report(progress.valid, progress.epoch))
                    told.add(progress.epoch)
                    pruned = patiently(trial.should_prune)

            record, reason, job = None, "", None
            try:
                job = self._job(drawn)
                patiently(lambda: trial.set_user_attr(RUN, job.path.name))
                record = train.run(
                    job,
                    self.corpus,
                    tell,
                    lambda: pruned or lost.is_set() or self.stopping(),
                    self.ranks,
                )
            except Stopped:
                if not pruned and not lost.is_set():
                    self._lose(trial, "stopped by its user", again=True)
                    raise
            except UpdateFinishedTrialError:
                lost.set()
            except _Unfit as error:
                reason = str(error)
            except (LabError, OSError) as error:  # of this machine, and not of the settings
                if not isinstance(error, Unanswered):
                    self._lose(trial, f"its worker ended: {error}", again=True)
                raise
            except Exception as error:  # for want of memory, for one
                reason = f"{type(error).__name__}: {error}"
        title = "" if job is None else job.run_title
        if lost.is_set():
            self.told(trial.number, "taken by another worker", title)
            return
        if record is not None and record.status == "diverged":
            reason = record.reason
        self._end(trial, record, reason, title, told)

    def _report(self, trial: Trial, record: Record, told: Collection[int]) -> None:
        """Tell the scores of epochs that were not told while it ran, for later trials' pruning."""
        for epoch in record.history:
            score = record.valid(epoch.epoch)
            if epoch.epoch not in told and math.isfinite(score):
                patiently(partial(trial.report, score, epoch.epoch), self.stopping)

    def _end(
        self,
        trial: Trial,
        record: Record | None,
        reason: str,
        title: str,
        reported: Collection[int],
    ) -> None:
        """Tell how a trial ended."""
        state, value, how = TrialState.PRUNED, None, "pruned"
        if reason:
            state, how = TrialState.FAIL, f"failed: {reason}"
        elif record is not None:
            state, value = TrialState.COMPLETE, record.best
            how = f"valid {record.best:.4f} at epoch {record.best_epoch}"
        try:
            if record is not None:
                self._report(trial, record, reported)
            if reason:
                patiently(lambda: trial.set_user_attr(REASON, reason))
            told = patiently(
                lambda: self.study.tell(trial, value, state, skip_if_finished=True), self.stopping
            )
        except UpdateFinishedTrialError:
            how = "taken by another worker"
        else:
            how = "taken by another worker" if is_lost(told) else how
        self.told(trial.number, how, title)

    def _job(self, drawn: dict[str, Any]) -> Job:
        chosen = self.sweep.recipe
        try:
            row = recipe.trial(chosen, drawn)
            tasks.outline(row.config, self.corpus)
            tasks.check(row.config, self.corpus)
        except LabError as error:
            raise _Unfit(str(error)) from None
        seed = chosen.seeds[0]
        name = f"trial-{row.config.hash(self.sweep.corpus, seed)[:6]}"
        title = f"{chosen.title}: search"
        row = row.model_copy(update={"baseline": name})
        return Job(
            *(self.sweep.study, title, name, row, seed, self.sweep.corpus, self.sweep.folder),
            test=False,
            decides=self.sweep.decides,
        )

    @contextmanager
    def _alive(self, trial: Trial) -> Iterator[threading.Event]:
        """Give signs of life from a thread; the event is set once the trial was taken away."""
        lost, done = threading.Event(), threading.Event()

        def beat() -> None:
            for count in itertools.count():
                try:
                    sign = [count, self.sweep.grace]
                    self.storage.set_trial_system_attr(trial._trial_id, BEAT, sign)
                except UpdateFinishedTrialError:
                    lost.set()
                    return
                except Exception:  # the storage may answer the next time
                    pass
                if done.wait(self.sweep.grace / 6):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            done.set()
            thread.join()


def _is_double(trial: Trial, trials: list[FrozenTrial]) -> bool:
    """Return whether an earlier trial has the settings of the same lost one.

    A storage may queue a trial twice if the answer to the first attempt is lost on its way.
    """
    of = trial.user_attrs.get(AGAIN)
    return of is not None and any(
        t.number < trial.number and t.user_attrs.get(AGAIN) == of for t in trials
    )
