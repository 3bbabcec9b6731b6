"""Strength: what it does to each term, to layers of every kind, and over training."""

import copy
import math

import pytest
import torch
from torch import nn

from conftest import assert_bit_equal
from noisin import (
    GRU,
    LSTM,
    RNN,
    Embedding,
    Gaussian,
    Linear,
    Recurrence,
    Replicas,
    StrengthSchedule,
    at,
    parse,
    regularize,
    sampling,
    strip,
)
from noisin.laws import LAWS
from noisin.schedule import linear
from noisin.strength import scaled

X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))


def law_text(name):
    return "Bernoulli(keep=0.8)" if name == "Bernoulli" else f"{name}(0.5)"


@pytest.mark.parametrize("name", LAWS)
def test_a_law_keeps_its_mean_and_kind_and_scales_its_spread(name):
    noise = parse(f"hidden * {law_text(name)}")
    for strength in (0.25, 1.0, 3.0):
        law = scaled(noise, strength).law
        assert type(law) is type(noise.law)
        assert law.variance == pytest.approx(strength**2 * noise.law.variance, rel=1e-12)
        assert law.mean == 0


def test_the_other_parameters_of_a_law_stay():
    noise = parse("hidden * Gamma(0.5, shape=3.0) & input + Beta(0.2, a=2.0, b=3.0) @ sequence")
    assert str(scaled(noise, 2.0)) == (
        "hidden * Gamma(1.0, shape=3.0) & input + Beta(0.4, a=2.0, b=3.0) @ sequence"
    )


def test_zoneout_scales_its_probabilities():
    assert str(scaled(parse("Zoneout(hidden=0.1, cell=0.4)"), 0.5)) == (
        "Zoneout(hidden=0.05, cell=0.2)"
    )
    with pytest.raises(ValueError, match=r"strength 4.0 of Zoneout.*cell.*got 1.6"):
        scaled(parse("Zoneout(hidden=0.1, cell=0.4)"), 4.0)


def test_zero_leaves_nothing_and_learned_spreads_are_left():
    assert scaled(None, 0.0) is None
    assert scaled(parse("hidden * Gaussian(0.5) & Zoneout(hidden=0.1)"), 0.0) is None
    learned = parse("hidden * Gaussian(Learned(0.5))")
    assert scaled(learned, 0.0) == scaled(learned, 3.0) == learned
    both = parse("hidden * Gaussian(0.5) & hidden * Gaussian(Learned(0.5))")
    assert str(scaled(both, 2.0)) == "hidden * Gaussian(1.0) & hidden * Gaussian(Learned(0.5))"
    with pytest.raises(ValueError, match=r"must be > 0 beside a learned spread, got 0 for hidden"):
        scaled(both, 0.0)


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf, "1", None, True, 10**400])
def test_a_strength_out_of_range_is_refused_and_nothing_changes(strength):
    layer = LSTM(4, 6, noise="hidden * Gaussian(0.5)")
    with pytest.raises(ValueError, match=r"strength must be a finite number >= 0, got"):
        layer.strength = strength
    assert layer.strength == 1


def test_a_strength_beyond_all_numbers_is_refused():
    layer = LSTM(4, 6, noise="hidden * Bernoulli(keep=0.5)")
    with pytest.raises(ValueError, match=r"strength 1e\+200 of hidden \* Bernoulli"):
        layer.strength = 1e200
    assert layer.strength == 1


def test_noise_that_its_strength_does_not_allow_is_refused():
    layer = LSTM(4, 6, noise="hidden * Gaussian(0.5)")
    layer.strength = 3.0
    with pytest.raises(ValueError, match=r"strength 3.0 of Zoneout"):
        layer.noise = "Zoneout(hidden=0.5)"
    assert str(layer.noise) == "hidden * Gaussian(0.5)"


LAYERS = {
    "LSTM": lambda noise: LSTM(4, 4, num_layers=2, noise=f"hidden{noise} & between{noise}"),
    "GRU": lambda noise: GRU(4, 4, noise=f"weight_hh{noise} & recurrent{noise} @ sequence"),
    "sigmoid": lambda noise: RNN(4, 4, nonlinearity="sigmoid", noise=f"hidden{noise}"),
    "Linear": lambda noise: Linear(4, 4, noise=f"input{noise} & weight{noise}"),
    "Recurrence": lambda noise: Recurrence(nn.GRUCell(4, 4), 4, 4, noise=f"hidden{noise}"),
}


def run(layer, x=X):
    torch.manual_seed(3)
    out = layer(x, torch.zeros(3, 4)) if isinstance(layer, Recurrence) else layer(x)
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_at_a_strength_is_the_layer_of_the_scaled_noise(kind):
    torch.manual_seed(0)
    layer = LAYERS[kind](" * Gaussian(0.5)")
    torch.manual_seed(0)
    other, plain = LAYERS[kind](" * Gaussian(0.125)"), copy.deepcopy(layer).eval()
    layer.strength = 0.25
    assert_bit_equal(run(layer), run(other))
    assert not torch.equal(run(layer), run(plain))
    layer.strength = 0
    assert_bit_equal(run(layer), run(plain))
    layer.strength = 1
    assert not torch.equal(run(layer), run(other))


def test_moments_follow_in_evaluation_too():
    layer = RNN(4, 6, noise="hidden * Gaussian(0.5) @ moments")
    other = copy.deepcopy(layer).eval()
    other.noise = "hidden * Gaussian(0.25) @ moments"
    layer.eval().strength = 0.5
    assert_bit_equal(layer(X)[0], other(X)[0])


def test_torchs_own_dropout_stays():
    layer = LSTM(4, 6, num_layers=2, dropout=0.5, noise="hidden * Gaussian(0.5)")
    layer.strength = 0
    assert str(layer.acting()) == "between * Bernoulli(keep=0.5)"
    assert not torch.equal(layer(X)[0], layer(X)[0])


def test_draws_are_those_of_the_strength():
    layer = LSTM(4, 6, noise="hidden + Gaussian(0.5)")
    whole = layer.draw(X, generator=torch.Generator().manual_seed(5))["hidden_l0"][0]
    layer.strength = 0.5
    half = layer.draw(X, generator=torch.Generator().manual_seed(5))
    assert_bit_equal(half["hidden_l0"][0], whole / 2)
    assert layer(X, draws=half)[0].shape == (5, 3, 6)
    layer.strength = 0
    assert layer.draw(X) == {}


def test_it_is_shown_and_stripped():
    layer = LSTM(4, 6, noise="hidden * Gaussian(0.5)")
    layer.strength = 0.5
    assert repr(layer) == "LSTM(4, 6, noise=hidden * Gaussian(0.5), strength=0.5)"
    plain = strip(layer)
    assert type(plain) is nn.LSTM
    assert "_strength" not in vars(plain)


@pytest.mark.parametrize("together", [False, True])
def test_replicas_keep_their_own(together):
    layers = [LSTM(4, 6, noise="hidden * Gaussian(0.5)") for _ in range(3)]
    for layer, strength in zip(layers, (1.0, 0.5, 0.0), strict=True):
        layer.load_state_dict(layers[0].state_dict())
        layer.strength = strength
    replicas = Replicas(layers, seeds=[1, 1, 1], together=together)
    outputs, _ = replicas(X)
    alone, _ = Replicas(layers, seeds=[1, 1, 1], together=False)(X)
    torch.testing.assert_close(outputs, alone)
    assert_bit_equal(outputs[2], copy.deepcopy(layers[0]).eval()(X)[0])
    assert not torch.equal(outputs[0], outputs[1])


class Own(Gaussian):
    """A law of the user's own, which cannot be made from its standard deviation."""

    def __init__(self):
        super().__init__(0.5)


def test_a_law_that_cannot_be_scaled_works_at_strength_1():
    noise = at.hidden * Own()
    assert scaled(noise, 1.0) is noise
    layer = LSTM(4, 6, noise=noise)
    assert not torch.equal(run(layer), run(copy.deepcopy(layer).eval()))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = Embedding(7, 4, noise="row * Bernoulli(keep=0.5) @ sequence")
        self.rnn = nn.LSTM(4, 4)
        self.read = Linear(4, 2)
        regularize(self.rnn, "hidden * Gaussian(1.0)")


def test_a_schedule_sets_every_noisy_layer():
    model = Model()
    schedule = StrengthSchedule(model, linear(1.0, 0.0, 4))
    found = []
    for _ in range(6):
        found.append((model.words.strength, model.rnn.strength, model.read.strength))
        schedule.step()
    assert found == [(s, s, 1.0) for s in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0)]
    with sampling(model.rnn):
        assert_bit_equal(run(model.rnn), run(strip(model.rnn)))


def test_a_schedule_goes_on():
    model, again = Model(), Model()
    first = StrengthSchedule(model, linear(0.0, 1.0, 10))
    for _ in range(3):
        first.step()
    second = StrengthSchedule(again, linear(0.0, 1.0, 10))
    assert again.rnn.strength == 0
    second.load_state_dict(first.state_dict())
    assert again.rnn.strength == second.strength == model.rnn.strength == pytest.approx(0.3)
    second.step()
    assert again.rnn.strength == pytest.approx(0.4)


def test_a_schedule_refuses():
    with pytest.raises(ValueError, match=r"must have a layer with noise .* not learned, got LSTM"):
        StrengthSchedule(LSTM(4, 6), linear(0.0, 1.0, 10))
    learned = LSTM(4, 6, noise="hidden * Gaussian(Learned(0.5))")
    with pytest.raises(ValueError, match="whose standard deviation is not learned, got LSTM"):
        StrengthSchedule(learned, linear(0.0, 1.0, 10))
    with pytest.raises(ValueError, match=r"linear: steps must be > 0, got 0"):
        linear(0.0, 1.0, 0)
    for start, end in ((-1.0, 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match=r"linear: (start|end) must be a finite number >= 0"):
            linear(start, end, 5)
    model = nn.Sequential(LSTM(4, 6, noise="hidden * Gaussian(1)"), LSTM(6, 6))
    model[1].noise = "Zoneout(hidden=0.6)"
    schedule = StrengthSchedule(model, lambda step: 1.0 + step)
    with pytest.raises(ValueError, match="1, step 1: "):
        schedule.step()
    assert (model[0].strength, model[1].strength, schedule.steps) == (1.0, 1.0, 0)
    schedule = StrengthSchedule(Model(), lambda step: 1 - step)
    schedule.step()
    with pytest.raises(ValueError, match=r"words, step 2: strength must be .* >= 0, got -1"):
        schedule.step()


@pytest.mark.parametrize("noise", ["hidden * Bernoulli(keep=0.5)", "hidden * Gaussian(0.5)"])
@pytest.mark.parametrize("strength", [1e-7, 1e-9, 1e-170, 1e-320, 5e-324])
def test_noise_fades_to_nothing(noise, strength):
    layer, x = LSTM(3, 4, noise=noise), torch.randn(2, 2, 3)
    layer.strength = strength
    torch.testing.assert_close(layer(x)[0], layer.eval()(x)[0])
