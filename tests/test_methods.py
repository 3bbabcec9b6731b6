"""The papers' methods by name: which terms each of them stands for."""

import inspect

import pytest

from noisin import (
    Bernoulli,
    Gaussian,
    Laplace,
    Learned,
    at,
    methods,
    moments,
    parse,
    sequence,
    untied,
)

DROP = {p: Bernoulli(keep=p) for p in (0.5, 0.6, 0.7, 0.8)}
SPREAD = Gaussian(Learned(0.1, floor=0.01, per="weight"))

EXAMPLES = [
    ("noisin(Gaussian(0.3))", at.hidden * Gaussian(0.3)),
    ("noisin(Laplace(0.3), additive=True)", at.hidden + Laplace(0.3)),
    (
        "zaremba(keep=0.5)",
        at.input * DROP[0.5] & at.between * DROP[0.5] & at.output * DROP[0.5],
    ),
    ("zaremba(keep=0.5, num_layers=1)", at.input * DROP[0.5] & at.output * DROP[0.5]),
    (
        "variational(input=0.5, recurrent=0.6, output=0.7)",
        at.input * DROP[0.5] @ sequence
        & at.recurrent * DROP[0.6] @ sequence
        & at.output * DROP[0.7] @ sequence,
    ),
    ("variational(recurrent=0.6)", at.recurrent * DROP[0.6] @ sequence),
    ("variational(recurrent=0.6, input=1)", at.recurrent * DROP[0.6] @ sequence),
    ("weight_noise(0.075)", at.weight_hh + Gaussian(0.075)),
    ("weight_noise(0.075, multiplicative=True)", at.weight_hh * Gaussian(0.075)),
    ("weight_noise(0.075, hold='sequence')", at.weight_hh + Gaussian(0.075) @ sequence),
    ("drop_connect(keep=0.8)", at.weight_hh * DROP[0.8]),
    ("drop_connect(keep=0.8, hold='sequence')", at.weight_hh * DROP[0.8] @ sequence),
    (
        "fast_dropout(input=0.8, recurrent=0.7, output=0.5)",
        at.input * DROP[0.8] @ moments
        & at.recurrent * DROP[0.7] @ moments
        & at.output * DROP[0.5] @ moments,
    ),
    ("recurrent_dropout(keep=0.7)", at.candidate * DROP[0.7]),
    ("recurrent_dropout(keep=0.7, hold='sequence')", at.candidate * DROP[0.7] @ sequence),
]


def test_every_method_is_tested():
    names = {text.split("(")[0] for text, _ in EXAMPLES} | {"adaptive_weight_noise"}
    assert names == set(methods.METHODS)
    assert len(names) == 8
    assert all(getattr(methods, name) is method for name, method in methods.METHODS.items())


@pytest.mark.parametrize(("text", "terms"), EXAMPLES, ids=[text for text, _ in EXAMPLES])
def test_a_method_is_its_terms(text, terms):
    """Order is no matter: no two of a method's terms stand at one site."""
    found = parse(text)
    assert set(_each(found)) == set(_each(terms))
    assert len(_each(found)) == len(_each(terms))
    assert parse(str(found)) == found


def _each(noise):
    return tuple(noise) if hasattr(noise, "__iter__") else (noise,)


def test_untied_masks_are_one_a_gate():
    terms = _each(methods.variational(input=0.5, recurrent=0.6, untied=True))
    by_site = {term.site.name: term for term in terms}
    assert by_site["recurrent"] == at.recurrent * DROP[0.6] @ sequence @ untied
    assert len(terms) == 2


def test_between_has_its_own_probability():
    terms = set(_each(methods.variational(recurrent=0.6, between=0.8)))
    assert terms == {at.recurrent * DROP[0.6] @ sequence, at.between * DROP[0.8] @ sequence}


def test_adaptive_weight_noise_learns_a_spread_a_weight():
    terms = _each(methods.adaptive_weight_noise(0.1, floor=0.01))
    assert {term.site.name for term in terms} == {"weight_ih", "weight_hh"}
    assert {term.law for term in terms} == {SPREAD}
    assert {term.operator for term in terms} == {"+"}


def test_a_learned_spread_goes_where_a_number_does():
    assert methods.weight_noise(Learned(0.1)).law == Gaussian(Learned(0.1))
    assert methods.noisin(Gaussian(Learned(0.5, floor=0.1))).law.std == Learned(0.5, floor=0.1)


@pytest.mark.parametrize(
    "text",
    [
        "noisin()",
        "noisin(0.3)",
        "zaremba()",
        "zaremba(0.5)",
        "zaremba(keep=0)",
        "zaremba(keep=1.5)",
        "zaremba(keep='0.5')",
        "zaremba(keep=0.5, num_layers=0)",
        "variational()",
        "variational(input=1, recurrent=1)",
        "variational(hidden=0.5)",
        "variational(input=True, recurrent=0.7)",
        "variational(recurrent=0.7, output=True, untied=True)",
        "weight_noise(0)",
        "weight_noise(0.1, hold='for ever')",
        "drop_connect(keep=0.8, hold='moments')",
        "recurrent_dropout(keep=0.7, hold=3)",
        "fast_dropout()",
        "adaptive_weight_noise(0.1, floor=0.2)",
        "noisin(Gaussian(0.3), additive='no')",
    ],
)
def test_wrong_arguments_are_refused(text):
    with pytest.raises(ValueError, match="valid words"):
        parse(text)


def test_probabilities_are_given_by_name():
    """A bare 0.5 would not say whether it is kept or dropped."""
    kinds = {
        (name, p.name): p.kind
        for name, method in methods.METHODS.items()
        for p in inspect.signature(method).parameters.values()
        if p.name in ("keep", "input", "recurrent", "output", "between")
    }
    assert len(kinds) == 10
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
