"""All settings of a run, by task."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from noisin.lab.data import NAMES
from noisin.noise import terms_of
from noisin.propagation import Form
from noisin.text import parse

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Precision = Literal["32-true", "bf16-mixed"]
Accelerator = Literal["cpu", "cuda"]
MATRICES = ("input", "recurrent", "output")

VERSION = 2  # of what a run does: raised when the same settings give other numbers
LATER = {"averaging"}  # not hashed at their default: runs from before them keep their hash


class Config(BaseModel):
    """Everything that decides a run but its seed; what all tasks share.

    Args:
        data: corpus name, or a path.
        cell: the recurrent cell; tanh, relu and sigmoid are Elman RNNs.
        hidden_size: H.
        num_layers: L.
        noise: terms in text form; ``none`` for the plain network.
        nonzeros: connections that each unit of weight_hh keeps at the start; all without it.
        spectral_radius: of each gate of weight_hh at the start; as drawn without it.
        optimizer: adam, sgd (with momentum), nt-asgd (sgd, averaged from when validation stops
            improving) or nesterov-rmsprop.
        lr: step size.
        lr_recurrent: what multiplies it for the recurrent weights, weight_hh.
        lr_hold: epochs at that step size; all without it.
        lr_factor: what each later epoch multiplies it by.
        momentum: for sgd and nesterov-rmsprop.
        decay: of nesterov-rmsprop's mean square.
        trigger: nt-asgd averages once the last so many epochs brought no better validation score.
        averaging: decay of an average of the weights, w̄ ← a w̄ + (1 - a) w after each update; what
            is validated, tested and kept is the average. 0 for none; not with nt-asgd.
        clip: largest norm of the gradient.
        l1_input: λ of the penalty λ Σ |w| on the input-to-hidden matrices; ``l1_recurrent``,
            ``l1_output`` and ``l2_…`` (λ Σ w²) likewise. It is added to the loss that the
            optimizer sees.
        batch_size: B.
        epochs: at most.
        patience: epochs without a better validation score before training ends.
        train_samples: K draws of the noise for each training step.
        test_samples: K for the Monte Carlo averages at the end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str
    cell: Literal["lstm", "gru", "tanh", "relu", "sigmoid"] = "lstm"
    hidden_size: Count = 200
    num_layers: Count = 1
    noise: str = "none"
    nonzeros: Count | None = None
    spectral_radius: Positive | None = None
    optimizer: Literal["adam", "sgd", "nt-asgd", "nesterov-rmsprop"] = "adam"
    lr: Positive = 2e-3
    lr_recurrent: Positive = 1.0
    lr_hold: Count | None = None
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    trigger: Count = 5
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Positive = 1.0
    l1_input: NotNegative = 0.0
    l1_recurrent: NotNegative = 0.0
    l1_output: NotNegative = 0.0
    l2_input: NotNegative = 0.0
    l2_recurrent: NotNegative = 0.0
    l2_output: NotNegative = 0.0
    batch_size: Count = 16
    epochs: Count = 200
    patience: Count = 20
    train_samples: Count = 1
    test_samples: tuple[Count, ...] = (1, 5, 25)

    @field_validator("noise")
    @classmethod
    def _canonical(cls, noise: str) -> str:
        return str(parse(noise) if parse(noise) is not None else "none")

    @field_validator("test_samples")
    @classmethod
    def _nested(cls, samples: tuple[int, ...]) -> tuple[int, ...]:
        ordered = sorted(set(samples))
        if not samples or any(b % a for a, b in itertools.pairwise(ordered)):
            raise ValueError(f"each must divide the next larger, got {list(samples)}")
        return tuple(ordered)

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: str) -> str:
        if not data:
            raise ValueError("data must name a corpus or a path, got nothing")
        if data in NAMES:  # whatever lies in the working directory
            return data
        try:
            return str(Path(data).resolve()) if Path(data).exists() else data
        except OSError as error:
            raise ValueError(f"data must be a path that can be read; got {error}") from None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.nonzeros is not None and self.nonzeros > self.hidden_size:
            raise ValueError(
                f"nonzeros must be at most hidden_size = {self.hidden_size}, got {self.nonzeros}"
            )
        if self.averaging and self.optimizer == "nt-asgd":
            raise ValueError(
                f"averaging must be 0 with nt-asgd, which averages itself; got {self.averaging}"
            )
        return self

    @property
    def penalized(self) -> dict[str, dict[str, float]]:
        """The penalties that act, by norm: their strengths by kind of matrix."""
        norms = {
            norm: {kind: getattr(self, f"{norm}_{kind}") for kind in MATRICES}
            for norm in ("l1", "l2")
        }
        return {norm: strengths for norm, strengths in norms.items() if any(strengths.values())}

    def hash(self, *more: object) -> str:
        """Return a short hash of the settings and whatever else decides the run.

        Where the data lies is not hashed; ``more`` has the hash of what they hold.
        """
        settings = self.model_dump(mode="json", exclude={"data"})
        for name in LATER:
            if settings[name] == type(self).model_fields[name].default:
                del settings[name]
        text = json.dumps([self.version, settings, *map(str, more)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def run_hash(self, corpus: str, seed: int, decides: Sequence[str] = (), models: int = 1) -> str:
        """Return the hash of a run, or of an average.

        Args:
            corpus: sha256.
            seed: of the run, or of the first model.
            decides: what else decides its numbers; see ``Ranks.decides``.
            models: of an average; 1 of a run.
        """
        average = (f"{models} models",) if models > 1 else ()
        return self.hash(corpus, seed, *decides, *average)

    @property
    def version(self) -> object:
        """What changes where the same settings give other numbers than they did before."""
        return VERSION

    def without_path(self) -> Self:
        """Return settings to show to others: of the user's own data they have the name alone.

        Where a corpus is called so, too, it is written as a path, which no corpus is.
        """
        if self.named:
            return self
        shown = self.model_copy(update={"data": Path(self.data).name})
        return shown.model_copy(update={"data": f"./{shown.data}"}) if shown.named else shown

    @property
    def named(self) -> bool:
        """Whether the data is a corpus of a name, not the user's own."""
        return self.data in NAMES

    def lr_at(self, epoch: int) -> float:
        """Return the step size of an epoch, counted from 1."""
        later = 0 if self.lr_hold is None else max(0, epoch - self.lr_hold)
        return self.lr * self.lr_factor**later


class MusicConfig(Config):
    """Settings of the music task.

    Args:
        output_bias: start of the output layer's biases; torch's own start without it.
        chunk: longest stretch of a piece in training; each begins from the first state.
        padding: of shorter stretches in training, ``masked`` behind them, or silence in ``front``,
            up to ``chunk`` and counted in the loss, as the fast-dropout paper has it.
        learned_state: train the first state; zeros without it.
        init_std: the recurrent and output weights start normal; torch's own start without it.
        init_std_input: the input weights likewise.
        moments: how tanh and σ are propagated; see ``noisin.propagation``.
        final_moments: whether the read-out sees the variance of the hidden state, or its mean
            alone.
        recurrent_mean: see ``noisin.Propagation``; 1 are the equations.
    """

    task: Literal["music"] = "music"
    output_bias: float | None = None
    chunk: Count = 100
    padding: Literal["masked", "front"] = "masked"
    learned_state: bool = False
    init_std: Positive | None = None
    init_std_input: Positive | None = None
    moments: Form = "mixture"
    final_moments: bool = True
    recurrent_mean: Positive = 1.0


class WordsConfig(Config):
    """Settings of the word task.

    Args:
        embedding_size: of the word vectors; H without it.
        tied: one matrix for word vectors and softmax.
        window: steps of truncated back-propagation through time; the state is carried on.
        loss: what a step of the optimizer sees: the loss summed over the ``window`` and averaged
            over the batch, as learning rates near 1 mean it, or averaged over ``token``.
        init_uniform: a: all weights start uniform on [-a, a]; torch's own start without it.
        min_count: how often a word must come in training to be in the vocabulary.
        train_share: how much of the training text is trained on, from its start.
        valid_streams: streams, each from a state of zeros, that validation while training is cut
            into. Scores in tables are of one stream; that of the training text is of 100.
    """

    task: Literal["words"] = "words"
    embedding_size: Count | None = None
    tied: bool = False
    window: Count = 35
    loss: Literal["window", "token"] = "window"
    init_uniform: Positive | None = 0.1
    min_count: Count = 1
    train_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    valid_streams: Count = 10
    num_layers: Count = 2
    optimizer: Literal["adam", "sgd", "nt-asgd", "nesterov-rmsprop"] = "sgd"
    lr: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Positive = 5.0
    batch_size: Count = 20
    epochs: Count = 39
    test_samples: tuple[Count, ...] = (1, 5)

    @property
    def version(self) -> object:
        """Another one where noise is propagated, since its variance goes from window to window."""
        return [VERSION, "variance carried"] if propagates(self.noise) else VERSION


def _listed(names: object) -> object:
    """Return names that a command gives as one text with commas, or as a number, as a list."""
    if isinstance(names, list | tuple):
        return [str(name) if isinstance(name, int) else name for name in names]
    return [name.strip() for name in str(names).split(",")] if names is not None else None


def _named(name: object) -> object:
    """Return a name that reads as a number as text."""
    return str(name) if isinstance(name, int) else name


Names = Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, BeforeValidator(_listed)]


class SeriesConfig(Config):
    """Settings of the series task.

    Args:
        columns: the numeric columns that the network reads; all of them without it.
        targets: which of these are forecast; all without it.
        group: the column that says which series a row belongs to; one series without it.
        horizon: h; at step t the distribution of x_{t+h} is forecast.
        head: law of a target: gaussian, or poisson for counts.
        valid_share: of each series' rows, behind those that are trained on.
        test_share: of each series' rows, at its end.
        window: steps of a training sequence that count.
        warmup: steps that are read before them, from a state of zeros, and before the first
            forecast of a split; fewer where the series begins. Without them most of a loss is of
            forecasts from next to nothing, and a trained spread is too wide for all others.
    """

    task: Literal["series"] = "series"
    columns: Names = None
    targets: Names = None
    group: Annotated[str | None, BeforeValidator(_named)] = None
    horizon: Count = 1
    head: Literal["gaussian", "poisson"] = "gaussian"
    valid_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    window: Count = 100
    warmup: Annotated[int, Field(ge=0)] = 30
    hidden_size: Count = 64

    @field_validator("columns", "targets")
    @classmethod
    def _different(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"names must differ, got {', '.join(names)}")
        return names

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.valid_share + self.test_share >= 1:
            raise ValueError(
                "valid_share + test_share must be below 1, so that rows are left to train on; "
                f"got {self.valid_share} + {self.test_share}"
            )
        return self


TASKS: dict[str, type[MusicConfig] | type[WordsConfig] | type[SeriesConfig]] = {
    "music": MusicConfig,
    "words": WordsConfig,
    "series": SeriesConfig,
}
AnyConfig = Annotated[MusicConfig | WordsConfig | SeriesConfig, Field(discriminator="task")]
CorpusKey = tuple[str, str, str]
# settings that decide the corpus of a run, beside its task and its data
DECIDING: dict[str, tuple[str, ...]] = {
    "music": (),
    "words": ("min_count",),
    "series": (
        *("columns", "targets", "group", "horizon", "head"),
        *("valid_share", "test_share"),
    ),
}


def layout_of(processes: int, precision: Precision, accelerator: Accelerator) -> tuple[str, ...]:
    """Return what of a run's processes decides its numbers, in words: nothing of a plain one."""
    several = (f"{processes} processes",) if processes > 1 else ()
    return several + tuple(one for one in (precision, accelerator) if one not in ("32-true", "cpu"))


def propagates(noise: str) -> bool:
    """Return whether some term, in text form, is propagated instead of drawn."""
    return any(getattr(term, "estimate", "") == "moments" for term in terms_of(parse(noise)))


def corpus_key(config: MusicConfig | WordsConfig | SeriesConfig) -> CorpusKey:
    """Return what decides the corpus of a run."""
    settings = config.model_dump(mode="json", include=set(DECIDING[config.task]))
    return config.task, config.data, json.dumps(settings)


def toml_lines(config: Config, said: Collection[str]) -> list[str]:
    """Return settings as lines of a row of a recipe.

    Args:
        config: the settings.
        said: names of those that are told even where they are as without a recipe.
    """
    fields = type(config).model_fields
    return [
        f"{name} = {toml(value)}"
        for name, value in config.model_dump().items()
        if value != fields[name].default or (name in said and value is not None)
    ]


def toml_recipe(title: str, seeds: Collection[int], row: str, lines: Collection[str]) -> str:
    """Return a recipe of one row as TOML.

    Args:
        title: its heading.
        seeds: of its runs.
        row: name of the row.
        lines: what is said of the row, of ``toml_lines`` and others.
    """
    head = [f"title = {toml(title)}", f"seeds = {list(seeds)}", "", f"[rows.{toml(row)}]"]
    return "\n".join([*head, *lines]) + "\n"


def toml(value: Any) -> str:
    """Return a value as TOML, which has no word for None; a recipe takes "none"."""
    if value is None:
        return '"none"'
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # JSON takes it as it is
