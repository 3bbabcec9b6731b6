"""Which pieces of a folder go into which split: those that share passages go together."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from noisin.lab import LabError
from noisin.lab.store import SPLITS

Roll = NDArray[np.uint8]  # [T, 88] of 0 and 1
PASSAGE, SHARED = 8, 0.1  # steps; share of passages that makes two pieces related
MOST = 1.25  # of the pieces that a split is to hold: it may have so many, for groups are not cut


def split_by_name(name: str, rolls: Mapping[str, Roll]) -> dict[str, list[Roll]]:
    """Split pieces 60 / 20 / 20 in the order of a hash of their names, the same everywhere.

    Pieces that share passages go into one split, so that none is tested on what it was trained on:
    the training split where they are too many for another one.

    Raises:
        LabError: fewer than three pieces that differ.
    """
    groups = related(rolls)
    if len(groups) < 3:
        raise LabError(
            f"{name}: at least 3 pieces that differ are needed, one for each of "
            f"{', '.join(SPLITS)}; got {len(groups)}"
        )
    groups.sort(key=lambda group: hashlib.sha256(min(group).encode()).hexdigest())
    held = max(1, round(0.2 * len(rolls)))
    large = any(len(group) > MOST * held for group in groups)
    chosen: dict[str, list[set[str]]] = {split: [] for split in SPLITS}
    for index, group in enumerate(groups):
        # the first three groups make sure that no split stays empty
        wanting = (("valid",), ("test",), ())[index] if index < 3 else ("valid", "test")
        sizes = {split: sum(map(len, chosen[split])) for split in wanting}
        fitting = [s for s in wanting if sizes[s] < held and sizes[s] + len(group) <= MOST * held]
        if large:  # the few that fit are shared out
            fitting.sort(key=sizes.__getitem__)
        chosen[(*fitting, "train")[0]].append(group)
    for split in ("valid", "test"):
        if not chosen[split]:  # no group was small enough
            smallest = min(chosen["train"], key=len)
            chosen["train"].remove(smallest)
            chosen[split].append(smallest)
    return {
        split: [rolls[piece] for group in own for piece in sorted(group)]
        for split, own in chosen.items()
    }


def related(rolls: Mapping[str, Roll]) -> list[set[str]]:
    """Return the pieces in groups that share passages, in whatever key.

    A passage is PASSAGE steps, held ones counted once where most are held. Two pieces are related
    if one of them has a share SHARED of its passages in common with the other.
    """
    passages = {name: _passages(roll) for name, roll in rolls.items()}
    holders: dict[bytes, list[str]] = {}
    for name, own in passages.items():
        for passage in own:
            holders.setdefault(passage, []).append(name)
    group = {name: {name} for name in rolls}

    def join(one: str, other: str, common: int) -> None:
        if common >= SHARED * min(len(passages[one]), len(passages[other])):
            fewer, more = sorted((group[one], group[other]), key=len)
            more |= fewer
            group.update(dict.fromkeys(fewer, more))

    for names in holders.values():  # of a family nearly all are joined here, without all its pairs
        for one, other in itertools.pairwise(names):
            if group[one] is not group[other]:
                join(one, other, len(passages[one] & passages[other]))
    across = {
        passage: names
        for passage, names in holders.items()
        if any(group[name] is not group[names[0]] for name in names)
    }
    for one, own in passages.items():
        found = Counter(itertools.chain.from_iterable(across.get(p, ()) for p in own))
        for other, common in found.items():
            if group[one] is not group[other]:
                join(one, other, common)
    return list({id(names): names for names in group.values()}.values())


def _passages(roll: Roll) -> set[bytes]:
    """Return the passages of a piece, the rests around it left out; if it has none, the piece."""
    sounding = np.flatnonzero(roll.any(axis=1))
    if not len(sounding):
        return {b""}
    roll = roll[sounding[0] : sounding[-1] + 1]
    new = np.flatnonzero(np.any(roll[1:] != roll[:-1], axis=1)) + 1  # not held from the one before
    found = set()
    for start in range(max(1, len(roll) - PASSAGE + 1)):
        part = roll[start : start + PASSAGE]
        first, last = np.searchsorted(new, (start + 1, start + len(part)))
        if 2 * (last - first) >= len(part) - 1:
            found.add(_in_any_key(part))
        elif len(new) - first >= PASSAGE - 1:
            found.add(_in_any_key(roll[[start, *new[first : first + PASSAGE - 1]]]))
    return found or {_in_any_key(roll[[0, *new]])}


def _in_any_key(part: Roll) -> bytes:
    """Return steps moved down to their lowest key, as bytes."""
    used = np.flatnonzero(part.any(axis=0))
    return part[:, used[0] : used[-1] + 1].tobytes() + bytes([len(part)])
