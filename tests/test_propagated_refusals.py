"""What layers over moments refuse: paths, modules, values that are not finite or not alike."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import noisin
from conftest import assert_bit_equal
from noisin import GRU, LSTM, Linear, Moments, strip
from noisin.propagated import Propagation
from test_propagated import B, F, H, T, case


def test_refusals():
    layer, x = case("GRU", "recurrent * Gaussian(0.5) @ moments")
    for path in ("reference", "torch", "cpu"):
        with pytest.raises(ValueError, match="moments"):
            layer(x, path=path)
    with pytest.raises(ValueError, match="set noise = None first"):
        strip(layer)
    layer.noise = None
    assert isinstance(strip(layer), torch.nn.GRU)
    with pytest.raises(ValueError, match="rows of an Embedding"):
        noisin.Embedding(3, 4, noise="row * Gaussian(0.5) @ moments")
    with pytest.raises(ValueError, match="cannot look into its cell"):
        noisin.Recurrence(torch.nn.GRUCell(3, 4), 3, 4, noise="hidden * Gaussian(0.5) @ moments")


def test_what_is_not_finite_is_named():
    layer = LSTM(F, H, noise="hidden * Gaussian(0.5) @ moments")
    x, state = torch.zeros(T, B, F), torch.zeros(1, B, H)
    wrong = torch.full_like(state, torch.nan)
    layer(Moments(x, x), check=True)
    with pytest.raises(ValueError, match="variance of input must be finite"):
        layer(Moments(x, x / 0), check=True)
    with pytest.raises(ValueError, match="variance of c must be finite"):
        layer(x, (state, Moments(state, wrong)), check=True)
    gru = GRU(F, H, noise="hidden * Gaussian(0.5) @ moments")
    with pytest.raises(ValueError, match="mean of hx must be finite"):
        gru(x, Moments(wrong, state), check=True)


def test_moments_that_are_not_alike_are_refused():
    layer, x = GRU(F, H, noise="hidden * Gaussian(0.5) @ moments"), torch.zeros(T, B, F)
    for variance in (x[:, :1], x.double(), 0.0):
        for taker in (layer, Linear(F, 2)):
            with pytest.raises(ValueError, match=r"alike|two tensors"):
                taker(Moments(x, variance))
    state = torch.zeros(1, B, H)
    with pytest.raises(ValueError, match="alike"):
        layer(x, Moments(state, state.double()))
    packed = [
        pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        for lengths in ([3, 4, 1], [4, 3, 1])
    ]
    with pytest.raises(ValueError, match="packed alike"):
        layer(Moments(*packed))
    layer(Moments(packed[0], packed[0]))


def test_preactivation_does_not_take_moments():
    x = Moments(torch.zeros(T, B, F), torch.ones(T, B, F))
    for noise in (
        "weight_hh + Gaussian(0.1) @ preactivation",
        "input * Gaussian(0.1) @ preactivation",
    ):
        with pytest.raises(ValueError, match="got noise @ preactivation"):
            LSTM(F, H, noise=noise)(x)
    with pytest.raises(ValueError, match="got noise @ preactivation"):
        Linear(F, 2, noise="weight + Gaussian(0.1) @ preactivation")(x)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"own_variance": "no"}, "own_variance must be True or False, got 'no'"),
        ({"recurrent_mean": "a"}, "recurrent_mean must be a finite number, got 'a'"),
        ({"recurrent_mean": float("nan")}, "recurrent_mean must be a finite number, got nan"),
        ({"form": "exact"}, "form must be"),
    ],
)
def test_how_moments_are_propagated_is_checked(settings, rule):
    with pytest.raises((TypeError, ValueError), match=rule):
        Propagation(**settings)


def test_a_propagation_is_no_name():
    layer, x = case("GRU", "recurrent * Gaussian(0.5) @ moments")
    layer.propagation = "mixture"
    with pytest.raises(ValueError, match="must be a Propagation, got 'mixture'"):
        layer(x)


def test_a_state_of_moments_is_read_from_a_file(tmp_path):
    layer, x = case("GRU", "recurrent * Gaussian(0.5) @ moments")
    _, state = layer(x, return_moments=True)
    torch.save(state, tmp_path / "state.pt")
    assert_bit_equal(torch.load(tmp_path / "state.pt", weights_only=True), state)
