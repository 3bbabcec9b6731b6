"""A page in headless Chromium: what it measures there, and how it looks."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from matplotlib import image

from processes import HANGS

NAMES = ("chromium", "chromium-browser", "google-chrome")
NARROWEST = 500  # of Chromium's windows, in pixels; a frame within may be narrower
FRAME = (Path(__file__).parent / "frame.html").read_text(encoding="utf-8")


class Seen(NamedTuple):
    """What a browser makes of a page.

    Args:
        told: what the script in ``frame.html`` measured.
        pixels: of a screenshot, [rows, columns, 3], within [0, 1].
        complaints: what it wrote to the console.
    """

    told: dict[str, Any]
    pixels: Any
    complaints: list[str]


def look(page, folder, width, dark=False, height=3000):
    """Open a page in a frame of some width, without a network; skip where there is no browser."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    shown, picture = folder / "shown.html", folder / "shown.png"
    shown.write_text(FRAME.replace("PAGE", html.escape(page)).replace("WIDTH", str(width)))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    words += [f"--window-size={max(width, NARROWEST)},{height}", f"--screenshot={picture}"]
    words += ["--dump-dom", *(["--force-dark-mode"] if dark else [])]
    command = [program, *words, shown.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=True)
    told = re.search(r'<pre id="told" hidden="">(.+?)</pre>', done.stdout, re.S)
    assert told is not None, done.stderr
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(json.loads(html.unescape(told[1])), image.imread(picture)[..., :3], complaints)
