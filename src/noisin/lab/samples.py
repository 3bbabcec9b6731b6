"""Samples of trained runs, as files and for a report."""

from __future__ import annotations

from pathlib import Path

from noisin.lab import LabError, evaluate, sound
from noisin.lab.files import write_aside
from noisin.lab.report import Piece

LENGTHS = {"music": 48, "words": 150}  # quarter notes, tokens


def draw_sample(
    run: evaluate.Run,
    title: str,
    stem: Path,
    lengths: dict[str, int],
    seed: int,
    temperature: float = 1.0,
    prompt: str = "",
) -> Piece:
    """Draw a sample, write it as MIDI and WAV or as text, and return it."""
    if run.record.config.task == "words":
        words = prompt.split()
        text = evaluate.sample_text(run, lengths["words"], seed, temperature, words)
        with write_aside(stem.with_name(stem.name + ".txt")) as file:
            file.write(text.encode() + b"\n")
        return Piece(title, text=text)
    if prompt:
        raise LabError("--prompt is for words; this run is of music")
    roll = evaluate.sample_roll(run, lengths["music"], seed, temperature)
    sound.write_midi(roll, stem.with_name(stem.name + ".mid"))
    with write_aside(stem.with_name(stem.name + ".wav")) as file:
        file.write(sound.wav(roll))
    return Piece(title, roll)
