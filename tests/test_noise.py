"""The algebra of terms, and the guards that keep it honest."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

import noisin
from noisin import (
    Bernoulli,
    Gaussian,
    Learned,
    Noise,
    Terms,
    Zoneout,
    at,
    cumulative,
    moments,
    preactivation,
    sample,
    sequence,
    step,
    tied,
    untied,
)
from noisin.at import SITES
from noisin.noise import MODIFIERS, terms_of

LAYERED = ("between", "hidden", "recurrent", "candidate", "weight_ih", "weight_hh")
A, B = at.hidden * Gaussian(0.9), at.between + Bernoulli(keep=0.5)
NUMBERS = (0.5, 1, True, np.float64(0.5), np.ones(2), np.ones(0), torch.ones(2), torch.tensor(1.0))


def test_a_term_is_what_was_written():
    term = at.hidden[-1] + Gaussian(0.3) @ sequence @ untied @ moments
    assert (term.site.name, term.site.layer, term.operator) == ("hidden", -1, "+")
    assert term.law == Gaussian(0.3)
    assert (term.hold, term.gates, term.estimate) == ("sequence", "untied", "moments")
    plain = at.input * Gaussian(0.3)
    assert (plain.hold, plain.gates, plain.estimate) == ("step", "tied", "sample")
    assert plain.site.layer is None


def test_sites_and_modifiers_are_those_of_the_design():
    assert set(SITES) == {*LAYERED, "input", "output", "weight", "row"}
    assert all(getattr(at, name) is site for name, site in SITES.items())
    assert set(MODIFIERS) == {
        *("step", "sequence", "cumulative"),
        *("tied", "untied"),
        *("sample", "preactivation", "moments"),
    }
    assert all(getattr(noisin, name) is word for name, word in MODIFIERS.items())


def test_modifiers_work_on_laws_and_on_terms():
    assert at.hidden * Gaussian(1) @ sequence == (at.hidden * Gaussian(1)) @ sequence
    assert at.hidden + Gaussian(1) @ sequence == (at.hidden + Gaussian(1)) @ sequence
    one = at.hidden * Gaussian(1) @ cumulative @ untied @ preactivation
    assert one == at.hidden * Gaussian(1) @ preactivation @ untied @ cumulative
    assert at.hidden * Gaussian(1) @ step @ tied @ sample == at.hidden * Gaussian(1)


@pytest.mark.parametrize(
    ("first", "second"),
    [(sequence, cumulative), (cumulative, sequence), (untied, tied), (moments, preactivation)],
)
def test_two_words_of_one_kind_conflict(first, second):
    for drawn in (Gaussian(1), at.hidden * Gaussian(1)):
        with pytest.raises((TypeError, ValueError)) as error:
            drawn @ first @ second
        assert str(second) in str(error.value)


@pytest.mark.parametrize("wrong", [1, "sequence", None, Gaussian(1), A, at.hidden, torch.ones(1)])
def test_only_modifiers_stand_after_at(wrong):
    for drawn in (Gaussian(1), Gaussian(1) @ sequence, A):
        with pytest.raises(TypeError):
            drawn @ wrong


@pytest.mark.parametrize("wrong", [1, "x", None, at.hidden, torch.ones(1), np.ones(2)])
def test_only_laws_and_terms_take_a_modifier(wrong):
    with pytest.raises((TypeError, ValueError)):  # numpy's own is a ValueError
        wrong @ sequence


@pytest.mark.parametrize("several", [A & A, Zoneout(hidden=0.1)], ids=str)
def test_a_modifier_belongs_to_one_law(several):
    with pytest.raises(
        TypeError, match=r"@ puts a word on one law, .*at\.hidden \* law @ sequence"
    ):
        several @ sequence


def test_a_site_is_perturbed_in_two_ways():
    for wrong in (
        lambda: at.hidden @ sequence,
        lambda: at.hidden - Gaussian(1),
        lambda: at.hidden / Gaussian(1),
        lambda: at.hidden & A,
    ):
        with pytest.raises(TypeError, match=r"at\.hidden \* law or at\.hidden \+ law; got"):
            wrong()
    with pytest.raises(TypeError, match="a law acts at a site"):
        Gaussian(1) & A


@pytest.mark.parametrize("term", [A, A & B, Zoneout(hidden=0.1)], ids=str)
def test_and_or_not_would_drop_a_term(term):
    for use in (bool, lambda t: t and A, lambda t: t or A, lambda t: not t):
        with pytest.raises(TypeError, match="&"):
            use(term)


@pytest.mark.parametrize("other", [B, Gaussian(1), 1], ids=str)
def test_terms_are_not_added(other):
    with pytest.raises(
        TypeError, match=r"combined by &, each with its site, .*; got hidden .* \+ "
    ):
        A + other


@pytest.mark.parametrize("wrong", [*NUMBERS, None, "Gaussian(1)", at.hidden, A, sequence, Gaussian])
def test_a_site_takes_a_law_only(wrong):
    for use in (lambda: at.hidden * wrong, lambda: at.hidden + wrong):
        with pytest.raises(TypeError, match="law"):
            use()


@pytest.mark.parametrize("number", NUMBERS)
def test_nothing_stands_before_a_site(number):
    for use in (lambda: number * at.hidden, lambda: number + at.hidden):
        with pytest.raises(TypeError, match=r"at\.hidden"):
            use()


@pytest.mark.parametrize("law", [Gaussian(0.5), Bernoulli(keep=0.5), Gaussian(1) @ sequence])
@pytest.mark.parametrize("other", [*NUMBERS, None, at.hidden, A], ids=lambda o: type(o).__name__)
def test_a_law_meets_no_tensor_and_stands_on_the_right(law, other):
    """`out, hidden = rnn(x)` rebinds a name, and `hidden * Gaussian(1)` is then a tensor's."""
    for use in (lambda: law * other, lambda: law + other):
        with pytest.raises(TypeError, match=r"at\."):
            use()
    if not isinstance(other, type(at.hidden)):
        for use in (lambda: other * law, lambda: other + law):
            with pytest.raises(TypeError, match=r"at\."):
                use()


def test_what_a_tensor_meets_says_what_happened():
    with pytest.raises(TypeError, match="Tensor"):
        torch.ones(3) * Gaussian(1)
    with pytest.raises(TypeError, match="ndarray"):
        np.ones(3) * Gaussian(1)


@pytest.mark.parametrize("wrong", [None, 1, "x", Gaussian(1), at.hidden, sequence, (A, B), [A]])
def test_and_combines_terms_only(wrong):
    for use in (lambda: A & wrong, lambda: wrong & A, lambda: (A & B) & wrong):
        with pytest.raises(TypeError):
            use()


def test_and_is_flat_and_keeps_the_order():
    c = at.hidden + Gaussian(0.1)
    assert (A & B) & c == A & (B & c) == A & B & c
    assert tuple(A & B & c) == (A, B, c)
    assert len(A & B & c) == 3
    assert (A & B & c)[-1] == c
    assert A & B != B & A
    assert isinstance(A & Zoneout(cell=0.2), Terms)
    assert isinstance(Zoneout(cell=0.2) & A, Terms)


def test_terms_are_no_tuple():
    """Otherwise `a & b + c` and `(a, b) == a & b` would mean something."""
    both = A & B
    assert not isinstance(both, tuple)
    assert both != (A, B)
    assert both != (A, B)
    for use in (lambda: both + both, lambda: both * 2, lambda: A + B, lambda: A * Gaussian(1)):
        with pytest.raises(TypeError):
            use()


def test_one_term_stands_for_itself():
    for few in ((), (A,)):
        with pytest.raises(ValueError, match="two"):
            Terms(few)


@pytest.mark.parametrize("name", LAYERED)
def test_an_index_names_a_layer(name):
    site = getattr(at, name)
    assert (site[0] * Gaussian(1)).site.layer == 0
    assert (site[-2] * Gaussian(1)).site.layer == -2
    assert site[0] == site[0] != site
    assert site[0] != site[1]


@pytest.mark.parametrize("name", sorted(set(SITES) - set(LAYERED)))
def test_sites_of_one_layer_take_no_index(name):
    with pytest.raises((TypeError, ValueError), match=name):
        getattr(at, name)[0]


@pytest.mark.parametrize("wrong", [0.0, "0", None, True, slice(2), (0, 1)])
def test_an_index_is_a_whole_number(wrong):
    with pytest.raises((TypeError, ValueError)):
        at.hidden[wrong]


def test_an_index_is_given_once():
    with pytest.raises((TypeError, ValueError)):
        at.hidden[0][1]


@pytest.mark.parametrize("use", [iter, len])
def test_a_site_is_no_sequence(use):
    """It takes any index, so `list(at.hidden)` and `0.5 in at.hidden` would run for ever."""
    with pytest.raises(TypeError):
        use(at.hidden)


@pytest.mark.parametrize("term", [A, A & B, A @ sequence, Zoneout(0.1, 0.2)], ids=str)
def test_terms_are_frozen_values(term):
    for name in [field.name for field in dataclasses.fields(term)]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(term, name, None)
    twin = copy.deepcopy(term)
    assert twin == term == pickle.loads(pickle.dumps(term))
    assert hash(twin) == hash(term)
    assert repr(term) == str(term)
    assert len({term, twin}) == 1


def test_terms_differ_in_every_part():
    others = [
        at.hidden * Gaussian(0.9),
        at.hidden[0] * Gaussian(0.9),
        at.recurrent * Gaussian(0.9),
        at.hidden + Gaussian(0.9),
        at.hidden * Gaussian(0.8),
        at.hidden * Gaussian(Learned(0.9)),
        at.hidden * Gaussian(Learned(0.9, floor=0.1)),
        at.hidden * Gaussian(Learned(0.9, per="unit")),
        at.hidden * Gaussian(0.9) @ sequence,
        at.hidden * Gaussian(0.9) @ cumulative,
        at.hidden * Gaussian(0.9) @ untied,
        at.hidden * Gaussian(0.9) @ moments,
        Zoneout(hidden=0.9),
    ]
    assert len(set(others)) == len({str(other) for other in others}) == 13


def test_a_noise_is_made_of_a_site_and_a_law():
    assert Noise(at.hidden, "*", Gaussian(0.9)) == A
    for site, law in (("hidden", Gaussian(1)), (at.hidden, 0.5), (at.hidden, "Gaussian(1)")):
        with pytest.raises(TypeError):
            Noise(site, "*", law)


@pytest.mark.parametrize(
    "wrong",
    [
        {"operator": "/"},
        {"operator": None},
        {"hold": "forever"},
        {"gates": "both"},
        {"estimate": "exact"},
    ],
)
def test_a_noise_refuses_unknown_words(wrong):
    words = {"site": at.hidden, "operator": "*", "law": Gaussian(1)} | wrong
    with pytest.raises((TypeError, ValueError)):
        Noise(**words)


def test_terms_of_any_noise():
    assert terms_of(None) == ()
    assert terms_of(A) == (A,)
    assert terms_of(A & B) == (A, B)
    assert terms_of(Zoneout(hidden=0.5)) == (Zoneout(hidden=0.5),)
    for wrong in (3, "hidden * Gaussian(1)", (A, B), Gaussian(1), at.hidden):
        with pytest.raises(TypeError):
            terms_of(wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1, 1.5, float("nan"), True, "0.1", None, 10**400])
@pytest.mark.parametrize("name", ["hidden", "cell"])
def test_zoneout_refuses_what_is_no_probability(name, wrong):
    with pytest.raises(ValueError, match=f"{name}.*0 <= |0 <= .*{name}") as error:
        Zoneout(**{name: wrong})
    assert repr(wrong) in str(error.value)


def test_zoneout_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0"):
        Zoneout()
