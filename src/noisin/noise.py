"""The algebra of noise: a site, an operator, a law, and how the law is drawn.

    at.hidden * Bernoulli(keep=0.41)                    one term
    at.weight_hh + Gaussian(0.075) @ sequence           a law, held for one call
    at.input * Gaussian(0.2) & at.hidden * Gaussian(1)  terms combine with &

The same text, without ``at.``, is what ``str`` gives and ``noisin.parse`` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import and_
from typing import Literal, NoReturn, TypeVar, get_args

from noisin.laws import Law

SiteName = Literal[
    "input",
    "between",
    "hidden",
    "recurrent",
    "candidate",
    "output",
    "weight_ih",
    "weight_hh",
    "weight",
    "row",
]
Operator = Literal["*", "+"]
Hold = Literal["step", "sequence", "cumulative"]
Gates = Literal["tied", "untied"]
Estimate = Literal["sample", "preactivation", "moments"]

# sites that every layer of a stack has, and that therefore take an index
LAYERED = ("between", "hidden", "recurrent", "candidate", "weight_ih", "weight_hh")


@dataclass(frozen=True, repr=False)
class Modifier:
    """A word after ``@``: how a law is drawn. Use the instances, e.g. ``noisin.sequence``."""

    field: Literal["hold", "gates", "estimate"]
    name: str

    def __rmatmul__(self, law: Law) -> Qualified:
        """Return a bare law with this word on how it is drawn: ``law @ sequence``."""
        if not isinstance(law, Law):
            _refuse_word(law)
        return Qualified(law) @ self

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


step = Modifier("hold", "step")
sequence = Modifier("hold", "sequence")
cumulative = Modifier("hold", "cumulative")
tied = Modifier("gates", "tied")
untied = Modifier("gates", "untied")
sample = Modifier("estimate", "sample")
preactivation = Modifier("estimate", "preactivation")
moments = Modifier("estimate", "moments")

MODIFIERS: dict[str, Modifier] = {
    modifier.name: modifier
    for modifier in (step, sequence, cumulative, tied, untied, sample, preactivation, moments)
}


def _refuse_word(other: object) -> NoReturn:
    raise TypeError(
        "@ puts a word on one law, or on one site with its law: law @ sequence, "
        f"at.hidden * law @ sequence; got {other!s:.80} @ …"
    )


class Term:
    """What ``&`` combines: a ``Noise``, a ``Zoneout``, or several of them in a ``Terms``."""

    def __and__(self, other: Term) -> Terms:
        """Return both terms, in this order."""
        if not isinstance(other, Term):
            raise TypeError(
                f"& combines terms of noise; got {self} & {type(other).__name__}. A bare law "
                "names no site yet: write at.hidden * law"
            )
        return Terms((*terms_of(self), *terms_of(other)))

    def __add__(self, other: object) -> NoReturn:
        """Refuse: terms are combined by ``&``."""
        raise TypeError(
            "terms of noise are combined by &, each with its site, as in at.input * law & "
            f"at.hidden * law; got {self} + {other}"
        )

    def __matmul__(self, modifier: Modifier) -> Term:
        """Refuse: of all terms only ``Noise`` takes words on how it is drawn."""
        _refuse_word(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"noise has no truth value: {self}. Combine terms with & (`and` would drop one), "
            "compare with `is None` to ask whether there is any"
        )

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Qualified:
    """A law and how it is drawn, before it is given a site: ``Gaussian(0.1) @ sequence``."""

    law: Law
    hold: Hold = "step"
    gates: Gates = "tied"
    estimate: Estimate = "sample"

    __array_ufunc__ = None

    def __matmul__(self, modifier: Modifier) -> Qualified:
        """Return the law with one more word on how it is drawn."""
        return _modified(self, modifier)

    def __str__(self) -> str:
        return str(self.law) + _suffix(self)

    __repr__ = __str__
    __mul__ = __rmul__ = __add__ = __radd__ = Law._refuse


@dataclass(frozen=True, repr=False)
class Site:
    """A tensor of the recurrence that noise can perturb. Use ``noisin.at``.

    Args:
        name: which tensor.
        layer: which layer of a stack, as a list index; all of them without it.
    """

    name: SiteName
    layer: int | None = None

    __array_ufunc__ = None

    def __post_init__(self) -> None:
        if self.name not in get_args(SiteName):
            raise ValueError(f"a site is one of {', '.join(get_args(SiteName))}; got {self.name!r}")

    def __getitem__(self, layer: int) -> Site:
        """Return the site in one layer only, counted as in a list."""
        if self.name not in LAYERED:
            raise TypeError(f"{self.name} has no layers to index; {', '.join(LAYERED)} have")
        if self.layer is not None:
            raise TypeError(f"{self} names a layer already")
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise TypeError(f"{self.name}[layer]: layer must be an int, got {layer!r}")
        return Site(self.name, layer)

    def __iter__(self) -> NoReturn:
        """Refuse: without this Python would count layers up for ever."""
        raise TypeError(f"{self} is a site, not a sequence; index it with a layer")

    def __mul__(self, law: Law | Qualified) -> Noise:
        """Return multiplicative noise, t ⊙ (1 + ε)."""
        return self._noise("*", law)

    def __add__(self, law: Law | Qualified) -> Noise:
        """Return additive noise, t + ε."""
        return self._noise("+", law)

    def _noise(self, operator: Operator, law: Law | Qualified) -> Noise:
        if isinstance(law, Qualified):
            return Noise(self, operator, law.law, law.hold, law.gates, law.estimate)
        return Noise(self, operator, law)

    def _refuse(self, other: object) -> NoReturn:
        raise TypeError(
            f"the site comes first: at.{self} * law or at.{self} + law; got "
            f"{type(other).__name__} before it"
        )

    __rmul__ = __radd__ = _refuse

    def _refuse_operator(self, other: object) -> NoReturn:
        raise TypeError(
            f"a site is perturbed by * or +, at.{self} * law or at.{self} + law; got at.{self} "
            f"and {other!s:.80} joined otherwise"
        )

    __sub__ = __truediv__ = __matmul__ = __and__ = _refuse_operator

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}[{self.layer}]"

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Noise(Term):
    """A random perturbation of one tensor in the recurrence, of mean zero.

    Args:
        site: which tensor t.
        operator: ``"*"``: t ⊙ (1 + ε), or ``"+"``: t + ε.
        law: distribution of ε.
        hold: how long one draw is kept: ``step``, ``sequence`` (one call), or ``cumulative``
            (the draws up to t are added, or their factors multiplied).
        gates: ``tied``: all gates see one draw, or ``untied``: each gate sees its own.
        estimate: how the expectation over the noise is taken: ``sample``, ``preactivation`` or
            ``moments``.

    Raises:
        TypeError: ``site`` or ``law`` is something else.

    Examples:
        >>> from noisin import Gaussian, at, sequence
        >>> noise = at.weight_hh + Gaussian(0.075) @ sequence
        >>> noise.site, noise.operator, noise.law, noise.hold
        (weight_hh, '+', Gaussian(0.075), 'sequence')
    """

    site: Site
    operator: Operator
    law: Law
    hold: Hold = "step"
    gates: Gates = "tied"
    estimate: Estimate = "sample"

    def __post_init__(self) -> None:
        if not isinstance(self.site, Site):
            raise TypeError(f"Noise: site must be one of noisin.at, got {self.site!r}")
        if self.operator not in get_args(Operator):
            raise ValueError(f"Noise: operator must be '*' or '+', got {self.operator!r}")
        if not isinstance(self.law, Law):
            raise TypeError(
                f"at.{self.site} {self.operator} …: a site takes a noise law, for example "
                f"at.{self.site} {self.operator} Gaussian(0.3); got {self.law!r}"
            )
        for name in ("hold", "gates", "estimate"):
            words = [m.name for m in MODIFIERS.values() if m.field == name]
            if getattr(self, name) not in words:
                raise ValueError(
                    f"Noise: {name} must be one of {words}, got {getattr(self, name)!r}"
                )

    def __matmul__(self, modifier: Modifier) -> Noise:
        """Return the noise with one more word on how it is drawn."""
        return _modified(self, modifier)

    def __str__(self) -> str:
        return f"{self.site} {self.operator} {self.law}{_suffix(self)}"


@dataclass(frozen=True, repr=False, eq=False)
class Terms(Term):
    """Several terms that act together; at one site, from left to right.

    Args:
        terms: two or more ``Noise`` or ``Zoneout``.

    Raises:
        ValueError: fewer than two, since one term stands for itself.

    Examples:
        >>> from noisin import Bernoulli, Gaussian, at
        >>> list(at.input * Gaussian(0.2) & at.hidden * Bernoulli(keep=0.5))
        [input * Gaussian(0.2), hidden * Bernoulli(keep=0.5)]
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        flat = tuple(t for term in self.terms for t in terms_of(term))
        if len(flat) < 2:
            raise ValueError(f"Terms holds two or more terms, got {len(flat)}")
        object.__setattr__(self, "terms", flat)

    def __iter__(self) -> Iterator[Term]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)

    def __getitem__(self, index: int) -> Term:
        """Return one term."""
        return self.terms[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Terms) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __str__(self) -> str:
        return " & ".join(map(str, self.terms))


def terms_of(noise: Term | None) -> tuple[Term, ...]:
    """Return the single terms of any noise, none for ``None``.

    Raises:
        TypeError: ``noise`` is no noise.
    """
    if noise is None:
        return ()
    if isinstance(noise, Terms):
        return noise.terms
    if isinstance(noise, Term):
        return (noise,)
    raise TypeError(
        "noise is None, or terms such as at.hidden * Gaussian(0.3), which noisin.parse makes of "
        f"text; got {type(noise).__name__} {noise}"
    )


def joined(terms: Sequence[Term]) -> Term | None:
    """Return the terms as one noise; None of none."""
    return reduce(and_, terms) if terms else None


Drawn = TypeVar("Drawn", "Noise", "Qualified")


def _modified(drawn: Drawn, modifier: Modifier) -> Drawn:
    if not isinstance(modifier, Modifier):
        raise TypeError(f"@ takes one of {', '.join(MODIFIERS)}; got {modifier!r}")
    default = next(f.default for f in fields(drawn) if f.name == modifier.field)
    current = getattr(drawn, modifier.field)
    if current not in (default, modifier.name):
        raise ValueError(f"{modifier.field} is {current} already, got @ {modifier} as well")
    return replace(drawn, **{modifier.field: modifier.name})


def _suffix(drawn: Noise | Qualified) -> str:
    """Return the words after ``@`` that are no defaults."""
    words = (drawn.hold, drawn.gates, drawn.estimate)
    defaults = (step.name, tied.name, sample.name)
    return "".join(f" @ {w}" for w, d in zip(words, defaults, strict=True) if w != d)
