"""Piano rolls as MIDI files and as sound."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisin.lab.files import write_aside
from noisin.lab.rolls import LOWEST, Roll

RATE = 16000  # samples a second
STRENGTHS = np.array([1.0, 0.5, 0.28, 0.15, 0.09, 0.05])  # of the partials, as of a soft organ


def notes_of(roll: Roll) -> list[tuple[int, int, int]]:
    """Return (column, first step, last step + 1) of each key held down; a repeat is one note."""
    edges = np.diff(np.pad(roll.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    notes = []
    for key in range(roll.shape[1]):
        starts, ends = np.flatnonzero(edges[:, key] == 1), np.flatnonzero(edges[:, key] == -1)
        notes += [(key, int(s), int(e)) for s, e in zip(starts, ends, strict=True)]
    return notes


def write_midi(roll: Roll, path: Path, tempo: float = 90.0) -> None:
    """Write a roll as a MIDI file.

    Args:
        roll: [T, 88], a quarter note a step.
        path: file to write.
        tempo: quarter notes a minute.
    """
    from symusic import Note, Score, Tempo, Track

    score: Any = Score(480)  # its type stubs know the factory, not what it makes
    track: Any = Track(program=19, name="noisin")
    for key, start, end in notes_of(roll):
        track.notes.append(Note(480 * start, 480 * (end - start), key + LOWEST, 80))
    score.tracks.append(track)
    score.tempos.append(Tempo(0, tempo))
    with write_aside(path) as file:
        file.write(score.dumps_midi())


def render(roll: Roll, tempo: float = 90.0) -> NDArray[np.float64]:
    """Return the sound of a roll: sums of a few partials with a soft attack and release.

    Args:
        roll: [T, 88], a quarter note a step.
        tempo: quarter notes a minute.

    Returns:
        Samples at ``RATE`` a second, within ±0.9; silence stays silence.
    """
    step = round(RATE * 60 / tempo)
    release = RATE // 4
    sound = np.zeros(len(roll) * step + release)
    notes = notes_of(roll)
    longest: dict[int, int] = {}
    for key, start, end in notes:
        longest[key] = max(longest.get(key, 0), (end - start) * step + release)
    tones = {key: _tone(key, size) for key, size in longest.items()}
    for key, start, end in notes:
        tone = tones[key][: (end - start) * step + release].copy()
        tone[-release:] *= np.linspace(1, 0, release)
        sound[start * step : start * step + len(tone)] += tone
    peak = np.abs(sound).max()
    return sound * (0.9 / peak) if peak else sound


def _tone(key: int, size: int) -> NDArray[np.float64]:
    """Return the first samples of a key that is held."""
    seconds = np.arange(size) / RATE
    partials = 440 * 2 ** ((key + LOWEST - 69) / 12) * np.arange(1, len(STRENGTHS) + 1)
    audible = partials < RATE / 2
    tone = np.sin(2 * np.pi * np.outer(seconds, partials[audible])) @ STRENGTHS[audible]
    return np.minimum(1, seconds / 0.03) * np.exp(-0.35 * seconds) * tone


def wav(roll: Roll, tempo: float = 90.0) -> bytes:
    """Return a roll as a WAV file: mono, 16 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((render(roll, tempo) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
