"""The text form of noise: what ``str`` of a noise gives, read back.

The text is parsed to a syntax tree of which only known names, calls with plain numbers, and the
operators of the algebra are understood. Nothing is evaluated.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

from noisin import at
from noisin.laws import LAWS, Law, Learned
from noisin.methods import METHODS
from noisin.noise import MODIFIERS, Modifier, Noise, Qualified, Site, Term
from noisin.zoneout import Zoneout

LIMIT = 1000
Word = TypeVar("Word")

CALLS: dict[str, Callable[..., object]] = {
    **LAWS,
    "Learned": Learned,
    "Zoneout": Zoneout,
    **METHODS,
}
WORDS = f"""valid words
  sites: {", ".join(at.SITES)}
  laws: {", ".join(LAWS)}, their std a number > 0 or Learned(init, floor=…)
  after @: {", ".join(MODIFIERS)}
  methods: {", ".join(METHODS)}, Zoneout
  no noise: none"""


def parse(text: str) -> Term | None:
    """Read noise from its text form.

    ``parse(str(noise)) == noise`` for every noise whose text is within the limit, and
    ``parse("none")`` is None.

    Args:
        text: for example ``"hidden * Bernoulli(keep=0.41) & input * Gaussian(0.1) @ sequence"``,
            or a method by its name, ``"zaremba(keep=0.5)"``; at most 1,000 characters.

    Raises:
        ValueError: the text is no noise: what was wrong, and the valid words.

    Examples:
        >>> parse("hidden[0] * Gaussian(0.3)")
        hidden[0] * Gaussian(0.3)
    """
    if not isinstance(text, str):
        raise ValueError(f"the text form of noise is a str, got {type(text).__name__}\n{WORDS}")
    if len(text) > LIMIT:
        raise ValueError(
            f"the text form of noise has at most {LIMIT} characters, got {len(text)}\n{WORDS}"
        )
    if not text.isascii():  # Python would read letters that only look alike as the plain ones
        raise ValueError(f"the text form of noise is plain ASCII, got {text[:80]!a}\n{WORDS}")
    text = text.strip()
    if text == "none":
        return None
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"no noise: {shown}: {error.msg}\n{WORDS}") from None
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"no noise: {shown}: {error}\n{WORDS}") from None
    if not isinstance(value, Term):
        raise ValueError(
            f"no noise: {shown} is a {type(value).__name__.lower()} alone; a term is a site, "
            f"* or +, and a law\n{WORDS}"
        )
    return value


def _value(node: ast.expr) -> object:
    """Return what a node stands for: a site, a law, a modifier, a term or a plain value."""
    match node:
        case ast.Name(id=name):
            return _word(name, {**at.SITES, **MODIFIERS}, "is written as a call")
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Subscript(value=target, slice=index):
            site = _value(target)
            return site[_value(index)] if isinstance(site, Site) else _refuse(node)  # pyright: ignore[reportArgumentType]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            call = _word(name, CALLS, "is written without parentheses")
            if any(isinstance(a, ast.Starred) for a in args) or any(
                k.arg is None for k in keywords
            ):
                _refuse(node)
            named = {k.arg: _value(k.value) for k in keywords if k.arg is not None}
            if len(named) < len(keywords):
                _refuse(node)
            given = [_value(one) for one in args]
            try:
                inspect.signature(call).bind(*given, **named)
            except TypeError:
                raise ValueError(f"{_form(name)} is the form, got {ast.unparse(node)!r}") from None
            return call(*given, **named)
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(_value(left), op, _value(right), node)
    return _refuse(node)


def _combined(left: object, op: ast.operator, right: object, node: ast.expr) -> object:
    match op, left, right:
        case ast.Mult(), Site(), Law() | Qualified():
            return left * right
        case ast.Add(), Site(), Law() | Qualified():
            return left + right
        case ast.MatMult(), Law() | Qualified() | Noise(), Modifier():
            return left @ right
        case ast.BitAnd(), Term(), Term():
            return left & right
    return _refuse(node)


def _word(name: str, words: Mapping[str, Word], otherwise: str) -> Word:
    """Return what a word stands for where it is found.

    Args:
        name: the word.
        words: what may stand here.
        otherwise: how the words of the other kind are written.
    """
    if name in words:
        return words[name]
    if name == "none":
        raise ValueError("none is the whole text, and no term among others")
    known = [*at.SITES, *MODIFIERS, *CALLS]
    if name in known:
        form = f", {_form(name)}" if name in CALLS else ""
        raise ValueError(f"{name} {otherwise}{form}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown word {name!r} here{hint}")


def _form(name: str) -> str:
    """Return how a call is written: ``Gamma(std, shape=…)``."""
    given = inspect.signature(CALLS[name]).parameters.values()
    named = [p.kind is p.KEYWORD_ONLY or p.default is not p.empty for p in given]
    shown = (f"{p.name}=…" if by_name else p.name for p, by_name in zip(given, named, strict=True))
    return f"{name}({', '.join(shown)})"


def _refuse(node: ast.expr) -> NoReturn:
    raise ValueError(
        f"a term is `site * law` or `site + law`, words follow @, terms are joined by &; "
        f"got {ast.unparse(node)!r}"
    )
