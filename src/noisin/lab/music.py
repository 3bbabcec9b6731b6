"""Polyphonic music: predict which of the 88 keys sound next.

The network reads the keys at t - 1 (silence before the first step) and gives the probability of
each key at t. The score is the negative log-likelihood in nats, summed over the keys and averaged
over all steps of a split, on whole pieces. *Scored* counts every step, the first one predicted from
silence; *unscored* leaves the first step of each piece out, as the papers do.

An average of predictive distributions, over draws of the noise or over models, is a mixture: under
it the keys of a step depend on each other, as under no network of its parts. *Factorised* is the
score, unscored, where each key's probability is averaged on its own and the keys stay independent.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from noisin.inference import sampling
from noisin.lab.config import MusicConfig, propagates
from noisin.lab.models import asked, in_draws, recurrent, share
from noisin.lab.rolls import KEYS, Corpus, Roll
from noisin.lab.task import (
    Apart,
    Scores,
    Stopped,
    nested,
    never,
)
from noisin.likelihood import BernoulliHead
from noisin.propagated import Propagation
from noisin.propagation import Moments, exact
from noisin.shapes import Bool, Float

AT_ONCE = 2**15  # steps of all sequences in one pass of evaluation, to bound its memory


class Batch(NamedTuple):
    """Stretches of pieces, padded behind.

    Args:
        inputs: keys at t - 1, [T, B, 88].
        targets: keys at t, [T, B, 88].
        valid: which steps belong to a piece, [T, B].
        first: which steps are the first of their piece, [T, B].
    """

    inputs: Float[Tensor, "T B 88"]
    targets: Float[Tensor, "T B 88"]
    valid: Bool[Tensor, "T B"]
    first: Bool[Tensor, "T B"]

    def to(self, device: torch.device) -> Batch:
        """Return the same on a device."""
        return Batch(*(x.to(device) for x in self))


class MusicModel(nn.Module):
    """A recurrent network over piano rolls with a Bernoulli read-out.

    Args:
        config: cell, sizes, noise and start.

    Raises:
        ValueError: noise that cannot act in this network.
    """

    def __init__(self, config: MusicConfig) -> None:
        super().__init__()
        noise = share(config.noise)
        if noise.embedding is not None:
            raise ValueError(f"music has no embedding for noise at row; got {noise.embedding}")
        self.draws_apart = noise.shared_by_batch
        self.rnn = recurrent(config, KEYS, noise.recurrent)
        self.rnn.propagation = Propagation(config.moments, recurrent_mean=config.recurrent_mean)
        self.head = BernoulliHead(config.hidden_size, KEYS, noise=noise.head)
        self.moments = propagates(config.noise)
        self.final_moments = self.moments and config.final_moments
        self.first = None
        if config.learned_state:
            sizes = self.rnn.stack.state_shapes(1)
            self.first = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        self._start(config)

    def _start(self, config: MusicConfig) -> None:
        """Let the weights start as the settings say."""
        for layer in range(config.num_layers):
            if config.init_std_input is not None:
                nn.init.normal_(getattr(self.rnn, f"weight_ih_l{layer}"), std=config.init_std_input)
        if config.init_std is not None:
            nn.init.normal_(self.head.weight, std=config.init_std)
        if config.output_bias is not None:
            nn.init.constant_(self.head.bias, config.output_bias)

    def forward(self, inputs: Float[Tensor, "T B 88"]) -> Tensor | Moments:
        """Return the logits of the keys at each step, moments where they are propagated so far."""
        return self._read(self.rnn(inputs, self._state(inputs), **asked(self.moments))[0])

    def _read(self, output: Tensor | Moments) -> Tensor | Moments:
        if isinstance(output, Moments) and not self.final_moments:
            output = output.mean
        return self.head(output, **asked(self.final_moments))

    def _state(self, inputs: Tensor) -> Any:
        """Return the first state of each sequence."""
        if self.first is None:
            return None
        state = [one.expand(-1, inputs.shape[1], -1).contiguous() for one in self.first]
        return tuple(state) if len(state) > 1 else state[0]

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Float[Tensor, "K T B"]:
        """Return log p(x_t | z_t^k), summed over the keys, for K draws of the noise."""
        return self.each(batch, samples).sum(-1)

    def each(self, batch: Batch, samples: int = 1) -> Float[Tensor, "K T B 88"]:
        """Return the logarithm of the probability of what came, of each key on its own."""
        logits = in_draws(self, batch.inputs, samples, self.draws_apart)
        return self.head.each(logits, batch.targets.expand_as(exact(logits).mean))

    @torch.no_grad()
    def generate(
        self, steps: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Float[Tensor, "T 88"]:
        """Draw a piece from the plain network, each step given the ones before.

        Args:
            steps: T.
            generator: source of randomness.
            temperature: divides the logits; below 1 the keys are more certain.
        """
        self.eval()
        keys, piece = torch.zeros(1, 1, KEYS), []
        state = self._state(keys)
        for _ in range(steps):
            output, state = self.rnn(keys, state, **asked(self.moments))
            logits = self._read(output)
            if isinstance(logits, Moments):
                logits = Moments(logits.mean / temperature, logits.variance / temperature**2)
            else:
                logits = logits / temperature
            keys = self.head.sample(logits, generator)
            piece.append(keys[0, 0])
        return torch.stack(piece)


def padded_in_front(batch: Batch, length: int) -> Batch:
    """Return stretches with silence in front, as many steps as ``length``, all of which count."""
    time = len(batch.valid)
    sizes = batch.valid.sum(0)

    def moved(x: Tensor) -> Tensor:
        whole = x.new_zeros(length, *x.shape[1:])
        whole[:time] = x
        steps = (torch.arange(length)[:, None] - (length - sizes)) % length
        return whole.gather(0, steps[..., None].expand(-1, -1, x.shape[2]))

    # what is read behind the end of a stretch is silence already
    inputs, targets, first = map(moved, (batch.inputs, batch.targets, batch.first[..., None]))
    return Batch(inputs, targets, torch.ones(length, len(sizes), dtype=torch.bool), first[..., 0])


def batch_of(rolls: Sequence[Roll], starts: Sequence[int], length: int) -> Batch:
    """Return the stretch of each roll that begins at its start and has at most ``length`` steps."""
    sizes = [min(length, len(roll) - start) for roll, start in zip(rolls, starts, strict=True)]
    shape = (max(sizes), len(rolls))
    inputs, targets = np.zeros((2, *shape, KEYS), np.float32)
    for b, (roll, start, size) in enumerate(zip(rolls, starts, sizes, strict=True)):
        targets[:size, b] = roll[start : start + size]
        before = roll[max(start - 1, 0) : start + size - 1]
        inputs[size - len(before) : size, b] = before
    valid = torch.arange(shape[0])[:, None] < torch.tensor(sizes)
    first = torch.zeros(shape, dtype=torch.bool)
    first[0] = torch.tensor(starts) == 0
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), valid, first)


class MusicTask(Apart):
    """The music task: a model, its training batches and its score.

    Args:
        config: all settings.
        corpus: the pieces.
    """

    metric = "unscored"
    units = "nats a step, first step of a piece unscored"

    def __init__(self, config: MusicConfig, corpus: Corpus) -> None:
        self.config, self.corpus = config, corpus
        self.stopping: Callable[[], bool] = never
        self.device = torch.device("cpu")
        self.model = MusicModel(config)
        self._chunks = [
            (roll, start)
            for roll in corpus.splits["train"]
            for start in range(0, len(roll), config.chunk)
        ]

    @property
    def updates(self) -> int:
        """Updates in one epoch."""
        return -(-len(self._chunks) // self.config.batch_size)

    def batches(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from ``skip`` on; seed and epoch decide the order."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self._chunks))
        size = self.config.batch_size
        for index in range(skip, self.updates):
            chosen = [self._chunks[i] for i in order[index * size : (index + 1) * size]]
            rolls, starts = zip(*chosen, strict=True)
            batch = batch_of(rolls, starts, self.config.chunk)
            front = self.config.padding == "front"
            batch = padded_in_front(batch, self.config.chunk) if front else batch
            yield batch.to(self.device)

    def total(self, batch: Batch, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of a batch; nothing is carried on."""
        likelihood = self.model.log_likelihood(batch, self.config.train_samples).mean(0)
        return -(likelihood * batch.valid).sum(), {}

    def in_metric(self, nll: float) -> Scores:
        """Return a mean negative log-likelihood as scores; of training, all steps count."""
        return {"unscored": nll, "scored": nll}

    def valid(self) -> Scores:
        """Score the plain network on the validation pieces."""
        return self.score("valid")

    def score(self, split: str, batch_size: int = 64) -> Scores:
        """Score the plain network (noise off) on the whole pieces of a split."""
        return self.scores(split, (0,), batch_size=batch_size)[0]

    @torch.no_grad()
    def scores(
        self,
        split: str,
        samples: Sequence[int],
        others: Sequence[MusicModel] = (),
        batch_size: int = 64,
    ) -> dict[int, Scores]:
        """Score averages of predictive distributions.

        Args:
            split: ``train``, ``valid`` or ``test``.
            samples: numbers of draws K to average over; 0 is the plain network. All divide the
                largest: its draws are used in disjoint groups.
            others: further models whose predictive distributions are averaged in.
            batch_size: pieces at a time; the score does not depend on it, but for the draws.

        Returns:
            For each K the negative log-likelihood in nats a step, of all steps (``scored``) and
            without the first of each piece (``unscored``); of averages also ``factorised``.
        """
        models = [self.model.eval(), *(model.eval() for model in others)]
        totals: dict[int, defaultdict[str, float]] = {k: defaultdict(float) for k in samples}
        steps: Counter[str] = Counter()
        for pieces in whole_pieces(self.corpus.splits[split], batch_size):
            if self.stopping():
                raise Stopped
            batch = pieces.to(self.device)
            later = batch.valid & ~batch.first
            counted = {"unscored": later, "scored": batch.valid, "factorised": later}
            steps.update({name: int(which.sum()) for name, which in counted.items()})
            for k, averages in _averages(models, batch, samples).items():
                for name, likelihood in averages.items():
                    totals[k][name] -= (counted[name] * likelihood).sum().item()
        return {
            k: {name: total / steps[name] for name, total in of_k.items()}
            for k, of_k in totals.items()
        }


def _averages(
    models: Sequence[MusicModel], batch: Batch, samples: Sequence[int]
) -> dict[int, dict[str, Float[Tensor, "T B"]]]:
    """Return the log-likelihoods of averages over K draws and all models, by score."""
    keys = {k: _Keys(max(k, 1) * len(models)) for k in samples}
    chords: dict[bool, list[Tensor]] = {False: [], True: []}  # plain, drawn
    plain = torch.stack([model.each(batch) for model in models], 1)
    parts = zip(itertools.repeat(True), _drawn(models, batch, max(samples)))  # one at a time
    for drawn, part in itertools.chain([(False, plain)], parts):
        chords[drawn].append(part.sum(-1).double())
        for k, average in keys.items():
            if bool(k) == drawn:
                average.add(part)
    found = {}
    for k, average in keys.items():
        mixture = nested(torch.cat(chords[k > 0]), max(k, 1))
        found[k] = {"unscored": mixture, "scored": mixture}
        if average.size > 1:
            found[k]["factorised"] = average.mean
    return found


def _drawn(
    models: Sequence[MusicModel], batch: Batch, draws: int
) -> Iterator[Float[Tensor, "K M T B 88"]]:
    """Yield what each key gives under K draws of the noise, a few hundred sequences at a time."""
    at_once = max(1, AT_ONCE // batch.valid.numel())
    for done in range(0, draws, at_once):
        parts = []
        for model in models:
            with sampling(model):
                parts.append(model.each(batch, min(at_once, draws - done)))
        yield torch.stack(parts, 1)


class _Keys:
    """Log-likelihood of averages of each key's probability, over groups of distributions.

    Args:
        size: of a group. They come one after the other: of all there is too much to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._open: Tensor | None = None  # log Σ p over the group that is not full
        self._within, self._groups = 0, 0
        self._total: Tensor | float = 0.0

    def add(self, each: Float[Tensor, "K M T B 88"]) -> None:
        """Take up distributions; the models of a draw are of one group."""
        if self.size == 1:
            return
        for one in each.double().flatten(0, 1):
            self._open = one if self._open is None else torch.logaddexp(self._open, one)
            self._within += 1
            if self._within == self.size:
                self._total = self._total + (self._open - math.log(self.size)).sum(-1)
                self._groups, self._within, self._open = self._groups + 1, 0, None

    @property
    def mean(self) -> Float[Tensor, "T B"]:
        """The mean over the groups."""
        return torch.as_tensor(self._total / self._groups)


def whole_pieces(rolls: Sequence[Roll], batch_size: int) -> Iterator[Batch]:
    """Yield whole pieces, those of similar length together, few of them where they are long."""
    chosen: list[Roll] = []
    for roll in sorted(rolls, key=len):
        if chosen and (len(chosen) == batch_size or (len(chosen) + 1) * len(roll) > AT_ONCE):
            yield batch_of(chosen, [0] * len(chosen), len(chosen[-1]))
            chosen = []
        chosen.append(roll)
    yield batch_of(chosen, [0] * len(chosen), len(chosen[-1]))
