"""All corpora by name: where they are, fetched, counted again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from noisin.lab import LabError, dynamics, rolls, tokens

NAMES = (*rolls.NAMES, *tokens.BENCHMARKS, *dynamics.EXAMPLES)


def locate(name: str, data_dir: Path | None = None) -> Path | None:
    """Return where a corpus is, or None where it is not yet, or is computed at each use."""
    _check(name)
    if name in dynamics.EXAMPLES:  # it is computed
        return None
    return (tokens if name in tokens.BENCHMARKS else rolls).locate(name, data_dir)


def fetch(name: str, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """Bring a corpus into the user's cache, and return where it is; None where it is computed."""
    _check(name)
    present = locate(name)
    if present is not None or name in dynamics.EXAMPLES:
        return present
    if name in tokens.BENCHMARKS:
        return tokens.fetch(name, say)
    if name in rolls.BENCHMARKS:
        return rolls.fetch(name, say)
    rolls.load(name, say=say)
    return locate(name)


def verify(
    name: str, data_dir: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> str:
    """Load a corpus, count it again, and compare with what is published.

    Returns:
        The counts and the hash.

    Raises:
        LabError: the corpus is another one, or damaged.
    """
    if name in dynamics.EXAMPLES:
        values = dynamics.observed(name)
        sha = hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()
        return f"{len(values)} steps of {', '.join(dynamics.EXAMPLES[name].columns)}; sha256 {sha}"
    if name in tokens.BENCHMARKS:
        words, known = tokens.load(name, data_dir, say), tokens.BENCHMARKS[name]
        got = (len(words.vocabulary), *(len(words.splits[s]) for s in words.splits))
        _compare(name, (known.vocabulary, *known.tokens), got)
        more = f", {len(words.vocabulary)} word types, " + ", ".join(
            f"{words.unknown(split)} <unk> in {split}" for split in words.splits
        )
        return _told(words.sizes()) + more + f"; sha256 {words.digest()}"
    corpus = rolls.load(name, data_dir, say)
    if name in rolls.BENCHMARKS:
        known = rolls.BENCHMARKS[name]
        got = tuple(corpus.sizes()[split]["pieces"] for split in corpus.splits)
        steps = tuple(corpus.sizes()[split]["steps"] for split in corpus.splits)
        _compare(name, (*known.pieces, *known.steps), (*got, *steps))
    return f"{_told(corpus.sizes())}; sha256 {corpus.digest()}"


def _told(sizes: dict[str, dict[str, int]]) -> str:
    return ", ".join(
        " ".join([split, *(f"{count} {what}" for what, count in size.items())])
        for split, size in sizes.items()
    )


def _compare(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
    if got != expected:
        raise LabError(f"{name}: the counts must be {expected}, got {got}")


def _check(name: str) -> None:
    if name not in NAMES:
        raise LabError(f"a corpus is one of {', '.join(NAMES)}; got {name!r}")
