"""Files that are whole or absent: written aside, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from noisin.lab import LabError

ASIDE = ".part"


@contextmanager
def write_aside(path: Path, before: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of ``path`` when the block ends.

    If the block raises, ``path`` is as it was and nothing is left beside it.

    Args:
        path: the file.
        before: where the file that was there goes; it is lost without it.

    Raises:
        LabError: the folder cannot be written.
    """
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{ASIDE}")
    try:
        file = aside.open("xb")
    except OSError as error:
        raise LabError(f"{path.parent} must be a folder that can be written; {error}") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None and path.exists():
            _link(path, before)
        os.replace(aside, path)
        _flush_folder(path.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise LabError(f"{path} could not be written; {error}") from None
        raise


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Make a folder to be filled, which takes the place of ``path`` when the block ends.

    If the block raises, ``path`` is as it was and nothing is left beside it.

    Args:
        path: the folder, empty or not there yet.

    Raises:
        LabError: it is not empty, or cannot be written.
    """
    path = path.resolve()
    check_empty(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{ASIDE}")
    make_folder(aside)
    try:
        yield aside
        if path.exists():
            path.rmdir()
        os.replace(aside, path)
        _flush_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise LabError(f"{path} could not be written; {error}") from None
        raise


def check_empty(path: Path) -> None:
    """Refuse a path at which something is.

    Raises:
        LabError: a file, a folder that is not empty, or the working folder.
    """
    if path.resolve() == Path.cwd():
        raise LabError(f"the folder must be another than the working one, got {path}")
    if path.exists() and not path.is_dir():
        raise LabError(f"{path} must be a folder, got a file")
    if path.is_dir() and (inside := sum(1 for _ in path.iterdir())):
        raise LabError(f"{path} must be empty or not there yet; got a folder of {inside} entries")


def _link(path: Path, before: Path) -> None:
    """Give a file a second name, so that the first one never goes missing, where links exist."""
    link = before.with_name(f".{before.name}.{uuid.uuid4().hex}{ASIDE}")
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, before)
    else:
        os.replace(link, before)


def _flush_folder(path: Path) -> None:
    """Make the names in a folder last through a loss of power, where the system knows how."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def clear_aside(folder: Path) -> None:
    """Remove what processes that were killed had half written; nobody may be writing there."""
    for path in folder.glob(f".*{ASIDE}"):
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        LabError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{path} must be a folder that can be written; {error}") from None


def sha_of(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        LabError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LabError(f"{path} must be a file that can be read; {error}") from None


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def lines_of(file: Path) -> list[str]:
    """Return the lines of a file, which end at a line feed and at nothing else."""
    with file.open(encoding="utf-8", newline="\n") as text:
        return [line.removesuffix("\n") for line in text]
