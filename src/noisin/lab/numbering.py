"""Text turned once into files of token numbers, on all cores, in memory that does not grow with it.

A line is its words, split at white space of any kind, and ``<eos>``. A text is cut at ends of lines
into pieces. One pass over the pieces counts their words, which gives the vocabulary and the place
of each piece's tokens; a second one writes them there. The result does not depend on the cut.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noisin.lab import LabError
from noisin.lab.files import cores, make_folder, sha_of, write_aside
from noisin.lab.store import SPLITS

EOS, UNKNOWN = "<eos>", "<unk>"
BLOCK = 2**20  # bytes of a line that are read at once
PIECE = 2**24  # bytes of text that a worker takes; a text of fewer is done without workers
IDLE = 10.0  # seconds before a worker without work ends
TYPE = np.dtype("<u4")


@dataclass(frozen=True)
class Source:
    """Lines of a text file: those that begin at bytes ``start`` to ``stop``, ``stop`` excluded."""

    path: Path
    start: int
    stop: int

    def words(self) -> Iterator[tuple[list[str], bool]]:
        """Yield the words of each line, and whether the line ends there; long lines in parts."""
        for place, part, ends in self._parts():
            try:
                words = part.decode("utf-8").split()
            except UnicodeDecodeError as error:
                raise LabError(
                    f"{self.path}, line {_line_at(self.path, place)}: text must be UTF-8; {error}"
                ) from None
            yield [*words, EOS] if ends else words, ends

    def _parts(self) -> Iterator[tuple[int, bytes, bool]]:
        """Yield lines by place, in parts that end at a space where they are longer than a block."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            place, kept, ends = self.start, b"", True
            if self.start == 0 and file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            place = file.tell()
            while (not ends or place < self.stop) and (part := file.readline(BLOCK)):
                begun, place = place, place + len(part)
                ends = part.endswith(b"\n") or len(part) < BLOCK
                part, kept = kept + part, b""
                if not ends:
                    cut = max(part.rfind(b" "), part.rfind(b"\t"))
                    part, kept = part[: cut + 1], part[cut + 1 :]
                yield begun, part, ends
            if not ends:  # the text ended at the end of a block
                yield place, kept, True

    def pieces(self) -> list[Source]:
        """Cut at the first end of a line behind each so many bytes."""
        starts = [self.start]
        with self.path.open("rb") as file:
            while starts[-1] + PIECE < self.stop:
                file.seek(starts[-1] + PIECE)
                while (part := file.readline(BLOCK)) and not part.endswith(b"\n"):
                    pass
                starts.append(min(file.tell(), self.stop))
        ends = [*starts[1:], self.stop]
        return [
            Source(self.path, *cut) for cut in zip(starts, ends, strict=True) if cut[0] < cut[1]
        ]


def whole(path: Path) -> Source:
    """Return all lines of a file."""
    return Source(path, 0, path.stat().st_size)


def split_lines(path: Path) -> list[Source]:
    """Split a file into its first eight tenths of lines, and a tenth each for valid and test.

    Blank lines at its end are left out: they alone might be what is tested.

    Raises:
        LabError: fewer lines than splits.
    """
    lines = ends = 0
    for block in _blocks(path):
        if text := block.rstrip():
            lines = ends + text.count(b"\n") + 1
        ends += block.count(b"\n")
    if lines < 3:
        raise LabError(f"{path}: at least 3 lines are needed, one for each split; got {lines}")
    held = max(1, lines // 10)
    valid, test, stop = (_start_of(path, lines - n * held) for n in (2, 1, 0))
    return [Source(path, 0, valid), Source(path, valid, test), Source(path, test, stop)]


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _start_of(path: Path, line: int) -> int:
    """Return where a line begins, counted from 0; the end of the file behind its last line."""
    place = 0
    for block in _blocks(path):
        count = block.count(b"\n")
        if count >= line:
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            return place + int(ends[line - 1]) + 1
        line, place = line - count, place + len(block)
    return place


def _line_at(path: Path, place: int) -> int:
    """Return the number of the line at a place, counted from 1."""
    with path.open("rb") as file:
        ends = 0
        while place and (block := file.read(min(BLOCK, place))):
            ends, place = ends + block.count(b"\n"), place - len(block)
    return ends + 1


class _Count(NamedTuple):
    """The words of a piece, its tokens and its lines."""

    words: Counter[str]
    tokens: int
    lines: int


def number(sources: Sequence[Source], folder: Path, min_count: int) -> None:
    """Write the token files of a corpus; its description comes last and makes it whole.

    Args:
        sources: of each split.
        folder: where they go.
        min_count: how often a word must come in training to be in the vocabulary.

    Raises:
        LabError: a split without a line, or text that is not UTF-8.
    """
    make_folder(folder)
    pieces = [source.pieces() for source in sources]
    counts = Counter[str]()
    sizes = [_sizes(cut, None if split else counts) for split, cut in enumerate(pieces)]
    if len(counts) < 2:
        raise LabError(f"{sources[0].path}: a corpus must have words; got {sum(counts.values())}")
    kept = [w for w, n in counts.most_common() if n >= min_count or w in (EOS, UNKNOWN)]
    if UNKNOWN not in counts:
        kept.append(UNKNOWN)
    counts.clear()
    vocabulary = folder / "vocabulary.json"
    with write_aside(vocabulary) as file:
        file.write(json.dumps(kept).encode())
    about: dict[str, object] = {"vocabulary": kept}
    for split, source, cut, size in zip(SPLITS, sources, pieces, sizes, strict=True):
        if not size.tokens:
            raise LabError(f"{source.path}: every split must have a line; this one is empty")
        path = folder / f"{split}.tokens"
        with write_aside(path) as file:
            file.truncate(size.tokens * TYPE.itemsize)
            aside = Path(file.name)
            placed = zip(cut, size.places, strict=True)
            for _ in _each(_write, [(one, vocabulary, aside, place) for one, place in placed]):
                pass
        about[split] = {"tokens": size.tokens, "lines": size.lines, "sha256": sha_of(path)}
    vocabulary.unlink()
    _numbers.cache_clear()
    with write_aside(folder / "corpus.json") as file:
        file.write(json.dumps(about).encode())


class _Sizes(NamedTuple):
    """The tokens and lines of a split, and where the tokens of each piece begin."""

    tokens: int
    lines: int
    places: list[int]


def _sizes(cut: Sequence[Source], counts: Counter[str] | None) -> _Sizes:
    """Count the pieces of a split, and add their words to ``counts`` if they are wanted."""
    tokens, lines, places = 0, 0, []
    for found in _each(_count, [(piece, counts is not None) for piece in cut]):
        if counts is not None:
            counts.update(found.words)
        places.append(tokens)
        tokens, lines = tokens + found.tokens, lines + found.lines
    return _Sizes(tokens, lines, places)


def _each(function: Callable[..., Any], given: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function on each of some arguments, on all cores, and yield the results in turn."""
    if len(given) < 2 or cores() == 1:
        return (function(*one) for one in given)
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", n_jobs=min(cores(), len(given)), idle_worker_timeout=IDLE):
        workers = Parallel(return_as="generator", pre_dispatch="2*n_jobs")
    return _unless_killed(workers(delayed(function)(*one) for one in given))


def _unless_killed(results: Iterable[Any]) -> Iterator[Any]:
    """Yield results, and say in words that a worker was killed."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        yield from results
    except TerminatedWorkerError:
        raise LabError(
            "a process that numbers words was killed, perhaps for want of memory"
        ) from None


def _count(piece: Source, with_words: bool) -> _Count:
    words, tokens, lines = Counter[str](), 0, 0
    for found, ends in piece.words():
        if with_words:
            words.update(found)
        tokens, lines = tokens + len(found), lines + ends
    return _Count(words, tokens, lines)


def _write(piece: Source, vocabulary: Path, path: Path, place: int) -> None:
    """Write the numbers of a piece's tokens to their place in a file."""
    numbers = _numbers(vocabulary, vocabulary.stat().st_mtime_ns)
    unknown = numbers[UNKNOWN]
    with path.open("r+b") as file:
        file.seek(place * TYPE.itemsize)
        for words, _ in piece.words():
            file.write(np.array([numbers.get(word, unknown) for word in words], TYPE).tobytes())


@lru_cache(maxsize=1)
def _numbers(vocabulary: Path, _written: int) -> Mapping[str, int]:
    """Return the number of each word, read once by each worker."""
    words = json.loads(vocabulary.read_text(encoding="utf-8"))
    return {word: number for number, word in enumerate(words)}
