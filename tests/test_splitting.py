"""Splits of a folder: related pieces stand together, and no split is empty."""

import itertools

import numpy as np
import pytest

from lab_cases import rolls as random_rolls
from noisin.lab import splitting


def test_related_pieces_stay_together():
    """A copy, a transposed copy and an excerpt never end in another split than their origin."""
    own = {f"piece {i}": roll for i, roll in enumerate(random_rolls([40] * 30, 1, rate=0.1))}
    for i in range(12):
        keys = own[f"piece {i}"]
        keys[:, 80:] = 0  # so that none falls off a third higher
        own |= {f"copy {i}": keys.copy(), f"excerpt {i}": keys[7:25]}
        own[f"higher {i}"] = np.roll(keys, 4, 1)
    groups = splitting.related(own)
    assert sorted(len(group) for group in groups) == [1] * 18 + [4] * 12
    splits = splitting.split_by_name("x", own)
    where = {}
    for split, pieces in splits.items():
        for piece in pieces:
            where[piece.tobytes()] = split
    for i in range(12):
        names = [f"{kind} {i}" for kind in ("piece", "copy", "higher", "excerpt")]
        assert len({where[own[name].tobytes()] for name in names}) == 1
    assert sorted(len(pieces) for pieces in splits.values())[0] >= 12


@pytest.mark.parametrize("hold", [1, 2, 3, 4, 16])
def test_held_pieces_stay_together(hold):
    """As do those of long notes, and those with rests around them."""
    own = {}
    for i, keys in enumerate(random_rolls([20] * 10, 1, rate=0.1)):
        keys[:, 80:] = 0
        keys = keys.repeat(hold, axis=0)
        own |= {f"{i} piece": keys, f"{i} higher": np.roll(keys, 4, 1)}
        own[f"{i} excerpt"] = keys[hold + hold // 2 : 13 * hold]  # from within a note
        own[f"{i} rests"] = np.pad(keys, ((3, 2), (0, 0)))
    groups = splitting.related(own)
    assert sorted(sorted(group) for group in groups) == [
        [f"{i} {kind}" for kind in ("excerpt", "higher", "piece", "rests")] for i in range(10)
    ]


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_short_pieces_stay_together(steps):
    own = {}
    for i, keys in enumerate(random_rolls([steps] * 5, 1, rate=0.2)):
        keys[:, 80:] = 0
        own |= {f"{i} piece": keys, f"{i} higher": np.roll(keys, 4, 1)}
        own[f"{i} rests"] = np.pad(keys, ((3, 2), (0, 0)))
    assert sorted(map(len, splitting.related(own))) == [3] * 5


def test_silent_pieces_are_related_to_each_other_alone():
    own = {name: np.zeros((9, 88), np.uint8) for name in "ab"}
    own["c"] = random_rolls([20])[0]
    assert sorted(map(sorted, splitting.related(own))) == [["a", "b"], ["c"]]


def medley(seed):
    """Return pieces put together of stretches of a few, some of which share a tenth or so."""
    rng = np.random.default_rng(seed)
    sources = random_rolls([200] * 6, seed, rate=0.05)
    own = {}
    for i in range(60):
        parts = []
        for _ in range(int(rng.integers(1, 4))):
            start, size = rng.integers(0, 190), rng.integers(4, 60)
            parts.append(sources[rng.integers(6)][start : start + size])
        filling = random_rolls([int(rng.integers(1, 80))], 1000 * seed + i, rate=0.05)
        own[f"piece {i}"] = np.concatenate([*parts, *filling]).repeat(rng.integers(1, 4), axis=0)
    return own


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_all_pairs(seed):
    own = medley(seed)
    passages = {name: splitting._passages(roll) for name, roll in own.items()}
    expected = {name: {name} for name in own}
    for one, other in itertools.combinations(own, 2):
        common = len(passages[one] & passages[other])
        if common >= splitting.SHARED * min(len(passages[one]), len(passages[other])):
            expected[one] |= expected[other]
            expected |= dict.fromkeys(expected[one], expected[one])
    groups = splitting.related(own)
    assert sorted(map(sorted, groups)) == sorted(
        map(list, {tuple(sorted(group)) for group in expected.values()})
    )
    assert 3 < len(groups) < 55


class Counting(str):
    """A name that counts how often it is looked up."""

    hashed = 0

    def __hash__(self):
        Counting.hashed += 1
        return super().__hash__()


def test_related_pieces_are_not_taken_pair_by_pair():
    """Twice as many cost about twice as much, not four times."""
    theme = random_rolls([60], rate=0.1)[0]
    theme[:, 80:] = 0
    costs = []
    for pieces in (100, 200):
        own = {Counting(i): np.roll(theme[i % 30 :], i % 5, 1) for i in range(pieces)}
        Counting.hashed = 0
        assert len(splitting.related(own)) == 1
        costs.append(Counting.hashed)
    assert costs[1] < 2.5 * costs[0], costs


def test_most_pieces_are_trained_on_however_many_are_related():
    for names in range(20):
        theme = random_rolls([40], names, rate=0.1)[0]
        own = {f"{names} copy {i}": theme for i in range(14)}
        pieces = random_rolls([40] * 6, 100 + names, rate=0.1)
        own |= {f"{names} piece {i}": piece for i, piece in enumerate(pieces)}
        sizes = {split: len(found) for split, found in splitting.split_by_name("x", own).items()}
        assert sizes["train"] >= 12, sizes
        assert abs(sizes["valid"] - sizes["test"]) <= 1


def test_no_split_stays_empty():
    for pieces in range(3, 12):
        own = {f"piece {i}": roll for i, roll in enumerate(random_rolls([20] * pieces, pieces))}
        sizes = [len(split) for split in splitting.split_by_name("x", own).values()]
        assert min(sizes) >= 1
        assert sum(sizes) == pieces
