"""Samples of trained runs, as files and for a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from noisin.lab import LabError, evaluate, pages, panels, sound
from noisin.lab.files import write_aside
from noisin.lab.forecasts import LEVELS, interval
from noisin.lab.music import MusicTask
from noisin.lab.report import Piece
from noisin.lab.rolls import Roll
from noisin.lab.series import Forecast
from noisin.lab.words import text_of

LENGTHS = {"music": 48, "words": 150, "series": 200}  # quarter notes, tokens, steps shown


def draw_sample(
    run: evaluate.Run,
    stem: Path,
    lengths: dict[str, int],
    seed: int,
    temperature: float = 1.0,
    prompt: str = "",
) -> Piece:
    """Draw a sample, write it as MIDI and WAV, as text and page, or as PNG and CSV, and return it.

    Args:
        run: the run.
        stem: its files, without ending.
        lengths: quarter notes, tokens, or steps in the figure of forecasts, by task.
        seed: of the draws.
        temperature: of music and words; below 1 what is likely comes more often.
        prompt: words to start from.

    Raises:
        LabError: a prompt of what is no text, or another temperature than 1 of series.
    """
    title = f"{run.record.label}, seed {run.record.seed}"
    if prompt and run.record.config.task != "words":
        raise LabError(f"--prompt is for words; this run is of {run.record.config.task}")
    if run.record.config.task == "series":
        if temperature != 1:
            raise LabError(f"--temperature is for music and words; got {temperature} for series")
        return _draw_forecasts(run, title, stem, lengths["series"], seed)
    if run.record.config.task == "words":
        words = prompt.split()
        tokens = evaluate.sample_text(run, lengths["words"], seed, temperature, words)
        text, page = (stem.with_name(stem.name + ending) for ending in (".txt", ".html"))
        with write_aside(text) as file:
            file.write(text_of(tokens).encode() + b"\n")
        pages.write("text.html.jinja", page, title=title, tokens=tokens)
        return Piece(title, tokens, files=(text, page))
    roll = evaluate.sample_roll(run, lengths["music"], seed, temperature)
    midi, heard = (stem.with_name(stem.name + ending) for ending in (".mid", ".wav"))
    sound.write_midi(roll, midi)
    with write_aside(heard) as file:
        file.write(sound.wav(roll))
    beside = {"sample": roll, "a real piece, of validation": _real(run, len(roll))}
    return Piece(title, drawing=panels.rolls(title, beside), roll=roll, files=(midi, heard))


def _real(run: evaluate.Run, steps: int) -> Roll:
    """Return the beginning of a validation piece, the first that is long enough, or the longest."""
    assert isinstance(run.task, MusicTask)
    pieces = run.task.corpus.splits["valid"]
    return max(pieces, key=lambda piece: min(len(piece), steps))[:steps]


def _draw_forecasts(run: evaluate.Run, title: str, stem: Path, steps: int, seed: int) -> Piece:
    """Forecast the test part, averaged over draws where there is noise.

    The CSV file has every step, the figure the first ones of a few series and targets.
    """
    config = run.record.config
    draws = 0 if config.noise == "none" else max(config.test_samples)
    found = list(evaluate.forecasts([run], "test", draws, seed))
    names = evaluate.target_names(run)
    table, figure = (stem.with_name(stem.name + ending) for ending in (".csv", ".png"))
    with write_aside(table) as file:
        for row in _rows(found, names):
            file.write(row.encode())
    how = f"average of {draws} draws" if draws else "noise off"
    title = f"{title}; {how}"
    drawing = panels.forecast(title, found[0], names, steps)
    drawing.save(figure)
    return Piece(title, drawing=drawing, files=(table, figure))


def _rows(found: Sequence[Forecast], names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a CSV file: what came, the mean of the forecast, and its intervals."""
    ends = [f"{end} {level:.0%}" for level in LEVELS for end in ("low", "high")]
    yield _line(["series", "row", "target", "truth", "mean", *ends])
    for one in found:
        mixture = one.mixture
        values = [one.truth, mixture.mean.mean(0)]
        values += [end for level in LEVELS for end in interval(mixture, level)]
        numbers = torch.stack(values, -1).tolist()
        for series, row, targets in zip(one.series, one.rows, numbers, strict=True):
            for name, own in zip(names, targets, strict=True):
                yield _line([series, row + 1, name, *(f"{value:.9g}" for value in own)])


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()
