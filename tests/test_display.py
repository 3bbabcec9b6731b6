"""What is told of running runs, in lines."""

import io
import math

import pytest
from rich.console import Console

from noisin.lab import jobs
from noisin.lab.trainer import Progress

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress("a", 0, 9, 3.0, NAN, INF), "a: epoch 0 of at most 9, no epoch scored yet"),
        (
            Progress("a", 0, 9, 3.0, NAN, INF, 0.25, 7000.0),
            "a: epoch 0.25 of at most 9, no epoch scored yet, at most 1.9 h left",
        ),
        (
            Progress("a", 2, 9, 3.0, 4.0, 3.5, 0.5, 61.0),
            "a: epoch 2.5 of at most 9, valid 4.000, at most 2 min left",
        ),
        (
            Progress("a", 8, 9, 3.0, 4.0, 3.5, 0.5, 59.5),
            "a: epoch 8.5 of at most 9, valid 4.000, at most 60 s left",
        ),
        (
            Progress("a", 9, 9, 3.0, 4.0, 3.5, 0.0, 0.0),
            "a: epoch 9 of at most 9, valid 4.000, scoring",
        ),
    ],
)
def test_lines_of_a_running_run(progress, line, monkeypatch):
    """How far, the last validation score, the time left; no number before there is one."""
    monkeypatch.setattr(jobs, "SAY_EVERY", 0.0)
    out = io.StringIO()
    display = jobs.Display(1, Console(file=out, width=200))
    display.said -= 1.0
    display.show(iter([progress]))
    assert out.getvalue() == line + "\n"
