"""Where corpora are kept, and how they get there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import platformdirs

from noisin.lab import LabError

SPLITS = ("train", "valid", "test")


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


def download(
    url: str, path: Path, sha256: str | None, say: Callable[[str], None], otherwise: str
) -> None:
    """Download a file, compare its hash, and put it in its place.

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
        pooch.retrieve(url, known, fname=path.name, path=path.parent)
    except Exception as error:  # pooch raises whatever its transport does
        reason = str(error).splitlines()[0] if isinstance(error, ValueError) else ""
        raise LabError(
            f"{url} could not be downloaded ({type(error).__name__}). {reason} {otherwise}, or "
            f"name the folder that holds {path.parent.name}/ by --data-dir or NOISIN_DATA"
        ) from error
