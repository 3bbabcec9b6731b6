"""Noise as data: the draws that are handed to a layer.

Draws are a plain dict from each place (see ``noisin.stack``) to one entry a term, whatever is
random about it:

======================================  =================================================
term                                    entry
======================================  =================================================
at h, x, g, n (any hold)                the final factor 1 + ε or offset ε, [T, B, F], or
                                        [1, B, F] if held; ``untied``: G·F instead of F
in the weights ``@ sequence``           the same, [1, R, C]
in the weights, fresh or ``cumulative`` a seed a step, int64 [T] on the CPU
``@ preactivation``                     standard normal numbers, [T, B, G·H] or [1, B, G·H],
                                        side by side for two directions that share a site
``@ moments``                           V[ε], [] or the shape of a learned spread
``Zoneout``                             masks m, 1 where the old value stays, [T, B, F]
======================================  =================================================

Where an entry is not final and the spread is learned, it is a ``Scaled``: the entry and the spread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from noisin.laws import Learned
from noisin.noise import Noise, Term
from noisin.product import Acting, Fresh, Perturbation, Preactivation, Propagated
from noisin.shapes import Float
from noisin.stack import Places, Stack, is_weight, places
from noisin.variates import source, wide
from noisin.zoneout import Zoneout


class Scaled(NamedTuple):
    """What is drawn for a term with a learned spread, where the spread cannot be multiplied in yet.

    Args:
        source: seeds or standard normal numbers.
        std: value of the spread; gradients reach it through here.
    """

    source: Tensor
    std: Tensor


def outside_checkpoints(generator: torch.Generator | None) -> torch.Generator | None:
    """Return the generator, or refuse it in a region under ``torch.utils.checkpoint``.

    Such a region runs again in the backward pass. torch sets its own generators back for that,
    and no others: noise from another one would differ, and with it the gradients.

    Raises:
        RuntimeError: a generator is given inside a checkpointed region.
    """
    if generator is not None and in_checkpoint():
        raise RuntimeError(
            "inside a checkpointed region noise is drawn from torch's default generator, or "
            "drawn before and handed in as draws; got generator="
        )
    return generator


def in_checkpoint() -> bool:
    """Return whether this runs in a region under ``torch.utils.checkpoint``."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False


torch.serialization.add_safe_globals([Scaled])  # draws on file are read by torch.load
Draws = Mapping[str, tuple["Tensor | Scaled", ...]]
Source = torch.Generator | None


class Like(NamedTuple):
    """The kind of tensor to draw."""

    dtype: torch.dtype | None = None
    device: torch.device | str | None = None


def draw(
    stack: Stack,
    noise: Term | None,
    time: int,
    batch: int,
    *,
    spread: Callable[[str, int, Noise], Tensor] | None = None,
    generator: Source = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, tuple[Tensor | Scaled, ...]]:
    """Draw all noise for one call.

    ε_t belongs to real time: the draws stand in padded layout and in the batch's original order,
    whatever the lengths and the direction.

    Args:
        stack: shape of the layers.
        noise: the terms.
        time: T, the longest sequence.
        batch: B.
        spread: for learned spreads, std of (place, index of the term there, the term).
        generator: source of randomness; torch's default generator without it.
        dtype: floating type of the draws.
        device: where to draw.

    Returns:
        For each place one entry a term, as the table of this module says.

    Raises:
        ValueError: a term cannot act in this stack, or a learned spread is missing.
    """
    like = Like(dtype, device)
    drawn: dict[str, tuple[Tensor | Scaled, ...]] = {}
    for place, terms in places(stack, noise).items():
        entries = []
        for index, term in enumerate(terms):
            size = entry_size(stack, place, term, time, batch)
            if isinstance(term, Zoneout):
                kind = dtype or torch.get_default_dtype()
                u = torch.rand(size, **source(generator), dtype=wide(kind), device=device)
                entries.append((u < _keeping(place, term)).to(kind))
                continue
            assert isinstance(term, Noise)
            learned = isinstance(term.law.std, Learned)
            std = spread(place, index, term) if spread is not None and learned else None
            entries.append(draw_term(term, size, 0, std, generator, like))
        drawn[place] = tuple(entries)
    return drawn


def draw_term(
    term: Noise,
    size: Sequence[int],
    time_dim: int,
    std: Tensor | None,
    generator: Source,
    like: Like,
) -> Tensor | Scaled:
    """Draw the entry of one term; ``cumulative`` adds up along ``time_dim``.

    Args:
        term: the term.
        size: shape of the entry.
        time_dim: the dimension of time in it.
        std: the value of a learned spread.
        generator: source of randomness; None for torch's default one.
        like: what to draw.
    """
    if isinstance(term.law.std, Learned) and std is None:
        raise ValueError(f"{term}: a learned spread is drawn with its value, std=")
    if term.estimate == "moments":
        if std is not None:
            return std.square().to(like.dtype or std.dtype)
        return torch.tensor(term.law.variance, dtype=like.dtype, device=like.device)
    if term.estimate == "preactivation":
        entry = torch.randn(tuple(size), **source(generator), dtype=like.dtype, device=like.device)
        return entry if std is None else Scaled(entry, std)
    if is_seeded(term):
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(2**63 - 1, tuple(size), **source(generator), device=device).cpu()
        return seeds if std is None else Scaled(seeds, std)
    sample = term.law.factor if term.operator == "*" else term.law.sample
    value = sample(size, std=std, generator=generator, dtype=like.dtype, device=like.device)
    if term.hold != "cumulative":
        return value
    return value.cumprod(time_dim) if term.operator == "*" else value.cumsum(time_dim)


def expected(
    stack: Stack,
    noise: Term | None,
    batch: int,
    like: Like,
    spread: Callable[[str, int, Noise], Tensor] | None = None,
) -> dict[str, tuple[Tensor | Scaled, ...]]:
    """Return what stands for noise in evaluation: of zoneout's masks their expectations.

    Args:
        stack: shape of the layers.
        noise: ``Zoneout``, and terms that draw nothing, ``@ moments``.
        batch: B.
        like: what to make.
        spread: for learned spreads, std of (place, index of the term there, the term).
    """
    filled = {}
    for place, terms in places(stack, noise).items():
        entries = []
        for index, term in enumerate(terms):
            if isinstance(term, Zoneout):
                size = (1, batch, stack.features(place))
                kind = {"dtype": like.dtype, "device": like.device}
                entries.append(torch.full(size, _keeping(place, term), **kind))
                continue
            assert isinstance(term, Noise)
            learned = spread is not None and isinstance(term.law.std, Learned)
            std = spread(place, index, term) if learned and spread is not None else None
            entries.append(draw_term(term, (), 0, std, None, like))
        filled[place] = tuple(entries)
    return filled


def is_seeded(term: Noise) -> bool:
    """Return whether seeds stand for the draws: a weight matrix a step is not held."""
    weight = is_weight(term.site.name)
    return weight and term.estimate == "sample" and term.hold != "sequence"


def is_final(term: Noise) -> bool:
    """Return whether the entry is all that is read of a term's law."""
    return term.estimate == "moments" or (term.estimate == "sample" and not is_seeded(term))


def _keeping(place: str, term: Zoneout) -> float:
    return term.cell if place.startswith("zoneout_cell") else term.hidden


def entry_size(stack: Stack, place: str, term: Term, time: int, batch: int) -> tuple[int, ...]:
    """Return the shape of a term's entry."""
    if isinstance(term, Zoneout):
        return (time, batch, stack.features(place))
    assert isinstance(term, Noise)
    if term.estimate == "moments":
        return stack.spread(place, term) if isinstance(term.law.std, Learned) else ()
    if is_seeded(term):
        return (time,)
    if is_weight(place) and term.estimate == "sample":
        return (1, *stack.matrix(place))
    return (1 if term.hold == "sequence" else time, batch, stack.drawn(place, term))


def acting(
    places: Places, draws: Draws, stack: Stack, x: Float[Tensor, "T B I"]
) -> dict[str, list[Acting]]:
    """Make of each draw what the product and the recurrence apply.

    Raises:
        ValueError: the draws are not those of these places, or a shape, dtype or device does not
            fit the input.
    """
    if not isinstance(draws, Mapping) or set(draws) != set(places):
        raise ValueError(
            f"draws must be a dict with exactly the places {sorted(places)}, got "
            f"{sorted(draws) if isinstance(draws, Mapping) else type(draws).__name__}"
        )
    time, batch, _ = x.shape
    paired: dict[str, list[Acting]] = {}
    for place, terms in places.items():
        if not isinstance(draws[place], (tuple, list)) or len(draws[place]) != len(terms):
            raise ValueError(
                f"draws[{place!r}] must be a tuple of one entry for each of the {len(terms)} terms "
                f"there, got {_counted(draws[place])}"
            )
        paired[place] = []
        for term, entry in zip(terms, draws[place], strict=True):
            size = entry_size(stack, place, term, time, batch)
            if isinstance(term, Zoneout):
                alike = (1, *size[1:])  # expectations
                size = alike if isinstance(entry, Tensor) and entry.shape == alike else size
                checked(place, term, entry, size, x)
                paired[place].append(Perturbation("*", entry))  # pyright: ignore[reportArgumentType]
                continue
            assert isinstance(term, Noise)
            gates = stack.gates if term.gates == "untied" else 1
            paired[place].append(act(place, term, entry, size, x, gates))
    return paired


def _counted(entries: object) -> str:
    sized = isinstance(entries, tuple | list)
    return str(len(entries)) if sized else type(entries).__name__


def act(
    place: str, term: Noise, entry: object, size: Sequence[int], like: Tensor, gates: int = 1
) -> Acting:
    """Make of a checked entry what is applied; arguments as in ``checked``."""
    drawn, std = checked(place, term, entry, size, like)
    if term.estimate == "moments":
        return Propagated(term.operator, drawn)
    if term.estimate == "preactivation":
        variance = term.law.variance if std is None else std.square().to(drawn.dtype)
        return Preactivation(term.operator, variance, drawn)
    if drawn.dtype == torch.int64:
        return Fresh(term.operator, term.law, drawn, std, term.hold == "cumulative")
    return Perturbation(term.operator, drawn, gates)


def checked(
    place: str, term: Term, entry: object, size: Sequence[int], like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return what was drawn and the spread it lacks, or refuse what does not fit.

    Args:
        place: where, for the message.
        term: the term.
        entry: its entry in the draws.
        size: shape that it must have.
        like: a tensor of the dtype and device that it must have.

    Raises:
        ValueError: the entry is no tensor, or not of this size, dtype or device.
    """
    drawn, std = entry if isinstance(entry, Scaled) else (entry, None)
    if not isinstance(drawn, Tensor):
        raise ValueError(f"draws[{place!r}] must hold tensors, got {type(drawn).__name__}")
    noise = term if isinstance(term, Noise) else None
    seeds = noise is not None and is_seeded(noise)
    dtype, device = (torch.int64, torch.device("cpu")) if seeds else (like.dtype, like.device)
    if drawn.shape != tuple(size) or drawn.dtype != dtype or drawn.device != device:
        raise ValueError(
            f"draws[{place!r}] of {term} must be {list(size)} in {dtype} on {device}, "
            f"got {list(drawn.shape)} in {drawn.dtype} on {drawn.device}"
        )
    unscaled = noise is not None and (seeds or noise.estimate == "preactivation")
    learned = noise is not None and unscaled and isinstance(noise.law.std, Learned)
    if learned != (std is not None):
        rule = "with its learned spread, a noisin.draws.Scaled" if learned else "a tensor"
        raise ValueError(f"draws[{place!r}] of {term} must be {rule}; got {type(entry).__name__}")
    return drawn, std
