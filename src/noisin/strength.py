"""Noise made stronger or weaker by one number."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from numbers import Real

from noisin.laws import Learned
from noisin.noise import Noise, Term, joined, terms_of
from noisin.zoneout import Zoneout


def scaled(noise: Term | None, strength: float) -> Term | None:
    """Return noise with its standard deviations times a number; learned ones are left.

    Args:
        noise: the terms.
        strength: what each standard deviation and each probability of ``Zoneout`` is multiplied
            by, a finite number >= 0; at 0 the terms are left out.

    Raises:
        ValueError: a strength out of range; 0 beside learned spreads, which are numbered among all
            terms; or one that makes a term impossible, as a ``Zoneout`` of probability 1.

    Examples:
        >>> from noisin import parse
        >>> scaled(parse("hidden * Gaussian(0.5) & input * Bernoulli(keep=0.5)"), 2.0)
        hidden * Gaussian(1.0) & input * Bernoulli(keep=0.2)
    """
    if not _is_strength(strength):
        raise ValueError(f"strength must be a finite number >= 0, got {strength!r}")
    if strength == 1:
        return noise
    terms = terms_of(noise)
    if strength == 0:
        learned = [term for term in terms if is_learned(term)]
        if learned and len(learned) < len(terms):
            raise ValueError(f"strength must be > 0 beside a learned spread, got 0 for {noise}")
        return joined(learned)
    return joined([_scaled(term, float(strength)) for term in terms])


def _is_strength(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    with suppress(OverflowError):  # an int beyond the largest float
        return 0 <= float(value) < math.inf
    return False


def is_learned(term: Term) -> bool:
    """Return whether the spread of a term is trained, which no strength changes."""
    return isinstance(term, Noise) and isinstance(term.law.std, Learned)


def _scaled(term: Term, strength: float) -> Term:
    try:
        if isinstance(term, Noise):
            return replace(term, law=term.law.scaled(strength))
        if isinstance(term, Zoneout):
            return Zoneout(hidden=term.hidden * strength, cell=term.cell * strength)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"strength {strength} of {term}: {error}") from None
    raise TypeError(f"strength scales Noise and Zoneout, got {type(term).__name__}")
