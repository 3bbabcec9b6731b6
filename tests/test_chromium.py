"""The report in a browser: both colour schemes, as wide as a desk and as a phone."""

import numpy as np
import pytest

from browser import look
from lab_cases import config, corpus, rolls
from noisin.lab import pages, panels, records, report, train
from noisin.lab.report import Piece
from noisin.lab.rows import Row
from noisin.lab.train import Job
from noisin.lab.words import Token

DESK, PHONE = 1200, 390
CONTRAST, LETTERS = 4.5, 6.5  # at least: as WCAG 2 asks of text; pixels of letters in figures
TOKENS = [Token("the"), Token("R&D"), Token("x" * 70, 0.5), Token("<eos>", 0.04)]
TOKENS += [Token(f"w{i}", i / 40) for i in range(41)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Four runs: two rows, two seeds."""
    folder, data = tmp_path_factory.mktemp("runs"), corpus()
    for name, noise in (("plain", "none"), ("a name of some length", "hidden * Gaussian(0.5)")):
        row = Row(config=config(noise=noise, epochs=2), label=name, baseline="plain")
        for seed in (1, 2):
            train.run(Job("tiny", "A title", name, row, seed, data.digest(), folder), data)
    return records.read([folder])


def contrast(text, shade, behind):
    """Return the contrast of a text on a shade of some opacity, by the formula of WCAG 2."""
    opacity = shade[3] if len(shade) == 4 else 1.0
    ground = opacity * np.array(shade[:3]) + (1 - opacity) * np.array(behind[:3])
    colors = np.array([text[:3], ground]) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


def faults(seen, width):
    """Return what comes from elsewhere, is too wide, cut, empty, or hard to read."""
    told = seen.told
    every = {
        "loaded": told["loaded"],
        "whole": [one for one in (told["width"], told["whole"]) if one != width],
        "wide": told["wide"],
        "cut": told["cut"],
        "outside": told["outside"],
        "figures": [size for size in told["figures"] if not min(size) > 0],
        "images": [size for size in told["images"] if not size > 0],
        "sounds": [one for one in told["seconds"] if not (one and one > 0)],
        "letters": [size for size in told["letters"] if size < LETTERS],
        "contrast": [one for one in told["tokens"] if contrast(*one[2:]) < CONTRAST],
        "complaints": seen.complaints,
    }
    return {name: wrong for name, wrong in every.items() if wrong}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE], ids=["desk", "phone"])
def test_report_is_whole_in_both_schemes_at_any_width(found, tmp_path, width, dark):
    roll, real = rolls([12, 20])
    drawing = panels.rolls("music", {"sample": roll, "a real piece": real})
    music = Piece("music & more", drawing=drawing, roll=roll)
    report.write(found, tmp_path / "r.html", pieces=[music, Piece("text", TOKENS)])
    seen = look((tmp_path / "r.html").read_text(encoding="utf-8"), tmp_path, width, dark)
    assert faults(seen, width) == {}
    assert (seen.pixels[5, 5] < 0.2).all() if dark else (seen.pixels[5, 5] > 0.9).all()
    lines = report.summary(report.by_row(found))
    assert len(lines) == 2
    for line in lines:
        estimates = (*line.scores.values(), *line.monte_carlo.values())
        assert all(str(estimate) in seen.told["text"] for estimate in estimates)
    assert len(seen.told["figures"]) == 2 + 1  # curves, radius, a roll
    assert [round(seconds) for seconds in seen.told["seconds"]] == [8]


def test_shades_grow_with_the_probability(tmp_path):
    pages.write("text.html.jinja", tmp_path / "t.html", title="text", tokens=TOKENS)
    seen = look((tmp_path / "t.html").read_text(encoding="utf-8"), tmp_path, PHONE)
    assert faults(seen, PHONE) == {}
    words, titles, _, shades, _ = zip(*seen.told["tokens"], strict=True)
    assert words == tuple("↵" if t.ends_line else t.word for t in TOKENS[2:])
    assert titles == tuple(f"{t.probability:.2g}" for t in TOKENS[2:])
    opacity = [shade[3] for shade in shades[2:]]
    assert opacity[0] == 0
    assert all(np.diff(opacity) > 0)


BROKEN = """<!doctype html>
<img src="https://example.org/a.png">
<p style="width: 600px">wide</p>
<p style="width: 50px; overflow: hidden; white-space: nowrap">cut cut cut cut cut</p>
<svg viewBox="0 0 9 9"><text y="9" font-size="1">beyond the edge</text></svg>
<svg width="0"></svg>
<audio src="data:audio/wav;base64,AAAA"></audio>
<p class="tokens" style="background: #666"><b class="token" title="1">a</b></p>
<script>console.error("wrong")</script>
"""


def test_what_is_broken_is_seen(tmp_path):
    found = faults(look(BROKEN, tmp_path, PHONE), PHONE)
    names = ["loaded", "whole", "wide", "cut", "outside", "figures", "images", "sounds", "contrast"]
    assert list(found) == [*names, "complaints"]
    small = '<svg width="90"><text y="9" font-size="3">small</text></svg>'
    assert list(faults(look(small, tmp_path, PHONE), PHONE)) == ["letters"]
