"""What a task is: a model, batches, a loss, and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from noisin.inference import predictive
from noisin.shapes import Float

Scores = dict[str, float]


class Stopped(Exception):
    """A run was asked to stop; the next call goes on from its checkpoint."""


def never() -> bool:
    """Return False: nothing asks to stop."""
    return False


class Loss(NamedTuple):
    """The loss of a batch.

    Args:
        total: summed negative log-likelihood, averaged over draws of the noise.
        steps: what it is a sum over: steps or tokens.
        scale: what the optimizer sees is total / scale.
    """

    total: Tensor
    steps: int
    scale: int


class Corpus(Protocol):
    """What every corpus tells of itself."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files that could not be used, and why."""
        ...

    def digest(self) -> str:
        """Return a hash of the content."""
        ...

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return counts of each split."""
        ...


class Task(Protocol):
    """A model with its data: what the trainer needs of it.

    Attributes:
        metric: which of the scores chooses the epoch and stands in tables; lower is better.
        units: what the metric is, in words.
        stopping: asked while scoring whether to stop; then the score raises ``Stopped``.
        device: where the model is, and batches go.
    """

    metric: str
    units: str
    stopping: Callable[[], bool]
    device: torch.device

    @property
    def config(self) -> Any:
        """The settings that it was made with."""
        ...

    @property
    def model(self) -> Any:
        """The model."""
        ...

    @property
    def updates(self) -> int:
        """Updates in one epoch."""
        ...

    def batches(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch from ``skip`` on."""
        ...

    def part(self, batch: Any, rank: int, size: int) -> Any:
        """Return the share of a batch that the ``rank``-th of ``size`` processes takes.

        The losses of the shares, their steps and their scales add up to those of the batch.
        """
        ...

    def counts(self, batch: Any) -> tuple[int, int]:
        """Return ``steps`` and ``scale`` of the loss of a batch."""
        ...

    def total(self, batch: Any, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ``total`` of the loss of a batch, and what is carried to the next.

        Nothing is kept, and no number is read out of a tensor, so that ``torch.func`` can take it.
        """
        ...

    def loss(self, batch: Any) -> Loss:
        """Return the loss of a batch, and carry on what it leaves."""
        ...

    def carried(self) -> dict[str, Tensor]:
        """Return what is carried from batch to batch."""
        ...

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """Take up what ``carried`` gave."""
        ...

    def in_metric(self, nll: float) -> Scores:
        """Return a mean negative log-likelihood as scores."""
        ...

    def valid(self) -> Scores:
        """Score the plain network on the validation split."""
        ...

    def score(self, split: str) -> Scores:
        """Score the plain network on a split."""
        ...

    def scores(
        self, split: str, samples: Sequence[int], others: Sequence[Any] = ()
    ) -> dict[int, Scores]:
        """Score averages over K draws (0: the plain network), and over other models."""
        ...


def at_least_float32(x: Tensor) -> Tensor:
    """Return the same, made precise enough to be summed up."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def columns(count: int, rank: int, size: int) -> slice:
    """Return which of ``count`` sequences the ``rank``-th of ``size`` processes takes."""
    return slice(rank * count // size, (rank + 1) * count // size)


class Apart:
    """What tasks share whose training sequences each begin from a state of zeros.

    Their batches are named tuples of tensors [T, B, …]; ``valid`` [T, B] says which steps count.
    """

    def total(self, batch: Any, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of a batch; nothing is carried on."""
        raise NotImplementedError

    def part(self, batch: Any, rank: int, size: int) -> Any:
        """Return the stretches that the ``rank``-th of ``size`` processes takes.

        Where there are fewer of them than processes, it is one of which no step counts.
        """
        own = columns(batch.valid.shape[1], rank, size)
        if own.start < own.stop:
            return type(batch)(*(x[:, own] for x in batch))
        return type(batch)(*(x[:, :1] for x in batch))._replace(valid=batch.valid[:, :1] & False)

    def counts(self, batch: Any) -> tuple[int, int]:
        """Return the number of steps, twice: the loss is a mean over them."""
        count = int(batch.valid.sum())
        return count, count

    def loss(self, batch: Any) -> Loss:
        """Return the loss of a batch, a mean over steps."""
        return Loss(self.total(batch, {})[0], *self.counts(batch))

    def carried(self) -> dict[str, Tensor]:
        """Return nothing: every sequence begins from a state of zeros."""
        return {}

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """Take up nothing."""


def nested(log_likelihoods: Float[Tensor, "K M ..."], draws: int) -> Float[Tensor, "..."]:
    """Return the log-likelihood of averages over ``draws`` draws and all models.

    The K draws are used in disjoint groups, and the result is the mean over the groups. So the
    result of more draws is never below that of fewer: Jensen's inequality, without noise of its
    own.

    Args:
        log_likelihoods: of K draws and M models.
        draws: size of a group, a divisor of K.
    """
    groups = log_likelihoods.unflatten(0, (-1, draws)).flatten(1, 2).transpose(0, 1)
    return predictive(groups).mean(0)
