"""Training with early stopping, resumed exactly, stopped at what is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from noisin import penalties
from noisin.diagnostics import learned_spreads, recurrent_radii
from noisin.lab import LabError, checkpoint
from noisin.lab.config import Config, propagates
from noisin.lab.curves import Curves
from noisin.lab.ranks import Ranks
from noisin.lab.records import Epoch
from noisin.lab.task import Loss, Stopped, Task
from noisin.optim import NesterovRMSprop

COUNTERS = ("epoch", "index", "total", "steps", "seconds", "since", "best_epoch")
SAVE_EVERY = 10.0  # seconds between checkpoints, or more:
SAVE_SHARE = 20.0  # times as long as the last one took to write
TELL_EVERY = 5.0  # seconds between signs of progress within an epoch


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        title: of the run.
        epoch: finished epochs.
        epochs: at most.
        train: objective of the last epoch, or of the running one so far.
        valid: score of the last epoch; NaN before the first.
        best: the best one.
        within: share of the running epoch that is done; 0 at its end.
        left: seconds to the last epoch allowed, at the pace so far.
    """

    title: str
    epoch: int
    epochs: int
    train: float
    valid: float
    best: float
    within: float = 0.0
    left: float = math.nan


class Diverged(Exception):
    """Training produced a number that is not finite."""


def optimizer_of(config: Config, model: nn.Module) -> Optimizer:
    """Return the optimizer of a recipe; the recurrent weights are a group of their own."""
    groups: list[dict[str, Any]] = [{"params": [], "factor": 1.0}]
    if config.lr_recurrent != 1:
        groups.append({"params": [], "factor": config.lr_recurrent})
    for name, parameter in model.named_parameters():
        recurrent = name.rpartition(".")[2].startswith("weight_hh")
        groups[-1 if recurrent else 0]["params"].append(parameter)
    if config.optimizer == "adam":
        return Adam(groups, lr=config.lr)
    if config.optimizer in ("sgd", "nt-asgd"):
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    return NesterovRMSprop(groups, lr=config.lr, momentum=config.momentum, decay=config.decay)


class Trainer:
    """Trains a task until validation stops improving.

    Everything that decides what comes next is in the checkpoint: weights, optimizer, position in
    the data, sums of the running epoch, the best weights so far, and the generator of the noise.

    Args:
        task: model, batches and score.
        config: optimizer, schedule, length.
        seed: of weights, order and noise.
        path: checkpoint file; if there is one, training goes on from it.
        title: of the run, for progress.
        tell: told the progress after each epoch, and every few seconds within one.
        stopping: asked before each update whether to stop.
        ranks: the processes that train together; all of them have a trainer.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        seed: int,
        path: Path,
        title: str = "",
        tell: Callable[[Progress], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.task, self.seed, self.path, self.title = task, seed, path, title
        self.tell, self.stopping = tell, stopping
        self.curves: Curves | None = None  # drawn while training
        self.config, self.model = config, task.model
        self.moments = propagates(config.noise)
        task.stopping = stopping
        self.loss = self.ranks.setup(task)
        self.optimizer = optimizer_of(config, task.model)
        self.average = self._average() if config.averaging else None
        self.epoch, self.index = 1, 0  # the next update: epoch, and place in it
        self.total, self.steps = 0.0, 0  # of the running epoch
        self.seconds, self.since = 0.0, 0.0
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights = self._weights()
        self._clock = self._saved = time.monotonic()
        self._took = 0.0  # seconds, to write a checkpoint
        self._norm = 0.0  # of the last gradient; 0 before the first
        self._told = self._clock
        self._stop = self._due = False  # agreed with the other processes
        self.ranks.reseed(seed)
        found = self.ranks.from_first(lambda: checkpoint.load_last(path))
        self._fresh = found is None
        if found is not None:
            self._restore(*found)

    @property
    def best(self) -> float:
        """The best validation score so far."""
        return self._valid(self.best_epoch - 1) if self.best_epoch else math.inf

    def _valid(self, index: int) -> float:
        return self.history[index].valid[self.task.metric]

    @property
    def updates(self) -> int:
        """Updates done."""
        return (self.epoch - 1) * self.task.updates + self.index

    def run(self) -> None:
        """Train to the end.

        Raises:
            Stopped: asked to; a checkpoint is written.
            Diverged: a loss or a gradient is not finite; the last checkpoint stays.
        """
        self._clock = self._saved = time.monotonic()
        if self._fresh:
            self.save()
        self._agree()
        while self.epoch <= self.config.epochs and not self._patience_spent():
            self.model.train()
            for group in self.optimizer.param_groups:
                group["lr"] = group["factor"] * self.config.lr_at(self.epoch)
            for batch in self.task.batches(self.seed, self.epoch, self.index):
                if self._stop:
                    self.save()
                    raise Stopped
                self._update(self.loss(self.ranks.part(self.task, batch)))
                self._save_in_time()
                self._tell_in_time()
            try:
                self._end_epoch()
            except Stopped:
                self.save()
                raise
            self._agree()
            self._save_in_time()
        self.save()

    def _agree(self, *values: float) -> Sequence[float]:
        """Return sums over the processes, which agree on stopping and on writing a checkpoint."""
        old = time.monotonic() - self._saved > max(SAVE_EVERY, SAVE_SHARE * self._took)
        flags = (self.stopping(), old and self.ranks.first)
        *sums, stop, due = self.ranks.sum((*values, *flags))
        self._stop, self._due = stop > 0, due > 0
        return sums

    def _save_in_time(self) -> None:
        """Write the checkpoint if it was agreed that the last one is old enough."""
        if self._due:
            self.save()

    def _tell_in_time(self) -> None:
        """Tell within an epoch how far it is, every few seconds."""
        if time.monotonic() - self._told < TELL_EVERY or self.index >= self.task.updates:
            return
        train = self.task.in_metric(self.total / self.steps)[self.task.metric]
        self._tell(train, self.index / self.task.updates)
        if self.curves is not None:
            self.curves.within(self.updates, train, self._norm)

    def _tell(self, train: float, within: float = 0.0) -> None:
        self._tick()
        self._told, done = self._clock, len(self.history) + within
        valid = self._valid(-1) if self.history else math.nan
        left = self.seconds * (self.config.epochs - done) / done if done else math.nan
        self.tell(
            Progress(
                *(self.title, len(self.history), self.config.epochs),
                *(train, valid, self.best, within, left),
            )
        )

    def _patience_spent(self) -> bool:
        return len(self.history) - self.best_epoch >= self.config.patience

    def _update(self, loss: Loss) -> None:
        total, steps, scale = self._agree(loss.total.item(), loss.steps, loss.scale)
        if not math.isfinite(total):
            raise Diverged(self._where(f"the loss is {total}"))
        self.optimizer.zero_grad()
        seen = loss.total / (scale / self.ranks.size)  # gradients are averaged over processes
        for norm, strengths in self.config.penalized.items():
            seen = seen + getattr(penalties, norm)(self.model, **strengths)
        self.ranks.backward(seen)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip).item()
        if not math.isfinite(norm):
            raise Diverged(self._where(f"the norm of the gradient is {norm}, {self._culprits()}"))
        self._norm = norm
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.total, self.steps = self.total + total, self.steps + int(steps)
        self.index += 1

    def _where(self, what: str) -> str:
        where = f"at update {self.updates + 1} (epoch {self.epoch}, update {self.index + 1})"
        before = f"; the norm was {self._norm:.3g} the update before" if self._norm > 0 else ""
        return f"{what} {where}{before}; noise: {self.config.noise}"

    def _culprits(self) -> str:
        """Return which parameters have a gradient that is not finite."""
        names = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        return f"not finite in {', '.join(names) or 'their sum alone'}"

    def _end_epoch(self) -> None:
        with self._averaged():
            valid = self.ranks.from_first(self.task.valid)
            score = valid[self.task.metric]
            if not math.isfinite(score):
                raise Diverged(
                    f"the validation score is {score} after update {self.updates} "
                    f"(epoch {self.epoch})"
                )
            if score < self.best:
                self.best_epoch, self.best_weights = self.epoch, self._weights()
        self._tick()
        epoch = Epoch(
            epoch=self.epoch,
            train=self.task.in_metric(self.total / self.steps)[self.task.metric],
            valid=valid,
            lr=self.config.lr_at(self.epoch),
            spectral_radius=recurrent_radii(self.model),
            squared_radius=recurrent_radii(self.model, squared=True) if self.moments else [],
            spreads=learned_spreads(self.model),
            seconds=self.since,
        )
        self.history.append(epoch)
        self.epoch, self.index, self.total, self.steps, self.since = self.epoch + 1, 0, 0.0, 0, 0.0
        if self.config.optimizer == "nt-asgd" and self.average is None and self._stuck():
            self.average = self._average()
        self._tell(epoch.train)
        if self.curves is not None:
            self.curves.epoch(self.updates, epoch)

    def _stuck(self) -> bool:
        """Return whether the last ``trigger`` epochs brought no better validation score."""
        return len(self.history) - self.best_epoch >= self.config.trigger

    def _average(self) -> AveragedModel:
        """Return an average that begins with the weights of the next update."""
        decay = self.config.averaging
        step = get_ema_multi_avg_fn(decay) if decay else None
        return AveragedModel(self.model, multi_avg_fn=step)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights in the place of the running ones, if there are any."""
        if self.average is None or not self.average.n_averaged:
            yield
            return
        running = self._weights()
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(running)

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._clock
        self.since += now - self._clock
        self._clock = now

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def save(self) -> None:
        """Write the checkpoint."""
        self._tick()
        begun = time.monotonic()
        own = {**checkpoint.prefixed("carried", self.task.carried()), **self.ranks.generators()}
        every = self.ranks.gathered(own)
        self.ranks.from_first(lambda: self._write(every))
        self._saved = time.monotonic()
        self._took = self._saved - begun

    def _write(self, every: list[dict[str, Tensor]]) -> None:
        """Write what all processes share, and what each has of its own."""
        tensors = {
            **checkpoint.prefixed("model", self.model.state_dict()),
            **checkpoint.prefixed("best", self.best_weights),
            **checkpoint.prefixed("optimizer", checkpoint.optimizer_tensors(self.optimizer)),
            **every[0],
        }
        for rank, own in enumerate(every[1:], 1):
            tensors |= checkpoint.prefixed(f"rank{rank}", own)
        if self.average is not None:
            tensors |= checkpoint.prefixed("average", self.average.state_dict())
        state = {
            "settings": self._settings,
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "history": [epoch.model_dump() for epoch in self.history],
            "norm": self._norm,
        }
        checkpoint.save(self.path, tensors, state, keep=True)

    @property
    def _settings(self) -> str:
        return self.config.hash(self.seed, *self.ranks.decides)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a checkpoint."""
        try:
            if state["settings"] != self._settings:
                raise ValueError("it has other settings or another seed")
            self.model.load_state_dict(checkpoint.under("model", tensors))
            checkpoint.restore_optimizer(self.optimizer, checkpoint.under("optimizer", tensors))
            rank = self.ranks.rank
            own = checkpoint.under(f"rank{rank}", tensors) if rank else tensors
            self.task.carry(checkpoint.under("carried", own))
            average = checkpoint.under("average", tensors)
            if average:
                self.average = self._average()
                self.average.load_state_dict(average)
            self.ranks.restore_generators(own)
            self.history = [Epoch.model_validate(epoch) for epoch in state["history"]]
            self._norm = state.get("norm", 0.0)
            for name in COUNTERS:
                setattr(self, name, state["counters"][name])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise LabError(
                f"{self.path}: not a checkpoint of this run; {error}. Delete it to begin anew"
            ) from None
        self.best_weights = checkpoint.under("best", tensors)
