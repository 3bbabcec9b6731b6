"""Several runs in one process: in turn, or with one pass through all of their networks at a time.

Each run has a thread, of which one works at a time, and a random stream of its own: in turn, its
numbers are those that it would have alone, bit for bit. Where a run needs a loss or gradients it
says so and waits, until the others have come to that point, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from noisin.lab.config import Accelerator, Config, propagates
from noisin.lab.ranks import Ranks
from noisin.lab.task import Loss, Task
from noisin.replicas import Replicas

T = TypeVar("T")
NAMES = {"generator": "cpu", "generator-cuda": "cuda"}  # of streams, here and in Replicas
FREE = {  # settings in which runs of one pass may differ: no loss reads them but through the model
    *("noise", "optimizer", "lr", "lr_recurrent", "lr_hold", "lr_factor", "momentum", "decay"),
    *("trigger", "averaging", "clip", "epochs", "patience", "test_samples"),
    *(f"{norm}_{of}" for norm in ("l1", "l2") for of in ("input", "recurrent", "output")),
    *("nonzeros", "spectral_radius", "output_bias", "init_std", "init_std_input", "init_uniform"),
}
PAUSE = 0.02  # seconds, where all runs have nothing to do


class _Wanted(NamedTuple):
    """What a run waits for: the loss of a batch, the gradients of a number, or a time."""

    batch: Any = None
    objective: Tensor | None = None
    until: float = 0.0


class Turn(Ranks, Generic[T]):
    """What a run is given that shares its process with others.

    Args:
        function: the run.
        accelerator: ``cpu`` or ``cuda``.
        together: whether networks of one shape are run through at once.

    Attributes:
        cancelled: another run was refused; this one shall stop.
    """

    def __init__(
        self, function: Callable[[Turn[T]], T], accelerator: Accelerator, together: bool
    ) -> None:
        self.accelerator: Accelerator = accelerator
        self.wanted = _Wanted()
        self.reply: Any = None
        self.task: Task | None = None
        self.streams: dict[str, Tensor] = {}
        self.results: list[T] = []
        self.refused: BaseException | None = None
        self.cancelled = False
        self._function, self._together = function, together
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.results) or self.refused is not None

    def resume(self) -> None:
        """Let the run go on until it wants something, or ends."""
        if self.streams:
            self.restore_generators(self.streams)
        self.wanted = _Wanted()
        self._go.release()
        self._back.acquire()
        self.streams = self.generators()

    def rest(self, seconds: float) -> None:
        """Let the others work for a while."""
        self._want(_Wanted(until=time.monotonic() + seconds))

    def setup(self, task: Task) -> Callable[[Any], Loss]:
        """Bring a task's model to its device, and return what gives the loss of a batch."""
        self.task = task
        if self.accelerator == "cuda":
            task.device = torch.device("cuda")
            task.model.to(task.device)
        return self._loss

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        if not self._together or self._want(_Wanted(objective=loss)) is None:
            loss.backward()

    def _loss(self, batch: Any) -> Loss:
        assert self.task is not None
        reply = self._want(_Wanted(batch=batch))
        if reply is None:
            return self.task.loss(batch)
        total, carried = reply
        self.task.carry(carried)
        return Loss(total, *self.task.counts(batch))

    def _want(self, wanted: _Wanted) -> Any:
        """Let the others work, and return what they have found for this one, or None."""
        self.wanted = wanted
        self._back.release()
        self._go.acquire()
        reply, self.reply = self.reply, None
        return reply

    def _work(self) -> None:
        self._go.acquire()
        try:
            self.results = [self._function(self)]
        except BaseException as error:
            self.refused = error
        self._back.release()


def take(
    functions: Sequence[Callable[[Turn[T]], T]],
    accelerator: Accelerator = "cpu",
    together: bool | None = None,
) -> list[T]:
    """Return what some runs return, which share this process.

    Args:
        functions: the runs; each is given its turn, to train with in the place of ``Ranks``.
        accelerator: ``cpu`` or ``cuda``.
        together: whether networks of one shape are run through at once; None: on CUDA.

    Raises:
        Exception: what the first of the runs that were refused raised; the others are asked to
            stop first.
    """
    joint = accelerator == "cuda" if together is None else together
    turns = [Turn(function, accelerator, joint) for function in functions]
    refused: BaseException | None = None
    while alive := [turn for turn in turns if not turn.ended]:
        ready = [turn for turn in alive if turn.wanted.until <= time.monotonic()]
        if not ready:
            time.sleep(PAUSE)
        for turn in ready:
            turn.resume()
        refused = refused or next((one.refused for one in turns if one.refused is not None), None)
        for turn in turns:
            turn.cancelled = refused is not None
        if joint:
            _answer([turn for turn in ready if not turn.ended])
    if refused is not None:
        raise refused
    return [turn.results[0] for turn in turns]


class _Total(nn.Module):
    """What a task makes of a batch, as a module."""

    __slots__ = ("_total",)  # no attribute that replicas are compared by: see ``_shape``

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self._total = task.model, task.total

    def forward(self, batch: Any, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._total(batch, carried)


def _answer(turns: Sequence[Turn[Any]]) -> None:
    """Find what runs want, that of one shape at once."""
    objectives = {t: one for t in turns if (one := t.wanted.objective) is not None}
    if objectives:
        torch.autograd.backward(list(objectives.values()))
    for turn in objectives:
        turn.reply = True
    groups: dict[Any, list[Turn[Any]]] = {}
    for turn in turns:
        if turn.wanted.batch is not None:
            groups.setdefault(_shape(turn), []).append(turn)
    for group in groups.values():
        if len(group) > 1:
            _losses(group)


def _losses(turns: Sequence[Turn[Any]]) -> None:
    """Find the losses of batches of one shape, under networks of one shape."""
    tasks = [turn.task for turn in turns if turn.task is not None]
    replicas = Replicas([_Total(task) for task in tasks], seeds=[0] * len(turns), together=True)
    streams = [{NAMES[name]: one for name, one in turn.streams.items()} for turn in turns]
    replicas.set_extra_state({"seeds": replicas.seeds, "streams": streams})
    whole = [[turn.wanted.batch for turn in turns], [task.carried() for task in tasks]]
    stacked = [tree_map(lambda *parts: torch.stack(parts), *parts) for parts in whole]
    total, carried = replicas(*stacked, in_dims=0)
    left = replicas.get_extra_state()["streams"]
    for r, turn in enumerate(turns):
        turn.reply = total[r], {name: one[r] for name, one in carried.items()}
        turn.streams = {name: left[r][own] for name, own in NAMES.items() if own in left[r]}


def _shape(turn: Turn[Any]) -> Any:
    """Return what must be the same for a loss to be found at once."""
    assert turn.task is not None
    leaves, form = tree_flatten((turn.wanted.batch, turn.task.carried()))
    own = list(turn.task.model.named_parameters())
    weights = [(name, one.shape) for name, one in own if ".rho_" not in f".{name}"]
    kinds = [(one.shape, one.dtype) for one in leaves]
    return (*_settings(turn.task.config), str(form), *kinds, *weights)


@cache
def _settings(config: Config) -> tuple[str, bool]:
    """Return what a loss reads of a configuration; asked at every update."""
    return config.model_dump_json(exclude=FREE), propagates(config.noise)
