"""Series of numbers: at step t forecast the distribution of x_{t+h}, given all up to x_t.

The network reads the standardized columns at t and gives a law of each target at t + h: normal
with a trained standard deviation, or Poisson. The score is the negative log-likelihood in nats a
step, summed over the targets, of the numbers as they stand in the file: standardization is undone,
so that scores of two ways to standardize can be compared. Every step of a split is forecast once,
from the steps before it, those of the splits before it among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from noisin.inference import fold, sampling, unfold
from noisin.lab.config import SeriesConfig, propagates
from noisin.lab.forecasts import Gaussians, Mixture, Poissons
from noisin.lab.models import asked, in_draws, recurrent, share
from noisin.lab.observations import Observations
from noisin.lab.task import Apart, Scores, Stopped, nested, never
from noisin.likelihood import GaussianHead, PoissonHead
from noisin.propagation import Moments, each, exact
from noisin.shapes import Bool, Float

AT_ONCE = 2**15  # steps of all sequences in one pass of evaluation, to bound its memory
TOGETHER = 64  # series at a time in evaluation


class Stretch(NamedTuple):
    """A stretch of a series: the rows from start to stop are read.

    Args:
        series: its name.
        start: first row that is read.
        first: from which row on forecasts count.
        stop: row behind the last one.
    """

    series: str
    start: int
    first: int
    stop: int


class Batch(NamedTuple):
    """Stretches of series, padded behind.

    Args:
        inputs: standardized columns at t, [T, B, I].
        targets: standardized targets, or counts, at t + h, [T, B, F].
        valid: which forecasts count, [T, B].
    """

    inputs: Float[Tensor, "T B I"]
    targets: Float[Tensor, "T B F"]
    valid: Bool[Tensor, "T B"]

    def to(self, device: torch.device) -> Batch:
        """Return the same on a device."""
        return Batch(*(x.to(device) for x in self))


class Forecast(NamedTuple):
    """The forecasts of some steps.

    Args:
        series: the series of each of N steps.
        rows: its row, counted from 0.
        truth: what came, [N, F], in its own units.
        laws: of K draws and M models, [K, M, N, F], in its own units.
    """

    series: list[str]
    rows: list[int]
    truth: Float[Tensor, "N F"]
    laws: Mixture

    @property
    def mixture(self) -> Mixture:
        """The average of the predictive distributions over draws and models."""
        return type(self.laws)(*(one.flatten(0, 1) for one in self.laws))


class SeriesModel(nn.Module):
    """A recurrent network over columns of numbers with a Gaussian or Poisson read-out.

    Args:
        config: cell, sizes, noise and head.
        inputs: I, columns that are read.
        outputs: F, columns that are forecast.

    Raises:
        ValueError: noise that cannot act in this network.
    """

    def __init__(self, config: SeriesConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        noise = share(config.noise)
        if noise.embedding is not None:
            raise ValueError(f"series have no embedding for noise at row; got {noise.embedding}")
        self.draws_apart = noise.shared_by_batch
        self.rnn = recurrent(config, inputs, noise.recurrent)
        head = PoissonHead if config.head == "poisson" else GaussianHead
        self.head = head(config.hidden_size, outputs, noise=noise.head)
        self.moments = propagates(config.noise)

    def forward(self, inputs: Float[Tensor, "T B I"], state: Any = None) -> tuple[Any, Any]:
        """Return the parameters of the laws, [T, B, F], and the state; moments where propagated."""
        output, final = self.rnn(inputs, state, **asked(self.moments))
        return self.head(output, **asked(self.moments)), final

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Float[Tensor, "K T B"]:
        """Return log p(x_{t+h} | x_1 … x_t), standardized, for K draws of the noise."""
        parameters = in_draws(lambda x: self(x)[0], batch.inputs, samples, self.draws_apart)
        return self.head.log_likelihood(parameters, batch.targets.expand_as(exact(parameters).mean))

    def laws(self, parameters: Tensor | Moments) -> Mixture:
        """Return the laws of parameters in float64, standardized."""
        mean, variance = (one.double() for one in exact(parameters))
        if isinstance(self.head, GaussianHead):
            spread = torch.exp(2 * self.head.log_std.double())
            return Gaussians(mean, (variance + spread).sqrt())
        return Poissons(torch.exp(mean + variance / 2), variance)


class SeriesTask(Apart):
    """The series task: a model, its training sequences and its scores.

    Args:
        config: all settings.
        corpus: the series.
    """

    metric = "nll"
    units = "nats a step, of the numbers in their own units"

    def __init__(self, config: SeriesConfig, corpus: Observations) -> None:
        self.config, self.corpus = config, corpus
        self.stopping: Callable[[], bool] = never
        self.device = torch.device("cpu")
        self.model = SeriesModel(config, len(corpus.columns), len(corpus.targets))
        self._center, self._scale = torch.from_numpy(corpus.center), torch.from_numpy(corpus.scale)
        self._log_scale = float(self._scale.log().sum())
        self._inputs, self._targets = {}, {}
        for name in corpus.series:
            truth = (corpus.truth(name) - corpus.center) / corpus.scale
            self._inputs[name] = torch.from_numpy(corpus.inputs(name)).float()
            self._targets[name] = torch.from_numpy(truth).float()
        # rows that are read in training, those whose target is trained on
        self._read = {name: cut.train - config.horizon for name, cut in corpus.cuts.items()}

    @property
    def updates(self) -> int:
        """Updates in one epoch."""
        window, size = self.config.window, self.config.batch_size
        count = sum(1 if n <= window else -(-n // window) + 1 for n in self._read.values())
        return -(-count // size)

    def stretches(self, seed: int, epoch: int) -> list[Stretch]:
        """Return the training sequences of an epoch; seed and epoch decide cuts and order.

        A series is cut at every ``window`` steps from a place that is drawn; the first and the
        last stretch reach over their neighbours, so that in all the same number of steps counts.
        Every step that can be trained on counts in one stretch at least.
        """
        rng = np.random.default_rng((seed, epoch))
        window, found = self.config.window, []
        for name, count in self._read.items():
            if count <= window:
                found.append(Stretch(name, 0, 0, count))
                continue
            first = int(rng.integers(1, window + 1))
            for index in range(-(-count // window) + 1):
                start = min(max(first + (index - 1) * window, 0), count - window)
                before = max(0, start - self.config.warmup)
                found.append(Stretch(name, before, start, start + window))
        return [found[index] for index in rng.permutation(len(found))]

    def batches(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from ``skip`` on."""
        found, size = self.stretches(seed, epoch), self.config.batch_size
        for index in range(skip, self.updates):
            yield self._batch(found[index * size : (index + 1) * size]).to(self.device)

    def _batch(self, stretches: Sequence[Stretch]) -> Batch:
        """Return stretches side by side."""
        corpus = self.corpus
        time = max(one.stop - one.start for one in stretches)
        inputs = torch.zeros(time, len(stretches), len(corpus.columns))
        targets = torch.zeros(time, len(stretches), len(corpus.targets))
        valid = torch.zeros(time, len(stretches), dtype=torch.bool)
        ahead = corpus.horizon
        for b, (series, start, first, stop) in enumerate(stretches):
            inputs[: stop - start, b] = self._inputs[series][start:stop]
            targets[: stop - start, b] = self._targets[series][start + ahead : stop + ahead]
            valid[first - start : stop - start, b] = True
        return Batch(inputs, targets, valid)

    def total(self, batch: Batch, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood in the data's own units; nothing is carried on."""
        likelihood = self.model.log_likelihood(batch, self.config.train_samples).mean(0)
        return ((self._log_scale - likelihood) * batch.valid).sum(), {}

    def in_metric(self, nll: float) -> Scores:
        """Return a mean negative log-likelihood as a score."""
        return {"nll": nll}

    def valid(self) -> Scores:
        """Score the plain network on the validation split."""
        return self.score("valid")

    def score(self, split: str) -> Scores:
        """Score the plain network (noise off) on a split."""
        return self.scores(split, (0,))[0]

    def scores(
        self, split: str, samples: Sequence[int], others: Sequence[SeriesModel] = ()
    ) -> dict[int, Scores]:
        """Score averages of predictive distributions.

        Args:
            split: ``train`` (but for its first h steps), ``valid`` or ``test``.
            samples: numbers of draws K to average over; 0 is the plain network. All divide the
                largest: its draws are used in disjoint groups.
            others: further models whose predictive distributions are averaged in.

        Returns:
            For each K the negative log-likelihood in nats a step (``nll``) and the root mean
            squared error of the mean (``rmse``, of several targets that of each), in their units.
        """
        sums = {k: torch.zeros(1 + len(self.corpus.targets)).double() for k in samples}
        steps = sum(len(self._rows(name, split)) for name in self.corpus.series)
        drawn = [k for k in sums if k]
        for draws, own in ((0, [0] if 0 in samples else []), (max(drawn, default=0), drawn)):
            for one in self.forecasts(split, draws, others) if own else ():
                likelihood = one.laws.log_likelihood(one.truth).sum(-1)
                for k in own:
                    nll = -nested(likelihood, max(k, 1)).sum()
                    means = one.laws.mean.unflatten(0, (-1, max(k, 1))).mean((1, 2))
                    squares = (means - one.truth).square().mean(0).sum(0)
                    sums[k] += torch.cat([nll[None], squares]).cpu()
        return {k: self._in_scores(total / steps) for k, total in sums.items()}

    def _in_scores(self, means: Float[Tensor, " F1"]) -> Scores:
        """Return scores of a mean negative log-likelihood and the mean squared errors behind it."""
        nll, *errors = means.tolist()
        names = [f"rmse {name}" for name in self.corpus.target_names]
        names = names if len(names) > 1 else ["rmse"]
        return {"nll": nll, **{n: e**0.5 for n, e in zip(names, errors, strict=True)}}

    def _rows(self, series: str, split: str) -> range:
        """Return the rows of a split that are forecast: all but the first h of training."""
        rows = self.corpus.cuts[series].rows(split)
        return range(max(rows.start, self.corpus.horizon), rows.stop)

    def forecasts(
        self, split: str, draws: int = 0, others: Sequence[SeriesModel] = ()
    ) -> Iterator[Forecast]:
        """Yield the forecasts of every step of a split, each once, some series at a time.

        The network reads ``warmup`` steps before the first forecast from a state of zeros, which
        is then carried through the split. Noise that is held for a sequence is held for a window.

        Args:
            split: ``train``, ``valid`` or ``test``.
            draws: K of the noise; 0 is the plain network, of one law.
            others: further models.
        """
        models = [self.model.eval(), *(model.eval() for model in others)]
        names, ahead = list(self.corpus.series), self.corpus.horizon
        for index in range(0, len(names), TOGETHER):
            chosen = names[index : index + TOGETHER]
            stretches, rows = [], [self._rows(name, split) for name in chosen]
            for name, own in zip(chosen, rows, strict=True):
                first = own.start - ahead
                start = max(0, first - self.config.warmup)
                stretches.append(Stretch(name, start, first, own.stop - ahead))
            batch = self._batch(stretches).to(self.device)
            laws = [self._laws(model, batch, draws) for model in models]
            places = batch.valid.t()  # one series behind the other
            fields = [torch.stack(parts, 1).transpose(2, 3) for parts in zip(*laws, strict=True)]
            truth = [
                self.corpus.truth(n)[r.start : r.stop] for n, r in zip(chosen, rows, strict=True)
            ]
            yield Forecast(
                [name for name, own in zip(chosen, rows, strict=True) for _ in own],
                [row for own in rows for row in own],
                torch.from_numpy(np.concatenate(truth)).to(self.device),
                type(laws[0])(*(field[:, :, places] for field in fields)),
            )

    @torch.no_grad()
    def _laws(self, model: SeriesModel, batch: Batch, draws: int) -> Mixture:
        """Return the laws under K draws of the noise in the data's units, [K, T, B, F]."""
        count, sequences = max(draws, 1), batch.valid.shape[1]
        together = max(1, AT_ONCE // (self.config.window * sequences))
        at_once = 1 if model.draws_apart else together
        with sampling(model) if draws else nullcontext():
            parts = [
                self._stream(model, batch.inputs, min(at_once, count - done))
                for done in range(0, count, at_once)
            ]
        laws = model.laws(each(lambda *some: torch.cat(some), *parts))
        if isinstance(laws, Poissons):
            return laws
        center, scale = self._center.to(self.device), self._scale.to(self.device)
        return Gaussians(laws.mean * scale + center, laws.std * scale)

    def _stream(self, model: SeriesModel, inputs: Tensor, count: int) -> Tensor | Moments:
        """Return the parameters of some draws, [K, T, B, F], a window at a time."""
        state, parts = None, []
        for window in inputs.split(self.config.window):
            if self.stopping():
                raise Stopped
            parameters, state = model(fold(window, count), state)
            parts.append(each(lambda one: unfold(one, count), parameters))
        return each(lambda *some: torch.cat(some, 1), *parts)
