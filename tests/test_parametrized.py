"""Layers that torch parametrizes, before or behind ``regularize``: on and off in any order."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import noisin
from cases import seeded
from conftest import assert_bit_equal
from noisin import regularize, strip

X = seeded(4, 2, 3)
NOISE = {"LSTM": "hidden * Gaussian(0.5)", "Linear": "input * Gaussian(0.5)"}
NAMES = {"LSTM": "weight_hh_l0", "Linear": "weight"}


class Own(nn.LSTM):
    """A subclass of the user's."""


def made(kind, first):
    """Return a layer with noise that is parametrized, in one order or the other."""
    torch.manual_seed(0)
    layer = {"LSTM": nn.LSTM, "Linear": nn.Linear, "Own": Own}[kind](3, 5)
    kind = "Linear" if kind == "Linear" else "LSTM"

    def noisy():
        regularize(layer, NOISE[kind], where="")

    def parametrized():
        parametrizations.weight_norm(layer, NAMES[kind])

    for step in (noisy, parametrized) if first == "noise" else (parametrized, noisy):
        step()
    return layer, NAMES[kind]


def called(layer):
    found = layer(X)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("kind", ["LSTM", "Linear", "Own"])
@pytest.mark.parametrize("first", ["noise", "parametrization"])
def test_it_comes_off_and_leaves_the_noisy_layer(kind, first):
    layer, name = made(kind, first)
    assert not torch.equal(called(layer), called(layer))
    expected = called(layer.eval())
    parametrize.remove_parametrizations(layer, name)
    assert isinstance(layer, noisin.Linear if kind == "Linear" else noisin.LSTM)
    assert type(layer).__name__ == kind
    torch.testing.assert_close(called(layer), expected)
    assert not torch.equal(called(layer.train()), called(layer))
    assert type(strip(layer)) is {"LSTM": nn.LSTM, "Linear": nn.Linear, "Own": Own}[kind]


@pytest.mark.parametrize("kind", ["LSTM", "Linear", "Own"])
@pytest.mark.parametrize("first", ["noise", "parametrization"])
@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_stripped_stays_parametrized(kind, first, inplace):
    layer, name = made(kind, first)
    with torch.no_grad():  # a layer that holds results of a training step is not copied
        expected = called(layer.eval())
    plain = strip(layer.train(), inplace=inplace).eval()
    assert (plain is layer) == inplace
    assert not isinstance(plain, noisin.noisy.Noisy)
    assert parametrize.is_parametrized(plain, name)
    assert_bit_equal(called(plain), expected)
    parametrize.remove_parametrizations(plain, name)
    assert type(plain) is {"LSTM": nn.LSTM, "Linear": nn.Linear, "Own": Own}[kind]


@pytest.mark.parametrize("first", ["noise", "parametrization"])
def test_a_copy_is_its_own(first):
    layer, name = made("LSTM", first)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.parametrizations[name].original1.zero_()
    assert not torch.equal(called(other.eval()), called(layer.eval()))
    assert regularize(other, None).noise is None
    assert layer.noise is not None


def test_each_strip_makes_a_class_of_its_own():
    layer, name = made("LSTM", "noise")
    with torch.no_grad():
        expected = called(layer.eval())
        first = strip(layer)
        parametrize.remove_parametrizations(first, name)
        assert_bit_equal(called(strip(layer)), expected)
        parametrizations.weight_norm(layer, "weight_ih_l0")
        again = strip(layer)
        assert parametrize.is_parametrized(again, "weight_ih_l0")
        torch.testing.assert_close(called(again), expected)


class ParametrizedLSTM(nn.LSTM):
    """A class of the user's that is called as torch calls its own."""

    @property
    def size(self):
        return self.hidden_size

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_name_alone_makes_no_parametrization():
    layer = regularize(ParametrizedLSTM(3, 5), NOISE["LSTM"])
    assert not torch.equal(called(layer), called(layer))
    assert type(strip(layer)) is ParametrizedLSTM


def test_replicas_of_it_run_together():
    layer = noisin.GRU(3, 5, noise=NOISE["LSTM"])
    parametrize.register_parametrization(layer, "weight_hh_l0", nn.Tanh())
    found = [
        noisin.Replicas(layer, seeds=[1, 2], together=together)(X)[0] for together in (True, False)
    ]
    torch.testing.assert_close(*found)
    assert not torch.equal(*found[0])
