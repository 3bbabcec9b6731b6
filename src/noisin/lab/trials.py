"""Where the trials of a sweep are kept, how their settings are drawn, and which of them count."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from noisin.lab import LabError
from noisin.lab.files import make_folder
from noisin.lab.search import Range, Search
from noisin.lab.task import Stopped

T = TypeVar("T")

BEAT = "noisin:beat"  # system attribute: a worker's counter
TAKER = "noisin:taker"  # likewise: who ended a trial that is lost
LOST, REASON, RUN, AGAIN = "lost", "reason", "run", "again"  # attributes that users see
_BEGIN = b'{"op_code":'  # of every line of a journal
PATIENCE = 300.0  # seconds to wait for a storage that does not answer


class _Lock(JournalFileSymlinkLock):
    """A lock that ends with its process; under it a line torn by a full disk is taken away."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._lock = path, FileLock(f"{path}.flock")

    def acquire(self) -> bool:
        self._lock.acquire()
        with self._path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


def open_storage(storage: str) -> BaseStorage:
    """Open the storage of trials.

    Args:
        storage: ``postgresql://…`` or another URL of SQLAlchemy, or the path of a journal file.

    Raises:
        LabError: it is no such URL, its driver is not installed, or the file is no journal. What a
            driver raises while a server does not answer passes through.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if "://" not in storage:
        path = Path(storage)
        make_folder(path.parent)
        _check_journal(path)
        return JournalStorage(JournalFileBackend(str(path), _Lock(path)))
    url = storage.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise LabError(f"--storage must be a database or a journal file; {error}") from None


def _check_journal(path: Path) -> None:
    """Refuse a file that does not begin as a journal, be it a torn one."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        begin = file.read(len(_BEGIN))
    if not _BEGIN.startswith(begin):
        raise LabError(f"--storage must be a database or a journal of trials; {path} is neither")


def check(storage: str) -> None:
    """Refuse a storage that cannot be opened or does not answer."""
    try:
        close(open_storage(storage))
    except LabError:
        raise
    except Exception as error:  # whatever a driver raises
        raise LabError(f"--storage must be a database that answers; {error}") from None


def close(storage: BaseStorage) -> None:
    """Close the connections to a database."""
    storage.remove_session()
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def distributions(search: Search) -> dict[str, BaseDistribution]:
    """Return the space for Optuna."""
    return {name: _distribution(one) for name, one in search.space.items()}


def _distribution(one: Any) -> BaseDistribution:
    if not isinstance(one, Range):
        return CategoricalDistribution(one)
    if isinstance(one.low, int) and isinstance(one.high, int):
        return IntDistribution(one.low, one.high, log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


class Numbered(BaseSampler):
    """A sampler that seed and number of a trial alone seed, whoever draws it and whenever.

    Args:
        make: returns a sampler, given a seed.
        seed: of the sweep.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed

    def _of(self, trial: FrozenTrial, name: str = "") -> BaseSampler:
        text = f"{self._seed} {trial.number} {name}"
        return self._make(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is drawn jointly."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw what is drawn jointly."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one value."""
        sampler = self._of(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class Unanswered(LabError):
    """The storage of trials does not answer."""


def patiently(call: Callable[[], T], stopping: Callable[[], bool] = lambda: False) -> T:
    """Return what a call to the storage returns, asking again while it does not answer.

    Raises:
        Unanswered: it did not for five minutes.
        Stopped: asked to stop while waiting.
    """
    begun, wait = time.monotonic(), 0.2
    while True:
        try:
            return call()
        except (OSError, SQLAlchemyError, StorageInternalError) as error:
            if time.monotonic() - begun > PATIENCE:
                raise Unanswered(
                    f"the storage of trials did not answer for {PATIENCE:.0f} s; {error}"
                ) from None
            if stopping():
                raise Stopped from None
            time.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, 5.0)


def is_lost(trial: FrozenTrial) -> bool:
    """Return whether a trial was taken from its worker or given back."""
    attributes = trial.user_attrs
    return trial.state == TrialState.FAIL and LOST in attributes and REASON not in attributes


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count: with a score, pruned, or failed with a reason."""
    return [t for t in trials if t.state.is_finished() and not is_lost(t)]


def taken(trials: list[FrozenTrial]) -> int:
    """Return how many trials are finished or at work."""
    at_work = sum(t.state == TrialState.RUNNING for t in trials)
    return len(finished(trials)) + at_work
