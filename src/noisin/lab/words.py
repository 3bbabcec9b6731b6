"""Words: predict the next token of a text.

The network reads token t - 1 (``<eos>`` before the first) and gives the distribution of token t.
Perplexity is the exponential of the mean negative log-likelihood over all tokens of a split, each
predicted once, one ``<eos>`` a line among them, with the state carried from the first to the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisin.dense import Embedding
from noisin.inference import fold, predictive, sampling, unfold
from noisin.lab import LabError
from noisin.lab.config import WordsConfig
from noisin.lab.models import asked, recurrent, share
from noisin.lab.task import (
    Loss,
    Scores,
    Stopped,
    at_least_float32,
    columns,
    nested,
    never,
)
from noisin.lab.tokens import EOS, Words
from noisin.likelihood import CategoricalHead
from noisin.propagation import Moments, each, mean_of
from noisin.shapes import Float, Int

TRAIN_STREAMS = 100  # that the training text is cut into to be scored
VARIANCE = "-variance"  # behind the name of a part of the state that is carried
AT_ONCE = 400  # tokens scored in one pass, to bound the memory of their logits


class Token(NamedTuple):
    """A token of a sample.

    Args:
        word: as it stands in the vocabulary.
        probability: p(x_t | x_1 … x_{t-1}) of the model, within [0, 1], whatever the temperature
            that it was drawn at; None of what was given.
    """

    word: str
    probability: float | None = None

    @property
    def ends_line(self) -> bool:
        """Whether it is the end of a line."""
        return self.word == EOS


def text_of(tokens: Sequence[Token]) -> str:
    """Return the text of a sample, a line for each ``<eos>``."""
    text = " ".join(token.word for token in tokens)
    return text.replace(f"{EOS} ", "\n").replace(EOS, "\n")


class Window(NamedTuple):
    """A stretch of parallel streams: tokens t - 1 and tokens t, [T, B]."""

    inputs: Int[Tensor, "T B"]
    targets: Int[Tensor, "T B"]


class WordModel(nn.Module):
    """Embedding, recurrent layers, softmax.

    Args:
        config: cell, sizes, noise and start.
        vocabulary: V.

    Raises:
        ValueError: noise that cannot act in this network, or sizes that cannot be tied.
    """

    def __init__(self, config: WordsConfig, vocabulary: int) -> None:
        super().__init__()
        size = config.embedding_size or config.hidden_size
        noise = share(config.noise)
        self.draws_apart = noise.shared_by_batch
        self.embedding = Embedding(vocabulary, size, noise=noise.embedding)
        self.rnn = recurrent(config, size, noise.recurrent)
        self.head = CategoricalHead(config.hidden_size, vocabulary, noise=noise.head)
        self.moments = noise.propagated
        if config.init_uniform is not None:
            for name, parameter in self.named_parameters():
                if ".rho_" not in name:  # spreads keep their own start
                    nn.init.uniform_(parameter, -config.init_uniform, config.init_uniform)
        if config.tied:
            if size != config.hidden_size:
                raise ValueError(
                    f"tied weights need embedding_size = hidden_size, got {size} and "
                    f"{config.hidden_size}"
                )
            self.head.weight = self.embedding.weight

    def forward(
        self, inputs: Int[Tensor, "T B"], state: Any = None
    ) -> tuple[Float[Tensor, "T B V"], Any]:
        """Return the logits of the next token at each step, and the state.

        Where noise is propagated the state is moments, and the logits those of the mean output.
        """
        moments = asked(self.moments and not self.rnn.sampling)
        output, final = self.rnn(self.embedding(inputs), state, **moments)
        return self.head(mean_of(output)), final

    def in_draws(
        self, inputs: Int[Tensor, "T B"], state: Any, samples: int
    ) -> tuple[Float[Tensor, "T KB V"], Any]:
        """Return logits and state for K draws of the noise, folded into the batch."""
        if samples == 1 or not self.draws_apart:
            return self(fold(inputs, samples), state)
        logits, states = [], []
        for k in range(samples):
            part = slice(k * inputs.shape[1], (k + 1) * inputs.shape[1])
            own = [each(lambda one, part=part: one[:, part], s) for s in parts_of(state)]
            one, final = self(inputs, state_of(own))
            logits.append(one)
            states.append(parts_of(final))
        whole = [each(lambda *own: torch.cat(own, 1), *s) for s in zip(*states, strict=True)]
        return torch.cat(logits, 1), state_of(whole)


def parts_of(state: Any) -> tuple[Tensor | Moments, ...]:
    """Return the parts of a state as recurrent layers give it; none of None."""
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor | Moments) else tuple(state)


def state_of(parts: Sequence[Tensor | Moments]) -> Any:
    """Return a state as recurrent layers take it."""
    return tuple(parts) if len(parts) > 1 else parts[0] if parts else None


def trained_on(config: WordsConfig, corpus: Words) -> NDArray[np.uint32]:
    """Return the tokens that are trained on."""
    whole = corpus.splits["train"]
    return whole[: round(config.train_share * len(whole))]


def check(config: WordsConfig, corpus: Words) -> None:
    """Refuse settings that do not fit a corpus.

    Raises:
        LabError: fewer tokens than streams.
    """
    tokens = len(trained_on(config, corpus))
    if tokens < config.batch_size:
        raise LabError(
            f"batch_size must be at most the {tokens} tokens that are trained on, "
            f"got {config.batch_size}"
        )


class WordTask:
    """The word task: a model, its training windows and its perplexity.

    Args:
        config: all settings.
        corpus: the tokens.
    """

    metric = "perplexity"
    units = "perplexity"

    def __init__(self, config: WordsConfig, corpus: Words) -> None:
        self.config, self.corpus = config, corpus
        self.stopping: Callable[[], bool] = never
        self.device = torch.device("cpu")
        check(config, corpus)
        self.model = WordModel(config, len(corpus.vocabulary))
        self._start = corpus.vocabulary.index(EOS)
        self._carried: dict[str, Tensor] = {}  # the state between windows
        self._splits = {**corpus.splits, "train": trained_on(config, corpus)}
        self._length = len(self._splits["train"]) // config.batch_size

    @property
    def updates(self) -> int:
        """Updates in one epoch."""
        return -(-self._length // self.config.window)

    def batches(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Window]:
        """Yield the windows of an epoch from ``skip`` on; their order is that of the text.

        The text is cut into B streams of equal length (the last few tokens, fewer than B, are left
        out); each stream goes on where its last window ended.
        """
        if skip == 0:
            self._carried = {}
        size = self.config.window
        text = self._splits["train"]
        starts = np.arange(self.config.batch_size) * self._length
        for index in range(skip, self.updates):
            first = index * size
            yield self._window(text, starts + first, min(size, self._length - first))

    def _window(self, text: NDArray[np.uint32], starts: NDArray[np.int64], size: int) -> Window:
        """Return ``size`` tokens of each stream and those one before."""
        places = starts[None] + np.arange(-1, size)[:, None]
        ids = text[np.maximum(places, 0)].astype(np.int64)
        ids[places < 0] = self._start
        both = torch.from_numpy(ids).to(self.device)
        return Window(both[:-1], both[1:])

    def part(self, batch: Window, rank: int, size: int) -> Window:
        """Return the streams of a window that the ``rank``-th of ``size`` processes takes."""
        own = columns(batch.targets.shape[1], rank, size)
        return Window(batch.inputs[:, own], batch.targets[:, own])

    def counts(self, batch: Window) -> tuple[int, int]:
        """Return the number of tokens, and that of streams or of tokens."""
        count = batch.targets.numel()
        return count, batch.targets.shape[1] if self.config.loss == "window" else count

    def total(self, batch: Window, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of a window, and the state behind it."""
        samples = self.config.train_samples
        logits, state = self.model.in_draws(batch.inputs, self._state_of(carried), samples)
        left = {}
        for index, part in enumerate(parts_of(state)):
            left[str(index)] = mean_of(part).detach()
            if isinstance(part, Moments):
                left[f"{index}{VARIANCE}"] = part.variance.detach()
        logits = at_least_float32(unfold(logits, samples))
        likelihood = self.model.head.log_likelihood(logits, batch.targets.expand(logits.shape[:-1]))
        return -likelihood.mean(0).sum(), left

    def loss(self, batch: Window) -> Loss:
        """Return the loss of a window, and carry the state on."""
        total, self._carried = self.total(batch, self._carried)
        return Loss(total, *self.counts(batch))

    def carried(self) -> dict[str, Tensor]:
        """Return the state between windows."""
        return self._carried

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """Take up what ``carried`` gave."""
        self._carried = {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _state_of(self, carried: dict[str, Tensor]) -> Any:
        """Return what is carried as the recurrent layers take it."""
        return state_of(
            [
                Moments(one, carried[name + VARIANCE]) if name + VARIANCE in carried else one
                for name, one in sorted(carried.items())
                if not name.endswith(VARIANCE)
            ]
        )

    def in_metric(self, nll: float) -> Scores:
        """Return a mean negative log-likelihood as scores."""
        return {"perplexity": math.exp(min(nll, 700.0)), "nll": nll}

    def valid(self) -> Scores:
        """Score the plain network on the validation split, for choosing an epoch."""
        return self._in_streams("valid", self.config.valid_streams)

    def score(self, split: str) -> Scores:
        """Score the plain network, in one stream; the long training text in 100."""
        return self._in_streams(split, TRAIN_STREAMS if split == "train" else 1)

    def _in_streams(self, split: str, streams: int) -> Scores:
        parts = self.log_likelihoods(split, streams=streams)
        total = sum(likelihood.sum().item() for likelihood in parts)
        return self.in_metric(-total / len(self._splits[split]))

    def scores(
        self,
        split: str,
        samples: Sequence[int],
        others: Sequence[WordModel] = (),
        window: int | None = None,
    ) -> dict[int, Scores]:
        """Score averages of predictive distributions, in one stream.

        Args:
            split: ``train``, ``valid`` or ``test``.
            samples: numbers of draws K to average over; 0 is the plain network. All divide the
                largest.
            others: further models whose predictive distributions are averaged in.
            window: steps at a time; see ``log_likelihoods``.

        Returns:
            The scores of each K.
        """
        totals = dict.fromkeys(samples, 0.0)
        models = [self.model, *others]
        draws = max(samples)
        if 0 in samples:
            for parts in zip(
                *(self.log_likelihoods(split, m, window) for m in models), strict=True
            ):
                totals[0] -= predictive(torch.stack(parts)).sum().item()
        if draws:
            drawn = [self.log_likelihoods(split, m, window, samples=draws) for m in models]
            for parts in zip(*drawn, strict=True):
                for k in filter(None, totals):
                    totals[k] -= nested(torch.stack(parts, 1), k).sum().item()
        count = len(self._splits[split])
        return {k: self.in_metric(total / count) for k, total in totals.items()}

    @torch.no_grad()
    def log_likelihoods(
        self,
        split: str,
        model: WordModel | None = None,
        window: int | None = None,
        *,
        samples: int = 0,
        streams: int = 1,
    ) -> Iterator[Float[Tensor, "..."]]:
        """Yield the log-likelihood of every token of a split, each once, a window at a time.

        Args:
            split: which.
            model: the task's own without it.
            window: steps at a time. The plain network's result does not depend on it; noise that
                is held for a sequence is held for a window, by default that of training.
            samples: K draws of the noise in parallel; 0 is the plain network.
            streams: cut the text into so many streams, each from a state of zeros.

        Yields:
            [T] for the plain network in one stream, [streams·T] in several; [K, T] with draws.
        """
        model = model or self.model
        model.eval()
        window = window or (self.config.window if samples else max(1, AT_ONCE // streams))
        text = self._splits[split]
        length = len(text) // streams
        # the few tokens behind the last whole stream are one more
        runs = [(np.arange(streams) * length, length)]
        runs.append((np.array([streams * length]), len(text) - streams * length))
        for starts, length in runs:
            state = None
            for start in range(0, length, window):
                if self.stopping():
                    raise Stopped
                part = self._window(text, starts + start, min(window, length - start))
                if samples:
                    with sampling(model):
                        logits, state = model.in_draws(part.inputs, state, samples)
                else:
                    logits, state = model(part.inputs, state)
                targets = fold(part.targets, max(samples, 1))
                likelihood = model.head.log_likelihood(logits, targets).double()
                yield likelihood.t() if samples else likelihood.flatten()

    @torch.no_grad()
    def generate(
        self,
        count: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        prompt: Sequence[str] = (),
    ) -> list[Token]:
        """Draw tokens from the plain network, each given the ones before.

        Args:
            count: how many.
            generator: source of randomness.
            temperature: divides the logits; below 1 likely words come more often.
            prompt: words to start from; unknown ones are refused.

        Returns:
            The prompt, and what was drawn with its probabilities.

        Raises:
            ValueError: a word of the prompt that is not in the vocabulary.
        """
        self.model.eval()
        numbers = {word: number for number, word in enumerate(self.corpus.vocabulary)}
        missing = [word for word in prompt if word not in numbers]
        if missing:
            raise ValueError(f"the prompt must be of known words; got {', '.join(missing)}")
        given = [self._start, *(numbers[word] for word in prompt)]
        ids, state, tokens = torch.tensor(given)[:, None], None, [Token(word) for word in prompt]
        for _ in range(count):
            logits, state = self.model(ids, state)
            ids = self.model.head.sample(logits[-1:] / temperature, generator)
            probability = self.model.head.log_likelihood(logits[-1:], ids).exp().item()
            tokens.append(Token(self.corpus.vocabulary[int(ids)], probability))
        return tokens
