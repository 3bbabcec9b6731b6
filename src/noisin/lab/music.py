"""Polyphonic music: predict which of the 88 keys sound next.

The network reads the keys at t - 1 (silence before the first step) and gives the probability of
each key at t. The score is the negative log-likelihood in nats, summed over the keys and averaged
over all steps of a split, on whole pieces. *Scored* counts every step, the first one predicted from
silence; *unscored* leaves the first step of each piece out, as the papers do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from noisin import init
from noisin.inference import fold, predictive, sampling, unfold
from noisin.lab.data import KEYS, Corpus, Roll
from noisin.lab.recipe import Config
from noisin.layers import GRU, LSTM, RNN
from noisin.likelihood import BernoulliHead
from noisin.shapes import Bool, Float


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


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood in nats a step: of all steps, and without the first of each piece."""

    scored: float
    unscored: float


class MusicModel(nn.Module):
    """A recurrent network over piano rolls with a Bernoulli read-out.

    Args:
        config: cell, sizes, noise and start.

    Raises:
        ValueError: noise that cannot act in this network.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        shape = (KEYS, config.hidden_size, config.num_layers)
        layers = {"lstm": LSTM, "gru": GRU}
        if config.cell in layers:
            self.rnn = layers[config.cell](*shape, noise=config.noise)
        else:
            self.rnn = RNN(*shape, nonlinearity=config.cell, noise=config.noise)
        self.head = BernoulliHead(config.hidden_size, KEYS)
        if config.output_bias is not None:
            nn.init.constant_(self.head.bias, config.output_bias)
        for layer in range(config.num_layers):
            weight = getattr(self.rnn, f"weight_hh_l{layer}")
            if config.nonzeros is not None:
                init.sparse_(weight, config.nonzeros, std=config.hidden_size**-0.5)
            if config.spectral_radius is not None:
                init.spectral_radius_(weight, config.spectral_radius)

    def forward(self, inputs: Float[Tensor, "T B 88"]) -> Float[Tensor, "T B 88"]:
        """Return the logits of the keys at each step."""
        return self.head(self.rnn(inputs)[0])

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Float[Tensor, "K T B"]:
        """Return log p(x_t | z_t^k), summed over the keys, for K draws of the noise."""
        logits = unfold(self(fold(batch.inputs, samples)), samples)
        return self.head.log_likelihood(logits, batch.targets.expand_as(logits))

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
        keys, state, piece = torch.zeros(1, 1, KEYS), None, []
        for _ in range(steps):
            output, state = self.rnn(keys, state)
            keys = self.head.sample(self.head(output) / temperature, generator)
            piece.append(keys[0, 0])
        return torch.stack(piece)


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


class MusicTask:
    """The music task: a model, its training batches and its score.

    Args:
        config: all settings.
        corpus: the pieces.
    """

    metric = "negative log-likelihood a step (nats, first step of a piece unscored)"

    def __init__(self, config: Config, corpus: Corpus) -> None:
        self.config, self.corpus = config, corpus
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
            yield batch_of(rolls, starts, self.config.chunk)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed negative log-likelihood, averaged over K draws, and the steps."""
        likelihood = self.model.log_likelihood(batch, self.config.train_samples).mean(0)
        return -(likelihood * batch.valid).sum(), int(batch.valid.sum())

    def score(self, split: str, batch_size: int = 64) -> Score:
        """Score the plain network (noise off) on the whole pieces of a split."""
        return self.scores(split, (0,), batch_size)[0]

    @torch.no_grad()
    def scores(
        self,
        split: str,
        samples: Sequence[int],
        batch_size: int = 64,
        others: Sequence[MusicModel] = (),
    ) -> dict[int, Score]:
        """Score averages of predictive distributions.

        Args:
            split: ``train``, ``valid`` or ``test``.
            samples: numbers of draws K to average over; 0 is the plain network. All divide the
                largest: the draws of the largest K are used in disjoint groups, and the score of
                a smaller K is the mean over its groups.
            batch_size: pieces at a time; the score does not depend on it.
            others: further models whose predictive distributions are averaged in.

        Returns:
            The score of each K.
        """
        models = [self.model, *others]
        draws = max(samples)
        noisy = [k for k in samples if k]
        totals = {k: np.zeros(2) for k in samples}
        steps = np.zeros(2)
        for batch in whole_pieces(self.corpus.splits[split], batch_size):
            counted = torch.stack([batch.valid, batch.valid & ~batch.first]).double()
            steps += counted.sum((1, 2)).numpy()
            for model in models:
                model.eval()
            if 0 in samples:
                plain = predictive(torch.cat([m.log_likelihood(batch).double() for m in models]))
                totals[0] -= (counted * plain).sum((1, 2)).numpy()
            drawn = torch.stack([_drawn(m, batch, draws) for m in models], 1)
            for k in noisy:
                groups = drawn.unflatten(0, (-1, k)).flatten(1, 2).transpose(0, 1)
                averaged = predictive(groups).mean(0)
                totals[k] -= (counted * averaged).sum((1, 2)).numpy()
        return {k: Score(*(totals[k] / steps)) for k in samples}


def _drawn(model: MusicModel, batch: Batch, draws: int) -> Float[Tensor, "K T B"]:
    """Return the log-likelihoods under K draws of the noise, a few hundred sequences at a time."""
    if not draws:
        return torch.zeros(0, *batch.valid.shape)
    at_once = max(1, 512 // batch.valid.shape[1])
    with sampling(model):
        parts = [
            model.log_likelihood(batch, min(at_once, draws - done)).double()
            for done in range(0, draws, at_once)
        ]
    return torch.cat(parts)


def whole_pieces(rolls: Sequence[Roll], batch_size: int) -> Iterator[Batch]:
    """Yield whole pieces, those of similar length together."""
    ordered = sorted(rolls, key=len)
    for start in range(0, len(ordered), batch_size):
        chosen = ordered[start : start + batch_size]
        yield batch_of(chosen, [0] * len(chosen), len(chosen[-1]))
