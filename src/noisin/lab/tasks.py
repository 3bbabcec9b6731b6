"""From a recipe's settings to a corpus, a model, a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from noisin.lab import LabError, dynamics, observations, rolls, tokens, words
from noisin.lab.config import MusicConfig, SeriesConfig, WordsConfig
from noisin.lab.music import MusicModel, MusicTask
from noisin.lab.observations import Observations
from noisin.lab.rolls import Corpus as Rolls
from noisin.lab.series import SeriesModel, SeriesTask
from noisin.lab.task import Corpus, Task
from noisin.lab.tokens import Words
from noisin.lab.words import WordModel, WordTask

AnyConfig = MusicConfig | WordsConfig | SeriesConfig
AnyModel = MusicModel | WordModel | SeriesModel
UNITS = {task.metric: task.units for task in (MusicTask, WordTask, SeriesTask)}


def load(
    config: AnyConfig, data_dir: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Corpus:
    """Load the corpus of a run.

    Raises:
        LabError: no such corpus, one that cannot be used, or a name that no record can hold.
    """
    try:
        config.data.encode()
    except UnicodeEncodeError:
        raise LabError(f"data must be a path in UTF-8; got {config.data!r}") from None
    if isinstance(config, WordsConfig):
        return tokens.load(config.data, data_dir, say, min_count=config.min_count)
    if isinstance(config, SeriesConfig):
        return observations.load(config)
    return rolls.load(config.data, data_dir, say)


def steps(config: AnyConfig) -> int:
    """Return how many steps a batch has."""
    if isinstance(config, SeriesConfig):
        return config.warmup + config.window
    return config.chunk if isinstance(config, MusicConfig) else config.window


def memory(config: AnyConfig, model: AnyModel) -> tuple[int, int]:
    """Return about how many bytes a training step needs, noise aside.

    Args:
        config: settings of the run.
        model: or its outline.

    Returns:
        The bytes of weights, gradients and optimizer, and those kept for the backward pass.
    """
    gates = {"lstm": 4, "gru": 3}.get(config.cell, 1)
    inside = (2 * gates + 3) * config.hidden_size * config.num_layers
    kept = (inside + 3 * model.head.out_features) * config.batch_size * config.train_samples
    copies = {"adam": 4, "nesterov-rmsprop": 4, "nt-asgd": 4}.get(config.optimizer, 3)
    return 4 * copies * sum(p.numel() for p in model.parameters()), 4 * kept * steps(config)


def check(config: AnyConfig, corpus: Corpus) -> None:
    """Refuse settings that do not fit the corpus, before anything is written.

    Raises:
        LabError: what does not fit.
    """
    if isinstance(config, WordsConfig) and isinstance(corpus, Words):
        words.check(config, corpus)


def build(config: AnyConfig, corpus: Corpus) -> Task:
    """Return the task of a run."""
    if isinstance(config, WordsConfig):
        assert isinstance(corpus, Words)
        return WordTask(config, corpus)
    if isinstance(config, SeriesConfig):
        assert isinstance(corpus, Observations)
        return SeriesTask(config, corpus)
    assert isinstance(corpus, Rolls)
    return MusicTask(config, corpus)


def model(config: AnyConfig, inputs: int, outputs: int) -> AnyModel:
    """Return the model of a run, its weights at their start.

    Args:
        config: the settings.
        inputs: keys, word types or columns that it reads.
        outputs: those that it predicts.

    Raises:
        ValueError: the settings do not fit each other, or noise cannot act.
    """
    if isinstance(config, MusicConfig):
        return MusicModel(config)
    if isinstance(config, SeriesConfig):
        return SeriesModel(config, inputs, outputs)
    return WordModel(config, outputs)


class _Unfilled(TorchFunctionMode):
    """Leaves out the functions of ``torch.nn.init``: what has no memory takes no numbers.

    On such tensors some of them would import the compiler first, which takes seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def outline(config: AnyConfig, corpus: Corpus | None = None) -> AnyModel:
    """Return a model without memory for its weights, to check and to explain.

    Args:
        config: the settings.
        corpus: gives a model of words its vocabulary, one of series its columns; without it those
            of a benchmark, else 2 words, the columns that are named, or 1.

    Raises:
        LabError: the settings do not fit each other, or noise cannot act.
    """
    try:
        with torch.device("meta"), _Unfilled():
            return model(unstarted(config), *features(config, corpus))
    except ValueError as error:
        raise LabError(str(error)) from None


def unstarted(config: AnyConfig) -> AnyConfig:
    """Return the settings without a start of weights that is computed from others."""
    return config.model_copy(update={"nonzeros": None, "spectral_radius": None})


def features(config: AnyConfig, corpus: Corpus | None = None) -> tuple[int, int]:
    """Return how many keys, word types or columns a model reads, and how many it predicts.

    Args:
        config: the settings.
        corpus: see ``outline``.
    """
    if isinstance(config, MusicConfig):
        return rolls.KEYS, rolls.KEYS
    if isinstance(corpus, Words):
        return len(corpus.vocabulary), len(corpus.vocabulary)
    if isinstance(corpus, Observations):
        return len(corpus.columns), len(corpus.targets)
    if isinstance(config, SeriesConfig):
        known = dynamics.EXAMPLES.get(config.data)
        columns = config.columns or (known.columns if known else ("one",))
        return len(columns), len(config.targets or columns)
    known = tokens.BENCHMARKS.get(config.data)
    vocabulary = known.vocabulary if known else 2
    return vocabulary, vocabulary
