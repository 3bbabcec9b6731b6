"""Penalties against sums by hand, one number at a time."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import noisin
from cases import make, seeded
from conftest import assert_bit_equal, assert_close_to_float64, assert_gradients
from models import Tagger
from noisin import penalties, regularize, strip

T, B, F, H = 5, 3, 2, 4
SIZES = {"l1": abs, "l2": lambda number: number * number}
KINDS = ("LSTM", "GRU", "tanh", "relu")


def named(model, *names):
    return [dict(model.named_parameters())[name] for name in names]


def assert_is_sum(actual, name, weighted):
    """Compare with Σ λ Σ size(w), added up number by number in float64."""
    total = sum(
        strength * SIZES[name](number)
        for strength, matrix in weighted
        for number in matrix.detach().double().flatten().tolist()
    )
    ref64 = torch.tensor(total, dtype=torch.float64)
    assert_close_to_float64(actual.detach(), ref64.to(actual.dtype), ref64)


def deep(package=nn, **kwargs):
    """Return a model of two recurrent layers of two kinds, and two linear ones."""
    torch.manual_seed(0)
    parts = {
        "lstm": package.LSTM(F, H, 2, bidirectional=True, proj_size=3, **kwargs),
        "linear": package.Linear(6, H, **kwargs),
        "rnn": package.RNN(H, H, **kwargs),
        "read": package.Linear(H, 3, bias=False, **kwargs),
        "words": package.Embedding(5, F),
    }
    return nn.ModuleDict(parts)


ENDS = ("l0", "l0_reverse", "l1", "l1_reverse")
MATRICES = {
    "input": [*(f"lstm.weight_ih_{end}" for end in ENDS), "rnn.weight_ih_l0"],
    "recurrent": [*(f"lstm.weight_hh_{end}" for end in ENDS), "rnn.weight_hh_l0"],
    "output": ["linear.weight", "read.weight"],
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("package", [nn, noisin])
@pytest.mark.parametrize("kind", MATRICES)
def test_each_kind_of_matrix_is_a_sum_by_hand(kind, package, name):
    model = deep(package)
    value = getattr(penalties, name)(model, **{kind: 0.3})
    assert value.shape == ()
    assert_is_sum(value, name, [(0.3, matrix) for matrix in named(model, *MATRICES[kind])])


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("package", [nn, noisin])
def test_a_parametrized_matrix_counts_as_it_acts(package, name):
    model = deep(package)
    expected = {kind: named(model, *MATRICES[kind]) for kind in ("recurrent", "output")}
    for kind in expected:  # all of them: each is made anew whenever it is asked for
        for matrix in MATRICES[kind]:
            module, _, weight = matrix.rpartition(".")
            nn.utils.parametrizations.weight_norm(model[module], weight)
    for kind, matrices in expected.items():
        value = getattr(penalties, name)(model, **{kind: 0.3})
        assert_is_sum(value, name, [(0.3, one) for one in matrices])
    value.backward()
    assert model["read"].parametrizations.weight.original1.grad is not None


@pytest.mark.parametrize("name", SIZES)
def test_the_kinds_add_up(name):
    model, strengths = deep(), {"input": 0.1, "recurrent": 2, "output": 0.7}
    value = getattr(penalties, name)(model, **strengths)
    weighted = [
        (strength, matrix)
        for kind, strength in strengths.items()
        for matrix in named(model, *MATRICES[kind])
    ]
    assert len(weighted) == 12
    assert_is_sum(value, name, weighted)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_may_be_the_layer(kind, name):
    layer = make(kind, F, H, package=nn, dtype=torch.float64)
    value = getattr(penalties, name)(layer, recurrent=1)
    assert value.dtype == torch.float64
    assert_is_sum(value, name, [(1, layer.weight_hh_l0)])


@pytest.mark.parametrize("name", SIZES)
def test_only_what_is_penalized_gets_a_gradient(name):
    """No bias, no projection and no embedding does."""
    model = deep()
    getattr(penalties, name)(model, input=1, recurrent=1, output=1).backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    assert found == {matrix for names in MATRICES.values() for matrix in names}
    for path in found:
        weight = model.get_parameter(path)
        expected = weight.sign() if name == "l1" else 2 * weight
        assert_bit_equal(weight.grad, expected.detach())


@pytest.mark.parametrize("name", SIZES)
def test_a_matrix_in_two_places_counts_once(name):
    penalty = getattr(penalties, name)
    layer = nn.LSTM(H, H)
    twice = nn.ModuleDict({"a": layer, "b": nn.ModuleList([layer])})
    assert_bit_equal(penalty(twice, recurrent=1), penalty(layer, recurrent=1))
    first, second = nn.Linear(H, H), nn.Linear(H, H)
    second.weight = first.weight
    tied = nn.Sequential(first, second)
    assert_bit_equal(penalty(tied, output=1), penalty(first, output=1))
    one, other = nn.GRU(H, H), nn.GRU(H, H)
    other.weight_hh_l0 = one.weight_hh_l0
    shared = nn.ModuleList([one, other])
    assert_bit_equal(penalty(shared, recurrent=1), penalty(one, recurrent=1))
    assert_is_sum(penalty(shared, input=1), name, [(1, one.weight_ih_l0), (1, other.weight_ih_l0)])


def test_weights_tied_to_an_embedding_count_as_output():
    model = Tagger(tied=True)
    assert_is_sum(penalties.l2(model, output=1), "l2", [(1, model.words.weight)])


@pytest.mark.parametrize("name", SIZES)
def test_noise_and_learned_spreads_are_not_penalized(name):
    """Penalties are on the weights as they are, clean, in training and in evaluation."""
    strengths = {"input": 1, "recurrent": 1, "output": 1}
    model, penalty = Tagger(), getattr(penalties, name)
    expected = penalty(model, **strengths)
    regularize(model, "weight_hh * Gaussian(Learned(0.5, per='weight')) & weight_ih + Gaussian(1)")
    regularize(model, "weight + Gaussian(Learned(0.5, per='weight'))", where="read")
    for one in (model.train(), model.eval(), strip(model)):
        assert_bit_equal(penalty(one, **strengths), expected)


def test_heads_are_outputs():
    head = noisin.GaussianHead(H, 3)
    assert_is_sum(penalties.l1(head, output=2), "l1", [(2, head.weight)])


class Loss(nn.Module):
    def __init__(self, penalty, model):
        super().__init__()
        self.penalty, self.model = penalty, model

    def forward(self):
        return self.penalty(self.model, input=0.3, recurrent=0.2, output=0.1)


@pytest.mark.parametrize("name", SIZES)
def test_gradients_are_the_differences(name):
    loss = Loss(getattr(penalties, name), deep().double())
    names = [f"model.{name}" for names in MATRICES.values() for name in names]
    weights = [loss.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert min(weight.abs().min() for weight in weights) > 1e-5  # |w| has a kink at 0
    assert_gradients(
        lambda *weights: torch.func.functional_call(
            loss, dict(zip(names, weights, strict=True)), ()
        ),
        tuple(weights),
    )


def test_the_gradient_of_l1_at_0_is_0():
    layer = nn.RNN(F, H)
    nn.init.zeros_(layer.weight_hh_l0)
    penalties.l1(layer, recurrent=1).backward()
    assert (layer.weight_hh_l0.grad == 0).all()


def test_half_of_weight_decay_is_the_lambda_of_l2():
    """What the docstring says of SGD, on the one matrix that is penalized."""
    results = []
    for decay in (0.0, 0.2):
        torch.manual_seed(0)
        layer = nn.RNN(F, H)
        optimizer = torch.optim.SGD([layer.weight_hh_l0], lr=0.5, weight_decay=decay)
        loss = layer(seeded(T, B, F))[0].sum()
        (loss if decay else loss + penalties.l2(layer, recurrent=0.1)).backward()
        optimizer.step()
        results.append(layer.weight_hh_l0.detach())
    ref64 = results[0].double()
    assert_close_to_float64(results[1], results[0], ref64)


WRONG = (-1, -1e-9, float("nan"), float("inf"), True, "1", None, 1j)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_strength_out_of_range_is_refused(wrong, kind, name):
    with pytest.raises(ValueError, match=f"{kind} must be a finite number >= 0, got"):
        getattr(penalties, name)(deep(), **{kind: wrong})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("strengths", [{}, {"input": 0}, {"input": 0.0, "output": 0}])
def test_no_strength_is_refused(strengths, name):
    with pytest.raises(ValueError, match="must be > 0, got"):
        getattr(penalties, name)(deep(), **strengths)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (nn.LSTM(F, H), "output"),
        (nn.Linear(F, H), "recurrent"),
        (nn.Embedding(F, H), "output"),
        (nn.ReLU(), "input"),
    ],
)
def test_a_model_without_such_matrices_is_refused(model, kind, name):
    got = f"{kind}=0.5 needs weights to penalize; got none in {type(model).__name__}"
    with pytest.raises(ValueError, match=got):
        getattr(penalties, name)(model, **{kind: 0.5})


def test_a_strength_is_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        penalties.l1(deep(), 0.1)


def mean(numbers):
    """Return the mean in float64, and rounded to float32."""
    ref64 = torch.tensor(sum(numbers) / len(numbers), dtype=torch.float64)
    return ref64.float(), ref64


COMPLEXITY = {
    "layer": "weight_hh + Gaussian(Learned(0.3)) @ sequence",
    "unit": 'weight_ih + Gaussian(Learned(0.3, per="unit"))',
    "weight": 'weight_hh[1] + Gaussian(Learned(0.3, per="weight")) & hidden * Gaussian(Learned(1))',
    "fixed beside": "weight_hh + Gaussian(Learned(0.3)) & weight_hh + Gaussian(0.4)",
}


@pytest.mark.parametrize("noise", COMPLEXITY.values(), ids=COMPLEXITY)
def test_complexity_is_the_divergence_from_the_prior(noise):
    model = noisin.LSTM(3, 4, num_layers=2, noise=noise, dtype=torch.float64)
    expected = 0.0
    for name, weight in model.named_parameters():
        rho = getattr(model, f"rho_{name}", None)
        if "rho" in name or rho is None:
            continue
        variance = torch.nn.functional.softplus(rho) ** 2 + (0.4**2 if "0.4" in noise else 0)
        own = Normal(weight, variance.sqrt().expand_as(weight))
        expected += kl_divergence(own, Normal(0.0, torch.full_like(weight, 0.2))).sum()
    found = penalties.complexity(model, 0.2)
    assert_close_to_float64(found, expected, expected)
    found.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "rho_weight" in n)


def test_complexity_draws_weights_and_spreads_to_the_prior():
    model = noisin.RNN(2, 3, noise='weight_hh + Gaussian(Learned(0.9, per="weight"))')
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        penalties.complexity(model, 0.2).backward()
        optimizer.step()
    assert model.weight_hh_l0.abs().max() < 1e-3
    assert model.spreads()["rho_weight_hh_l0"] == pytest.approx(0.2, rel=1e-3)
    assert penalties.complexity(model, 0.2).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("std", [0, -1.0, math.inf, math.nan, True, "0.1", None])
def test_complexity_refuses_what_is_no_spread(std):
    model = noisin.RNN(2, 3, noise="weight_hh + Gaussian(Learned(0.9))")
    with pytest.raises(ValueError, match="std must be a finite number > 0, got"):
        penalties.complexity(model, std)


@pytest.mark.parametrize(
    "noise", [None, "weight_hh + Gaussian(0.1)", "hidden * Gaussian(Learned(1))"]
)
def test_complexity_needs_a_learned_spread_on_a_matrix(noise):
    with pytest.raises(ValueError, match=r"learned spread, as in .*; got none in RNN"):
        penalties.complexity(noisin.RNN(2, 3, noise=noise), 0.1)


@pytest.mark.parametrize("size", [(T, B, H), (T, H), (B,)])
def test_activation_is_the_mean_square(size):
    h = seeded(*size)
    assert_close_to_float64(penalties.activation(h), *mean([v**2 for v in h.flatten().tolist()]))


@pytest.mark.parametrize(("dim", "given"), [(0, {}), (1, {"time_dim": 1}), (1, {"time_dim": -2})])
def test_temporal_is_the_mean_squared_change(dim, given):
    h = seeded(T, B, H)
    rows = h.unbind(dim)
    changes = [
        (after - before) ** 2
        for first, second in pairwise(rows)
        for before, after in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)
    ]
    assert len(changes) == T * B * H * (len(rows) - 1) // len(rows)
    assert_close_to_float64(penalties.temporal(h, **given), *mean(changes))


def test_a_single_step_does_not_change():
    h = seeded(1, B, H).requires_grad_()
    value = penalties.temporal(h)
    assert_bit_equal(value.detach(), torch.tensor(0.0))
    value.backward()
    assert (h.grad == 0).all()


@pytest.mark.parametrize("function", [penalties.activation, penalties.temporal])
def test_gradients_of_activations_are_the_differences(function):
    assert_gradients(function, (seeded(T, B, H, dtype=torch.float64).requires_grad_(),))


@pytest.mark.parametrize("dim", [3, -4, 7])
def test_a_dimension_that_is_none_is_refused(dim):
    with pytest.raises(ValueError, match=rf"time_dim .* got {dim} for \[5, 3, 4\]"):
        penalties.temporal(seeded(T, B, H), dim)
