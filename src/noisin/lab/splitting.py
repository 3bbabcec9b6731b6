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

    A passage is PASSAGE steps of which most differ from the one before. Two pieces are related
    if one of them has a share SHARED of its passages in common with the other.
    """
    passages = {name: _passages(roll) for name, roll in rolls.items()}
    holders: dict[bytes, list[str]] = {}
    for name, own in passages.items():
        for passage in own:
            holders.setdefault(passage, []).append(name)
    common: Counter[tuple[str, str]] = Counter()
    for names in holders.values():
        common.update(itertools.combinations(sorted(names), 2))
    group = {name: {name} for name in rolls}
    for (one, other), count in common.items():
        shorter = min(len(passages[one]), len(passages[other]))
        if count >= SHARED * shorter and group[one] is not group[other]:
            group[one] |= group[other]
            for name in group[other]:
                group[name] = group[one]
    return list({id(names): names for names in group.values()}.values())


def _passages(roll: Roll) -> set[bytes]:
    """Return the passages of a piece, each moved down to its lowest key."""
    found = set()
    for start in range(max(1, len(roll) - PASSAGE + 1)):
        part = roll[start : start + PASSAGE]
        used = np.flatnonzero(part.any(axis=0))
        changes = np.any(part[1:] != part[:-1], axis=1).sum()
        if len(used) and 2 * changes >= len(part) - 1:
            found.add(part[:, used[0] : used[-1] + 1].tobytes() + bytes([len(part)]))
    return found or {roll.tobytes()}
