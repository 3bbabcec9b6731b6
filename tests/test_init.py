"""Initialization and diagnostics of recurrent weights."""

import inspect
import re

import numpy as np
import pytest
import torch

import noisin
from conftest import assert_bit_equal, assert_close_to_float64, assert_mean, assert_variance
from noisin import diagnostics, init


def test_each_unit_keeps_so_many_connections_at_random():
    def filled():
        return init.sparse_(torch.empty(300, 63), 15, 0.1, torch.Generator().manual_seed(1))

    weight = filled()
    kept = weight != 0
    assert kept.sum(1).tolist() == [15] * 300
    assert len(kept.unique(dim=0)) == 300  # not the same places for all
    values = weight[kept]
    assert len(values) == 4500
    assert_mean(values, 0, 0.1)
    assert_variance(values, 0.01, 0)
    assert torch.equal(weight, filled())


@pytest.mark.parametrize("nonzeros", [0, 64, 2.5])
def test_bad_connections_are_refused(nonzeros):
    with pytest.raises(ValueError, match=f"within 1 … 63, got {nonzeros}"):
        init.sparse_(torch.zeros(5, 63), nonzeros, std=1)


def test_a_number_of_numpys_is_one():
    assert (init.sparse_(torch.zeros(5, 63), np.int64(3), std=1) != 0).sum() == 15


@pytest.mark.parametrize("std", [0, -1, float("inf"), float("nan")])
def test_bad_spreads_are_refused(std):
    with pytest.raises(ValueError, match=f"std must be a finite number > 0, got {std}"):
        init.sparse_(torch.zeros(5, 63), 2, std=std)


@pytest.mark.parametrize("gates", [1, 3, 4])
def test_radius_of_each_gate_is_that_of_numpy(gates):
    torch.manual_seed(gates)
    weight = torch.randn(gates * 31, 31)
    blocks = weight.double().numpy().reshape(gates, 31, 31)
    expected = torch.tensor([np.abs(np.linalg.eigvals(b)).max() for b in blocks])
    got = diagnostics.spectral_radius(weight)
    assert got.dtype == torch.float64
    assert_close_to_float64(got.float(), expected.float(), expected)
    direction = weight / weight.norm()
    init.spectral_radius_(weight, 1.2)
    scaled = diagnostics.spectral_radius(weight)
    asked = torch.full((gates,), 1.2, dtype=torch.float64)
    assert_close_to_float64(scaled.float(), asked.float(), asked)
    if gates == 1:  # only the length changed
        assert_close_to_float64(weight / weight.norm(), direction, direction.double())


def test_radius_of_a_known_matrix():
    """A rotation by 90 degrees times 2 has complex eigenvalues of modulus 2."""
    weight = torch.tensor([[0.0, -2.0], [2.0, 0.0]])
    assert diagnostics.spectral_radius(weight).float().tolist() == [2.0]


def test_what_has_no_radius_is_refused():
    unchecked = inspect.unwrap(diagnostics.spectral_radius)  # by the tests' own checks of shape
    for size in ([7, 3], [5], [2, 5, 5], [0, 0]):
        rule = rf"stack of square blocks, \[G·H, H\]; got a tensor of shape {re.escape(str(size))}"
        with pytest.raises(ValueError, match=rule):
            unchecked(torch.zeros(size))
    with pytest.raises(ValueError, match="every block must have a radius > 0"):
        init.spectral_radius_(torch.zeros(3, 3), 1.0)
    with pytest.raises(ValueError, match="radius must be a finite number > 0, got 0"):
        init.spectral_radius_(torch.eye(3), 0)
    with pytest.raises(ValueError, match="radius must be a finite number > 0, got inf"):
        init.spectral_radius_(torch.eye(3), float("inf"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("squared", [False, True])
def test_weights_that_diverged_have_no_radius(number, squared):
    weight = torch.randn(12, 4)
    weight[5, 2] = number
    found = diagnostics.spectral_radius(weight, squared=squared)
    assert found.isnan().tolist() == [False, True, False]
    expected = diagnostics.spectral_radius(torch.cat([weight[:4], weight[8:]]), squared=squared)
    assert_bit_equal(found[[0, 2]], expected)
    before = weight.clone()
    with pytest.raises(ValueError, match=r"every block must have a radius > 0, got .*nan"):
        init.spectral_radius_(weight, 1.0)
    torch.testing.assert_close(weight, before, equal_nan=True)


@pytest.mark.parametrize("projected", [1, 3, 4, 7])
@pytest.mark.parametrize("squared", [False, True])
def test_layers_with_projected_states_are_left_out(projected, squared):
    """Even where their weights could be cut into squares, more of them than gates."""
    layer = noisin.LSTM(4, 8, num_layers=2, proj_size=projected)
    other = noisin.GRU(4, 8), noisin.LSTM(4, 8, bidirectional=True)
    radii = diagnostics.recurrent_radii(torch.nn.Sequential(layer, *other), squared=squared)
    assert [len(gates) for gates in radii] == [3, 4]


def test_radii_of_torchs_layers_are_those_of_ours():
    layer = noisin.GRU(4, 8, num_layers=2)
    plain = noisin.strip(layer)
    assert diagnostics.recurrent_radii(plain) == diagnostics.recurrent_radii(layer)
    unchecked = inspect.unwrap(diagnostics.spectral_radius)  # by the tests' own checks of shape
    with pytest.raises(TypeError, match=r"must be a matrix, such as layer.weight_hh_l0; got GRU"):
        unchecked(plain)


def test_gradient_norms_of_a_linear_network_are_powers():
    """With a rectifier that never bends and W = r·I the gradient at lag k is rᵏ times the last."""
    layer = noisin.RNN(2, 3, nonlinearity="relu", bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(0.5 * torch.eye(3))
        layer.weight_ih_l0.fill_(1.0)
    x = torch.ones(6, 1, 2, dtype=torch.float64)
    state = (torch.ones(1, 1, 3, dtype=torch.float64),)
    norms = diagnostics.gradient_norms(layer.stack, layer.all_weights, x, state)
    expected = 3**0.5 * 0.5 ** torch.arange(6, dtype=torch.float64)
    assert_close_to_float64(norms[0], expected, expected)


def test_gradient_norms_of_layers_and_refusal():
    layer = noisin.LSTM(2, 3, num_layers=2, noise="hidden * Gaussian(1)")
    x, state = torch.randn(5, 4, 2), (torch.zeros(2, 4, 3), torch.zeros(2, 4, 3))
    norms = diagnostics.gradient_norms(layer.stack, layer.all_weights, x, state)
    assert norms.shape == (2, 5)
    assert (norms > 0).all()
    with torch.no_grad():  # as one evaluates
        again = diagnostics.gradient_norms(layer.stack, layer.all_weights, x, state)
    assert torch.equal(norms, again)  # of the plain network, whatever the layer's noise
    both = noisin.GRU(2, 3, bidirectional=True)
    with pytest.raises(ValueError, match="in one direction, got two"):
        diagnostics.gradient_norms(both.stack, both.all_weights, x, (torch.zeros(2, 4, 3),))
