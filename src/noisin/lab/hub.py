"""Models in the format of the Hugging Face Hub: a folder with all that builds them again.

``model.safetensors`` has the weights, ``config.json`` the settings and what else the model needs
(``About``), ``vocabulary.json`` the word types of a model of words, ``recipe.toml`` the run as a
recipe, and ``README.md`` is the model card. Neither the corpus nor a path on the machine that
trained it is told.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

import noisin
from noisin.lab import LabError, card, checkpoint, evaluate, tasks
from noisin.lab.config import AnyConfig
from noisin.lab.files import check_empty, folder_aside, write_aside
from noisin.lab.music import MusicTask
from noisin.lab.observations import Observations
from noisin.lab.series import SeriesTask
from noisin.lab.tasks import AnyModel
from noisin.lab.words import WordTask

ABOUT, WEIGHTS, VOCABULARY = "config.json", "model.safetensors", "vocabulary.json"
READ = (ABOUT, WEIGHTS, VOCABULARY)  # what a model is built from
WRITTEN = "as `noisin export` writes it"


class Columns(BaseModel):
    """What a model of series reads and forecasts, and in which units.

    The model reads (x - mean) / std; what it gives stands for (target - center) / scale.

    Args:
        inputs: names of the I columns that it reads.
        targets: names of the F columns that it forecasts.
        mean: of each input over the training rows.
        std: likewise.
        center: of each target; 0 of counts.
        scale: likewise; 1 of counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]


class About(BaseModel):
    """What ``config.json`` says of a model.

    Args:
        format_version: of this layout.
        noisin: version that wrote it.
        recipe: that the model was trained by.
        row: of the recipe.
        seed: of the run.
        settings: of the run; of the user's own data they have the name alone, without a path.
        inputs: keys, word types or columns that it reads.
        outputs: those that it predicts.
        weights: sha256 of the weights, as the record of the run has it.
        vocabulary: sha256 of the word types; None but of words.
        columns: of a model of series; None of others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    noisin: str
    recipe: str
    row: str
    seed: int
    settings: AnyConfig
    inputs: int
    outputs: int
    weights: str
    vocabulary: str | None = None
    columns: Columns | None = None

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        task = self.settings.task
        for needed, told in ((task == "words", self.vocabulary), (task == "series", self.columns)):
            if needed != (told is not None):
                raise ValueError(
                    f"words have a vocabulary and series have columns, no other; got {task}"
                )
        return self


def save_pretrained(
    run: Path, folder: Path, data_dir: Path | None = None, license: str | None = None
) -> list[str]:
    """Write the model of a finished run into a folder, whole or not at all.

    Args:
        run: folder of the run.
        folder: where the model goes; empty or not there yet.
        data_dir: folder with corpora: what belongs to the model is read from that of the run.
        license: of the model, as the Hub names it, such as ``mit``; none is told without it.

    Returns:
        The names of the files.

    Raises:
        LabError: no finished run, a folder that is not empty, no package ``huggingface_hub``.
    """
    _package()
    check_empty(folder)
    found = evaluate.load(run, data_dir)
    about, words = _about(found)
    with folder_aside(folder) as aside:
        state = found.task.model.state_dict()
        checkpoint.save(aside / WEIGHTS, state, {"weights": about.weights})
        texts = {ABOUT: about.model_dump_json(indent=1) + "\n"}
        texts |= {VOCABULARY: _listed(words)} if words else {}
        texts |= card.texts(found.record, found.task.model, license)
        for name, text in texts.items():
            with write_aside(aside / name) as file:
                file.write(text.encode())
        return sorted(path.name for path in aside.iterdir())


def from_pretrained(source: str | Path, **download: Any) -> AnyModel:
    """Return a model that ``save_pretrained`` wrote, in evaluation mode.

    It computes what the model of the run computes, bit for bit. ``noisin.sampling`` switches its
    noise on, ``noisin.strip(model.rnn)`` gives torch's own layer.

    Args:
        source: a folder; or, as text that names none, the id of a repository of the Hub.
        **download: of a repository, what ``huggingface_hub.snapshot_download`` takes, such as
            ``revision``.

    Raises:
        LabError: no such folder or repository, a missing or damaged file.
    """
    folder = _folder(source, download)
    known = _read(folder)
    if known.vocabulary is not None:
        _words(folder, known)
    tensors, _ = checkpoint.load(folder / WEIGHTS)
    if checkpoint.weights_hash(tensors) != known.weights:
        raise LabError(f"{folder / WEIGHTS}: the weights must have sha256 {known.weights}")
    config, sizes = tasks.unstarted(known.settings), (known.inputs, known.outputs)
    try:
        with torch.device("meta"):  # sizes are compared before there is memory for them
            outline = tasks.model(config, *sizes).state_dict()
        if {n: t.shape for n, t in outline.items()} != {n: t.shape for n, t in tensors.items()}:
            raise ValueError("its sizes are not those of the weights")
    except (ValueError, RuntimeError) as error:  # torch's own, of sizes beyond any memory
        raise LabError(f"{folder / ABOUT} must be {WRITTEN}; {error}") from None
    with torch.random.fork_rng(devices=[]):  # the start is drawn, and replaced
        model = tasks.model(config, *sizes)
    model.load_state_dict(tensors)
    return model.eval()


def about(source: str | Path, **download: Any) -> About:
    """Return what ``config.json`` says of a model.

    Args:
        source: see ``from_pretrained``.
        **download: likewise.

    Raises:
        LabError: no such folder or repository, a missing or damaged file.
    """
    return _read(_folder(source, download))


def vocabulary(source: str | Path, **download: Any) -> tuple[str, ...]:
    """Return the word types of a model of words; the number of a token is its place.

    Args:
        source: see ``from_pretrained``.
        **download: likewise.

    Raises:
        LabError: a model of another task; no such folder or repository, a missing or damaged file.
    """
    folder = _folder(source, download)
    known = _read(folder)
    if known.vocabulary is None:
        raise LabError(f"a vocabulary is of words; {folder} is a model of {known.settings.task}")
    return _words(folder, known)


def _about(run: evaluate.Run) -> tuple[About, tuple[str, ...]]:
    """Return what is told of the model of a run, and its word types."""
    record, task = run.record, run.task
    assert isinstance(task, MusicTask | WordTask | SeriesTask)
    inputs, outputs = tasks.features(record.config, task.corpus)
    words = task.corpus.vocabulary if isinstance(task, WordTask) else ()
    about = About(
        noisin=noisin.__version__,
        recipe=record.recipe,
        row=record.row,
        seed=record.seed,
        settings=record.config.without_path(),
        inputs=inputs,
        outputs=outputs,
        weights=record.weights,
        vocabulary=_sha(_listed(words).encode()) if words else None,
        columns=_columns(task.corpus) if isinstance(task, SeriesTask) else None,
    )
    return about, words


def _columns(corpus: Observations) -> Columns:
    return Columns(
        inputs=corpus.columns,
        targets=corpus.target_names,
        mean=tuple(corpus.mean.tolist()),
        std=tuple(corpus.std.tolist()),
        center=tuple(corpus.center.tolist()),
        scale=tuple(corpus.scale.tolist()),
    )


def _listed(words: tuple[str, ...]) -> str:
    """Return word types as JSON, a line each."""
    return json.dumps(words, ensure_ascii=False, indent=0) + "\n"


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _package() -> ModuleType:
    """Return ``huggingface_hub``, which only some users have."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise LabError(
            'this needs the package huggingface_hub: pip install "noisin[hub]"'
        ) from None
    return huggingface_hub


def _fetched(repository: str, download: dict[str, Any]) -> Path:
    """Download the files of a repository, those that are not here yet."""
    package = _package()
    try:
        return Path(package.snapshot_download(repository, allow_patterns=list(READ), **download))
    except Exception as error:  # the package raises whatever its transport does
        reason = str(error).strip().partition("\n")[0]
        raise LabError(
            f"a model is a folder, or a repository of the Hub that can be fetched; got "
            f"{repository!r} ({type(error).__name__}: {reason})"
        ) from error


def _folder(source: str | Path, download: dict[str, Any]) -> Path:
    """Return the folder of a model, fetched if it is a repository."""
    if Path(source).is_dir():
        if download:
            raise LabError(f"{', '.join(download)} is of a repository; {source} is a folder")
        return Path(source)
    if isinstance(source, Path):
        raise LabError(f"a model is a folder {WRITTEN}; got {source}")
    return _fetched(source, download)


def _read(folder: Path) -> About:
    """Read ``config.json``."""
    try:
        return About.model_validate_json((folder / ABOUT).read_bytes())
    except OSError as error:
        raise LabError(f"{folder} must hold {ABOUT}, {WRITTEN}; {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or ABOUT
        raise LabError(f"{folder / ABOUT} must be {WRITTEN}; {where}: {first['msg']}") from None


def _words(folder: Path, known: About) -> tuple[str, ...]:
    """Read ``vocabulary.json``."""
    try:
        data = (folder / VOCABULARY).read_bytes()
    except OSError as error:
        raise LabError(f"{folder} must hold {VOCABULARY}, {WRITTEN}; {error}") from None
    if _sha(data) != known.vocabulary:
        raise LabError(f"{folder / VOCABULARY} must have sha256 {known.vocabulary}")
    return tuple(json.loads(data))
