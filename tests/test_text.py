"""The text form: read back what was written, and refuse everything else quickly."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import noisin
from conftest import within_seconds
from noisin import Learned, Zoneout, at, laws, parse
from noisin.at import SITES
from noisin.methods import METHODS
from noisin.noise import MODIFIERS
from test_noise import LAYERED

POSITIVE = st.floats(min_value=1e-300, max_value=1e300) | st.integers(1, 10**15)
SHAPES = {"Gamma": ("shape",), "ChiSquare": ("df",), "Beta": ("a", "b")}
WORDS = {
    "hold": ("step", "sequence", "cumulative"),
    "gates": ("tied", "untied"),
    "estimate": ("sample", "preactivation", "moments"),
}
PROBABILITY = st.floats(1e-300, 1, exclude_max=True)


@st.composite
def spreads(draw):
    """Draw a number or a learned spread."""
    if draw(st.booleans()):
        return draw(POSITIVE)
    floor = draw(st.floats(0, 10))
    init = floor * 2 + draw(st.floats(1e-3, 10))
    return Learned(init, floor=floor, per=draw(st.sampled_from(("layer", "unit", "weight"))))


@st.composite
def any_laws(draw):
    name = draw(st.sampled_from(sorted(laws.LAWS)))
    if name == "Bernoulli":
        return noisin.Bernoulli(keep=draw(PROBABILITY))
    shape = {p: draw(POSITIVE) for p in SHAPES.get(name, ()) if draw(st.booleans())}
    return laws.LAWS[name](draw(spreads()), **shape)


@st.composite
def any_terms(draw):
    if draw(st.integers(0, 9)) == 0:
        keeps = draw(st.tuples(PROBABILITY, st.just(0.0) | PROBABILITY))
        return Zoneout(**dict(zip(draw(st.permutations(("hidden", "cell"))), keeps, strict=True)))
    name = draw(st.sampled_from(sorted(SITES)))
    site = getattr(at, name)
    if name in LAYERED and draw(st.booleans()):
        site = site[draw(st.integers(-(10**6), 10**6))]
    law = draw(any_laws())
    for words in WORDS.values():
        law = law @ MODIFIERS[draw(st.sampled_from(words))]
    return site * law if draw(st.booleans()) else site + law


@st.composite
def any_noise(draw):
    noise = draw(any_terms())
    for _ in range(draw(st.integers(0, 3))):
        noise = noise & draw(any_terms())
    return noise


@settings(max_examples=500)
@given(any_noise())
def test_every_noise_is_read_back(noise):
    assert len(str(noise)) <= 1000
    assert parse(str(noise)) == noise
    assert str(parse(str(noise))) == str(noise)


def test_no_noise_is_none():
    assert parse("none") is None
    assert parse("  none\n") is None


EQUAL = [
    ("hidden*Bernoulli(keep=.41)", at.hidden * noisin.Bernoulli(keep=0.41)),
    ("(hidden + Gaussian(3e-1))", at.hidden + noisin.Gaussian(0.3)),
    ("hidden * (Gaussian(1) @ sequence)", at.hidden * noisin.Gaussian(1) @ noisin.sequence),
    ("(hidden * Gaussian(1)) @ sequence", at.hidden * noisin.Gaussian(1) @ noisin.sequence),
    ("hidden * Gaussian(std=1)", at.hidden * noisin.Gaussian(1)),
    (
        "hidden * Gaussian(Learned(init=.5, floor=.1))",
        at.hidden * noisin.Gaussian(Learned(0.5, 0.1)),
    ),
]


@pytest.mark.parametrize(("text", "noise"), EQUAL, ids=[text for text, _ in EQUAL])
def test_other_spellings_are_read_too(text, noise):
    assert parse(text) == noise


HOSTILE = [
    *("", " ", "\n", "None", "()", "[]", "{}", "0", "'none'", "...", "hidden", "Gaussian(1)"),
    *("sequence", "Gaussian(1) @ sequence", "hidden *", "* Gaussian(1)", "hidden * Gaussian"),
    "__import__('os').system('true')",
    "import os",
    "hidden * __import__('noisin').Gaussian(1)",
    "hidden * Gaussian(__import__('os').getpid())",
    "hidden.__class__ * Gaussian(1)",
    "at.hidden * Gaussian(1)",
    "hidden.layer",
    "().__class__.__bases__[0].__subclasses__()",
    "Gaussian.__init__.__globals__",
    "lambda: 0",
    "(lambda: hidden)() * Gaussian(1)",
    "hidden * Gaussian(lambda: 1)",
    "hidden * Gaussian(10**10**10)",
    "hidden * Gaussian(9**9**9)",
    "hidden * Gaussian(1 << 10**9)",
    "hidden * Gaussian('a' * 10**10)",
    "9**9**9",
    "hidden[10**10**10] * Gaussian(1)",
    "hidden * Gaussian(" + "9" * 900 + ")",
    "hidden * Gaussian(1e999)",
    "hidden * Gaussian(-1)",
    "hidden * Gaussian(nan)",
    "hidden * Gaussian(1j)",
    "hidden * Gaussian(True)",
    "hidden * Gaussian(None)",
    "hidden * Gaussian('1')",
    "hidden * Gaussian([1])",
    "hidden * Gaussian(hidden)",
    "hidden * Gaussian(Gaussian(1))",
    "hidden * Gaussian(Learned(Learned(1)))",
    "hidden * Gaussian(Learned(1, per='unit\x00'))",
    "hidden * Gaussian(1, 2)",
    "hidden * Gaussian(std=1, std=1)",
    "hidden * Gaussian(1, std=1)",
    "hidden * Gaussian(*[1])",
    "hidden * Gaussian(*(1,))",
    "hidden * Gaussian(**{'std': 1})",
    "hidden * Gaussian(f'{1}')",
    "f'{hidden}' * Gaussian(1)",
    "hidden * Gaussian(1 if 1 else 2)",
    "hidden * Gaussian(x := 1)",
    "[hidden for hidden in (1,)]",
    "hidden * Gaussian(1) and hidden * Gaussian(1)",
    "hidden * Gaussian(1) or none",
    "not hidden * Gaussian(1)",
    "hidden * Gaussian(1) & none",
    "none & none",
    "none[0]",
    "hidden * Gaussian(1), input * Gaussian(1)",
    "hidden * Gaussian(1); input * Gaussian(1)",
    "hidden * Gaussian(1)\ninput * Gaussian(1)",
    "hidden = Gaussian(1)",
    "hidden == hidden",
    "hidden < Gaussian(1)",
    "hidden ** Gaussian(1)",
    "hidden - Gaussian(1)",
    "hidden / Gaussian(1)",
    "hidden @ Gaussian(1)",
    "hidden & Gaussian(1)",
    "-hidden * Gaussian(1)",
    "~(hidden * Gaussian(1))",
    "2 * hidden * Gaussian(1)",
    "hidden * 2",
    "hidden * Gaussian(1) * 2",
    "hidden * Gaussian(1) @ hold",
    "hidden * Gaussian(1) @ sequence @ cumulative",
    "hidden * Gaussian(1) @ Gaussian(1)",
    "sequence @ Gaussian(1)",
    "hidden[0][1] * Gaussian(1)",
    "hidden[0:1] * Gaussian(1)",
    "hidden[0, 1] * Gaussian(1)",
    "hidden['0'] * Gaussian(1)",
    "hidden[0.0] * Gaussian(1)",
    "hidden[True] * Gaussian(1)",
    "hidden[hidden] * Gaussian(1)",
    "input[0] * Gaussian(1)",
    "Gaussian(1)[0]",
    "(hidden * Gaussian(1) & input * Gaussian(1))[0]",
    "hiden * Gaussian(1)",
    "hidden * Gausian(1)",
    "hidden() * Gaussian(1)",
    "hidden * Gaussian(1)()",
    "Noise(hidden, '*', Gaussian(1))",
    "hidden * Law(1)",
    "parse('none')",
    "Zoneout()",
    "Zoneout(hidden=1)",
    "hidden * Zoneout(hidden=0.1)",
    "Zoneout(hidden=0.1) @ sequence",
    "# hidden * Gaussian(1)",
    "hidden * Gaussian(1) # a comment\x00",
    "hidden * Gaussian(1)\x00",
    "\x00",
    "hidden\u200b * Gaussian(1)",
    "hidden * Gaussian(1)\ud800",
    "hıdden * Gaussian(1)",
    "ℎidden * Gaussian(1)",  # Python's own NFKC would make it `hidden`
    "hidden ∗ Gaussian(1)",
    "hidden × Gaussian(1)",
    "hidden * Gaussian(１)",
    "hidden * Gaussian(1)‮",
    "await hidden",
    "yield",
    "hidden * Gaussian(1) if True else none",
    "(" * 1000,
    "(" * 400 + "hidden" + ")" * 400,
    "[" * 1000,
    "-" * 1000,
    "~" * 1000,
    "f(" * 500,
    "not " * 250,
    "a." * 499 + "aa",
    "hidden & " * 100,
    "1" + "+1" * 499,
    "'" * 999,
    "\\" * 1000,
    "\t" * 1000,
    "hidden * Gaussian(1)" + " " * 981,  # 1,001 characters
    "hidden * Gaussian(1) & " * 1000 + "hidden * Gaussian(1)",
    " " * 10_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=[repr(text[:40]) for text in HOSTILE])
def test_hostile_text_is_refused_at_once_with_the_valid_words(text):
    with within_seconds(), pytest.raises(ValueError, match="valid words") as error:
        parse(text)
    assert type(error.value) is ValueError, "not a subclass, of which some print badly"
    message = str(error.value)
    words = (*SITES, *laws.LAWS, *MODIFIERS, *METHODS, "Zoneout", "Learned", "none")
    assert [word for word in words if word not in message] == []
    assert len(message) < 3000


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("hidden * Gaussian", r"Gaussian is written as a call, Gaussian\(std\)$"),
        ("hidden * Bernoulli(0.5)", r"Bernoulli\(keep=…\) is the form, got 'Bernoulli\(0.5\)'$"),
        ("hidden * Gaussian(sd=1)", r"Gaussian\(std\) is the form, got 'Gaussian\(sd=1\)'$"),
        ("zaremba(0.5)", r"zaremba\(keep=…, num_layers=…\) is the form, got"),
        ("none & hidden * Gaussian(1)", "none is the whole text, and no term among others$"),
        ("hidden(1) * Gaussian(2)", "hidden is written without parentheses$"),
        ("hiden * Gaussian(1)", "unknown word 'hiden' here, did you mean hidden"),
    ],
)
def test_common_slips_are_told_how_it_is_written(text, rule):
    with pytest.raises(ValueError, match="no noise: ") as error:
        parse(text)
    assert re.search(rule, str(error.value).splitlines()[0])


@pytest.mark.parametrize("wrong", [None, 1, b"none", ["none"], at.hidden, math.nan, object()])
def test_what_is_no_text_is_refused(wrong):
    with pytest.raises(ValueError, match="valid words"):
        parse(wrong)


def test_a_text_of_exactly_the_limit_is_read():
    term = "hidden * Gaussian(1)"
    assert parse(term + " " * (1000 - len(term))) == at.hidden * noisin.Gaussian(1)


def assert_noise_or_refused(text):
    """The text is noise that round-trips, or a ValueError with the valid words; nothing else."""
    try:
        noise = parse(text)
    except ValueError as error:
        assert "valid words" in str(error)  # noqa: PT017 - most texts are refused, some are noise
    else:
        assert parse("none" if noise is None else str(noise)) == noise


@settings(max_examples=500)
@given(st.text(max_size=60) | st.text("()[]*+@&.,=- 019ehidnGausi", max_size=60))
def test_any_text_is_noise_or_refused(text):
    assert_noise_or_refused(text)


@settings(max_examples=300)
@given(any_terms(), st.data())
def test_a_mistyped_character_makes_other_noise_or_is_refused(noise, data):
    text = str(noise)
    place = data.draw(st.integers(0, len(text) - 1))
    typed = data.draw(st.characters(codec="utf-8"))
    assert_noise_or_refused(text[:place] + typed + text[place + 1 :])
