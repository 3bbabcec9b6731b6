"""Where corpora are kept, and how they get there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import platformdirs
from filelock import FileLock

from noisin.lab import LabError
from noisin.lab.files import make_folder

SPLITS = ("train", "valid", "test")
BEGUN = ".begun"  # ending of a file that is not yet downloaded to its end
BLOCK = 2**13  # bytes; what is lost of a part when the connection breaks is less
TIMEOUT = 30.0  # seconds that a server may be silent
WHOLE, BEYOND = 200, 416  # status codes of HTTP


def cache_dir() -> Path:
    """Return the user's cache folder, or the one that NOISIN_CACHE names."""
    return Path(os.environ.get("NOISIN_CACHE") or platformdirs.user_cache_dir("noisin"))


def find(files: Iterable[str], data_dir: Path | None = None) -> Path | None:
    """Return the first of some files in ``data_dir``, in $NOISIN_DATA, or in the user's cache.

    Raises:
        LabError: ``data_dir`` is no folder.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise LabError(f"--data-dir must be a folder, got {data_dir}")
    named = os.environ.get("NOISIN_DATA")
    places = [data_dir, Path(named) if named else None, cache_dir()]
    candidates = [place / file for place in places if place is not None for file in files]
    return next((path for path in candidates if path.is_file()), None)


def unknown(names: Iterable[str], others: str, got: str) -> LabError:
    """Return the refusal of data that a task cannot read.

    Args:
        names: corpora of the task.
        others: what else it reads, in words.
        got: what was named.
    """
    path = Path(got)
    kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "nothing of that name"
    return LabError(
        f"data must be one of {', '.join(names)}, {others}; got {got!r}, {kind}. task=music reads "
        "MIDI files, task=words text, task=series CSV and Parquet"
    )


def locked(name: str) -> FileLock:
    """Return what one process at a time may hold, of those that share the user's cache."""
    make_folder(cache_dir() / "locks")
    return FileLock(cache_dir() / "locks" / f"{name}.lock")


def _resume(url: str, part: Path, path: Path) -> None:
    """Download what is missing behind what an earlier call has left, and put it in its place."""
    import requests

    begun = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # places are counted in the file itself
    headers |= {"Range": f"bytes={begun}-"} if begun else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if begun and answer.status_code in (WHOLE, BEYOND):  # no parts, or those of another file
            part.unlink()
            if answer.status_code == BEYOND:
                _resume(url, part, path)
                return
        answer.raise_for_status()
        with part.open("ab") as file:
            for block in answer.iter_content(BLOCK):
                file.write(block)
    os.replace(part, path)


def download(
    url: str, path: Path, sha256: str | None, say: Callable[[str], None], otherwise: str
) -> None:
    """Download a file, compare its hash, and put it in its place.

    What a broken connection leaves is kept, and the next call goes on from there.

    Args:
        url: where it is.
        path: where it goes; what is there with the right hash is kept.
        sha256: hash of the file, None if it is checked later.
        say: told what takes time.
        otherwise: what the user can do by hand.

    Raises:
        LabError: no network, or another file than the known one.
    """
    import pooch

    say(f"downloading {url}")
    pooch.get_logger().setLevel(logging.WARNING)
    known = sha256 and f"sha256:{sha256}"
    try:
        part = path.with_name(f"{path.name}{BEGUN}")

        def go_on(url: str, output_file: str, *_: object) -> None:
            _resume(url, part, Path(output_file))

        with locked(path.name):
            pooch.retrieve(url, known, path.name, path.parent, downloader=go_on)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # pooch raises whatever its transport does
        reason = f" {str(error).splitlines()[0]}" if isinstance(error, ValueError) else ""
        raise LabError(
            f"{url} could not be downloaded ({type(error).__name__}).{reason} {otherwise}"
        ) from error
