"""Every site and form of noise against the plain loop, and its gradients against differences."""

from itertools import cycle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cases import (
    ALL_KINDS,
    ROWS,
    cases,
    given_draws,
    is_learned,
    kinds_of,
    leaf_draws,
    make,
    plain_with_gradients,
    pulled_back,
    seeded,
    zeros,
)
from conftest import assert_close_to_float64, assert_gradients, assert_second_gradients
from noisin import parse
from noisin.noise import terms_of

T, B, F, H = 3, 2, 2, 3
LENGTHS = torch.tensor([2, T])

# Elman cells differ in a function of a number: each row meets one of them.
ELMAN = cycle(("tanh", "relu", "sigmoid"))
PAIRS = [
    (row, kind)
    for row, elman in zip(ROWS, ELMAN, strict=False)
    for kind in ("LSTM", "GRU", elman)
    if kind in kinds_of(row)
]


def test_every_form_is_among_the_rows():
    assert len(ROWS) == len(set(ROWS)) == 36
    assert len(PAIRS) == 36 * 3 - 3 - 4
    terms = [term for row in ROWS for term in terms_of(parse(row))]
    found = [t for t in terms if hasattr(t, "site")]
    weights = ("weight_ih", "weight_hh")
    forms = {(t.site.name, t.operator, t.estimate) for t in found}
    assert forms >= {("candidate", sign, "sample") for sign in "*+"}
    for estimate in ("sample", "preactivation"):
        assert forms >= {(site, sign, estimate) for site in weights for sign in "*+"}
    fed = {"input", "between", "recurrent"}
    assert fed <= {t.site.name for t in found if t.estimate == "preactivation"}
    assert fed == {t.site.name for t in found if t.gates == "untied"}
    holds = {(t.site.name, t.hold) for t in found if t.estimate == "sample"}
    every = ("step", "sequence", "cumulative")
    assert holds >= {(site, hold) for site in (*weights, "candidate") for hold in every}
    learned = {(t.site.name, t.law.std.per) for t in found if is_learned(t)}
    assert {per for site, per in learned if site in weights} == {"layer", "unit", "weight"}
    zoneouts = [t for t in terms if not hasattr(t, "site")]
    assert {(z.hidden > 0, z.cell > 0) for z in zoneouts} == {(1, 0), (0, 1), (1, 1)}


def layer_and_state(kind, row, batch=B, **options):
    """Return a layer of a row, and a state that is 0 nowhere."""
    torch.manual_seed(4)
    options = {"input_size": F, "hidden_size": H, "num_layers": 2, **options}
    layer = make(kind, **options, noise=row)
    dtype = layer.weight_hh_l0.dtype
    shapes = [z.shape for z in zeros(layer, torch.zeros(1, batch, 1))]
    hx = [seeded(*shape, seed=9 + i, dtype=dtype) for i, shape in enumerate(shapes)]
    return layer, tuple(h.requires_grad_() for h in hx)


def results_of(layer, x, hx, draws, lengths=None, path=None):
    """Return output, padded, and final states."""
    if lengths is not None:
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, final = layer(x, hx if layer.mode == "LSTM" else hx[0], draws=draws, path=path)
    output = output if lengths is None else pad_packed_sequence(output)[0]
    return [output, *(final if layer.mode == "LSTM" else (final,))]


def assert_plain(layer, x, hx, draws, lengths, results):
    """Compare results and all their gradients with the plain loop, by rule 7."""
    actual = pulled_back(results, [x, *hx, *layer.parameters(), *given_draws(layer, draws)])
    others = [
        plain_with_gradients(layer, x, hx, draws, lengths, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    assert_close_to_float64(actual, *others, pooled=True)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("row", "kind"), PAIRS)
def test_every_row_is_the_plain_loop(row, kind, bidirectional, packed):
    layer, hx = layer_and_state(kind, row, bidirectional=bidirectional)
    x, lengths = seeded(T, B, F).requires_grad_(), LENGTHS if packed else None
    draws = leaf_draws(layer, x.detach())
    assert_plain(layer, x, hx, draws, lengths, results_of(layer, x, hx, draws, lengths))


def is_by_formula(term):
    return getattr(term, "estimate", None) == "preactivation"


def go_together(terms):
    """Return whether terms may meet: one estimate at a place, and one zoneout."""
    estimates = {}
    for term in terms:
        if hasattr(term, "site"):
            estimates.setdefault(term.site.name, set()).add(term.estimate)
    zoneouts = sum(not hasattr(term, "site") for term in terms)
    return zoneouts <= 1 and all(len(found) == 1 for found in estimates.values())


@settings(max_examples=20)
@given(cases(kinds=ALL_KINDS, dtypes=(torch.float32,)), st.data())
def test_two_rows_together_are_the_plain_loop(case, data):
    """In every layout, with projections, without biases, and from the state 0."""
    layers = case.options["num_layers"]
    able = [r for r in ROWS if case.kind in kinds_of(r) and (layers > 1 or "between" not in r)]
    first, second = data.draw(st.permutations(able))[:2]
    row = f"{first} & {second}"
    terms = terms_of(parse(row))
    assume(go_together(terms))
    if case.options["dropout"] > 0:  # a term at ``between``, drawn as it is
        assume(not any(t.site.name == "between" for t in terms if is_by_formula(t)))
    layer = case.ours(noise=row)
    x, hx = case.tensors()
    input, state = case.arguments(x, hx)
    draws = leaf_draws(layer, input)
    output, final = layer(input, state, draws=draws)
    results = [case.time_major(output), *case.batched(final)]
    assert_plain(layer, x, hx, draws, case.lengths, results)


def small(row):
    """Return a small layer in which a row shows all it does, an input and a state."""
    able = kinds_of(row)
    kind = "GRU" if "GRU" in able and ("untied" in row or "candidate" in row) else able[-1]
    options = {"input_size": 1, "hidden_size": 2, "bias": False, "dtype": torch.float64}
    options["num_layers"] = 2 if "between" in row or "[" in row else 1
    layer, hx = layer_and_state(kind, row, batch=1, **options)
    return layer, seeded(2, 1, 1, dtype=torch.float64), hx


@pytest.mark.parametrize("row", ROWS)
def test_all_gradients_are_central_differences(row):
    layer, x, hx = small(row)
    draws = leaf_draws(layer, x)
    learned = any(is_learned(term) for term in terms_of(layer.noise))

    def results(*_):
        # what a spread was multiplied into belongs to the spread of this evaluation
        return tuple(results_of(layer, x, hx, leaf_draws(layer, x) if learned else draws))

    leaves = (x.requires_grad_(), *hx, *layer.parameters())
    assert_gradients(results, leaves + (() if learned else tuple(given_draws(layer, draws))))


SECOND = [
    "weight_hh + Gaussian(0.3) & weight_ih * Gaussian(0.3)",
    "weight_hh * Gaussian(Learned(0.3, per='weight'))",
    "weight_hh + Gaussian(0.3) @ cumulative & recurrent * Gaussian(0.3) @ untied",
    "weight_hh + Gaussian(0.3) @ preactivation & recurrent * Gaussian(0.3) @ preactivation",
]


@pytest.mark.parametrize("row", SECOND)
def test_second_derivatives_are_central_differences(row):
    layer, x, hx = small(row)
    draws = leaf_draws(layer, x)
    learned = "Learned" in row

    def results(*_):
        again = leaf_draws(layer, x) if learned else draws
        return tuple(results_of(layer, x, hx, again, path="reference"))

    assert_second_gradients(results, (x.requires_grad_(), *hx, *layer.parameters()))


METHODS = [
    "weight_noise(0.3)",
    "weight_noise(0.3, multiplicative=True, hold='sequence')",
    "drop_connect(keep=0.6)",
    "drop_connect(keep=0.6, hold='sequence')",
    "recurrent_dropout(keep=0.6)",
    "recurrent_dropout(keep=0.6, hold='sequence')",
    "adaptive_weight_noise(0.3, floor=0.1)",
    "variational(input=0.7, recurrent=0.6, output=0.7, between=0.7)",
    "variational(input=0.7, recurrent=0.6, output=0.7, between=0.7, untied=True)",
    "variational(input=0.7, untied=True) & drop_connect(keep=0.6)",
    "zaremba(keep=0.6, num_layers=2)",
]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("method", METHODS)
def test_methods_are_the_plain_loop(method, kind):
    layer, hx = layer_and_state(kind, method)
    x = seeded(T, B, F).requires_grad_()
    draws = leaf_draws(layer, x.detach())
    assert_plain(layer, x, hx, draws, None, results_of(layer, x, hx, draws))
