"""Records: one JSON line a run, with everything that a table or a figure needs."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

import noisin
from noisin.lab import LabError
from noisin.lab.config import Accelerator, AnyConfig, Precision, layout_of
from noisin.lab.files import lines_of, write_aside
from noisin.lab.rows import Published
from noisin.lab.task import Scores

SCHEMA = 1
LIBRARIES = ("numpy", "pydantic", "safetensors")


class Epoch(BaseModel):
    """One epoch of training.

    Args:
        epoch: from 1.
        train: the objective over the epoch, noise on, in the metric of the task.
        valid: scores of the validation split, noise off.
        lr: step size.
        spectral_radius: of each layer, each gate of weight_hh.
        squared_radius: of W ∘ W likewise, where variances are propagated; else empty.
        spreads: learned standard deviations, the mean over a layer's.
        seconds: time of the epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    epoch: int
    train: float
    valid: Scores
    lr: float
    spectral_radius: list[list[float]]
    squared_radius: list[list[float]] = []
    spreads: dict[str, float]
    seconds: float


class Environment(BaseModel):
    """What a run ran on.

    Args:
        noisin: its version.
        torch: its version.
        python: its version.
        machine: system and processor.
        threads: of torch.
        commit: of the checkout that noisin ran from, None outside of one.
        dirty: whether that checkout was changed.
        libraries: versions of what else decides numbers and files.
        processes: of a run, among which its batches were cut.
        precision: of its products.
        accelerator: what it ran on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    noisin: str
    torch: str
    python: str
    machine: str
    threads: int
    commit: str | None
    dirty: bool | None
    libraries: dict[str, str] = {}
    processes: int = 1
    precision: Precision = "32-true"
    accelerator: Accelerator = "cpu"

    @property
    def layout(self) -> str:
        """What of it decides the numbers of a run, in words: nothing for a plain one."""
        return ", ".join(layout_of(self.processes, self.precision, self.accelerator))


class Record(BaseModel):
    """One run.

    Args:
        schema_version: of this layout.
        recipe: name of the recipe.
        row: name of the row.
        label: the row's name in tables.
        title: heading of the recipe.
        baseline: the row that it is compared with.
        note: what the recipe says of the row.
        seed: of weights, order and noise; of an average, of its first model.
        models: how many models' predictions are averaged, of consecutive seeds; 1 of a run.
        hash: of config, corpus and seed: two runs of one hash are the same run.
        config: all settings.
        published: the paper's number.
        corpus: sha256 of the corpus.
        sizes: counts of each split.
        metric: which score chose the epoch and stands in tables; lower is better.
        status: ``finished``, or ``diverged``.
        reason: why a run diverged.
        environment: versions, machine, commit.
        paths: which path each layer takes, and why.
        parameters: trained numbers.
        updates: steps of the optimizer.
        seconds: time in training.
        peak_memory: bytes, the largest size of the process up to the end of the run, which may
            have done other runs before; None where the system does not tell.
        best_epoch: the epoch chosen on validation.
        scores: of train, valid and test at the best epoch, noise off; by moments where noise is
            propagated, by averaged weights where there are any.
        monte_carlo: of test, by the average over K draws of the noise.
        weights: sha256 of the chosen weights; of an average, of its models' in a row.
        history: the epochs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[1] = SCHEMA
    recipe: str
    row: str
    label: str
    title: str
    baseline: str
    note: str
    seed: int
    hash: str
    config: AnyConfig
    published: Published | None
    corpus: str
    sizes: dict[str, dict[str, int]]
    metric: str
    status: Literal["finished", "diverged"]
    reason: str = ""
    environment: Environment
    paths: list[str]
    parameters: int
    updates: int
    seconds: float
    peak_memory: int | None = None
    best_epoch: int
    scores: dict[str, Scores]
    monte_carlo: dict[int, Scores]
    weights: str
    history: list[Epoch]
    models: int = 1

    @property
    def test(self) -> float:
        """The test score."""
        return self.scores["test"][self.metric]

    @property
    def best(self) -> float:
        """The best validation score while training; infinite before the first epoch."""
        return self.valid(self.best_epoch) if self.best_epoch else math.inf

    @property
    def current(self) -> bool:
        """Whether its hash is what its settings have now; those of other versions have another."""
        on = self.environment
        decides = layout_of(on.processes, on.precision, on.accelerator)
        return self.hash == self.config.run_hash(self.corpus, self.seed, decides, self.models)

    def valid(self, epoch: int) -> float:
        """Return the validation score of an epoch."""
        return self.history[epoch - 1].valid[self.metric]


def environment(
    processes: int = 1, precision: Precision = "32-true", accelerator: Accelerator = "cpu"
) -> Environment:
    """Return the versions, the machine and the commit of this process.

    Args:
        processes: see ``Environment``.
        precision: likewise.
        accelerator: likewise.
    """
    commit, dirty = _git()
    return Environment(
        noisin=noisin.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        commit=commit,
        dirty=dirty,
        libraries={name: metadata.version(name) for name in LIBRARIES},
        processes=processes,
        precision=precision,
        accelerator=accelerator,
    )


def peak_memory() -> int | None:
    """Return the largest size of this process so far in bytes, None where nobody knows."""
    if sys.platform not in ("linux", "darwin"):
        return None
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _git() -> tuple[str | None, bool | None]:
    """Return the commit of the checkout that noisin runs from, and whether it was changed."""
    folder = Path(noisin.__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        tracked = subprocess.run([*git, "ls-files", "__init__.py"], capture_output=True, text=True)
        if tracked.returncode or not tracked.stdout.strip():
            return None, None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:  # no git here
        return None, None
    return commit.stdout.strip() or None, bool(status.stdout.strip())


def write(record: Record, path: Path) -> None:
    """Write a record as one JSON line, aside and renamed."""
    with write_aside(path) as file:
        file.write(record.model_dump_json().encode() + b"\n")


def read(paths: Iterable[Path]) -> list[Record]:
    """Read records from files of JSON lines and from folders, looked through for ``record.json``.

    A run that stands in several places is returned once.

    Raises:
        LabError: nothing there, or a line that is no record.
    """
    found: dict[tuple[str, str, str], Record] = {}
    for path in paths:
        files = sorted(path.rglob("record.json")) if path.is_dir() else [path]
        if path.is_dir():
            files += sorted(path.rglob("*.jsonl"))
        for file in files:
            for record in _lines(file):
                found[record.recipe, record.row, record.hash] = record
    if not found:
        raise LabError(
            f"a report needs records, from finished runs; got none in {', '.join(map(str, paths))}"
        )
    return list(found.values())


def _lines(file: Path) -> Iterable[Record]:
    try:
        lines = lines_of(file)
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{file}: must be a file of records; {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield Record.model_validate_json(line)
        except ValidationError as error:
            raise LabError(f"{file}, line {number}: no record; {told(error)}") from None


def told(error: ValidationError) -> str:
    """Return in a line what pydantic found wrong first, and where."""
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
