"""Where time is in the input of layers that see all steps at once."""

import pytest
from torch import nn

import noisin
from noisin import regularize


def test_the_dimension_of_time_is_kept_or_given():
    layer = noisin.Linear(4, 3, noise="weight + Gaussian(1)", time_dim=1)
    assert regularize(layer, "weight * Gaussian(1)", where="").time_dim == 1
    assert regularize(layer, "weight * Gaussian(1)", where="", time_dim=0).time_dim == 0
    assert regularize(nn.Linear(4, 3), "weight * Gaussian(1)", where="").time_dim == 0


def test_a_layer_that_was_never_told_is_asked_later():
    model = nn.Sequential(nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3))
    regularize(model, None, where="1")
    with pytest.raises(ValueError, match="time_dim must say"):
        regularize(model, "weight * Gaussian(1)", where="1")
    regularize(model, "weight * Gaussian(1)", where="1", time_dim=1)
    assert regularize(model, "weight + Gaussian(1)", where="1")[1].time_dim == 1


@pytest.mark.parametrize("wrong", ["a", True, 1.0])
def test_a_dimension_is_a_number(wrong):
    model = nn.Sequential(nn.Linear(5, 3))
    with pytest.raises(ValueError, match="time_dim must be the number of a dimension"):
        regularize(model, None, where="0", time_dim=wrong)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="time_dim must be the number of a dimension"):
        noisin.Linear(5, 3, time_dim=wrong)


@pytest.mark.parametrize(
    ("noise", "free"),
    [
        ("input * Gaussian(1) @ sequence", "input * Gaussian(1)"),
        ("weight + Gaussian(1)", "weight * Gaussian(1) @ sequence"),
        ("weight + Gaussian(1) @ preactivation @ sequence", "weight + Gaussian(1) @ preactivation"),
        ("weight + Gaussian(1) @ moments", "input * Gaussian(1) @ moments"),  # while sampling
    ],
)
def test_where_time_is_must_be_told_in_a_model_with_the_batch_first(noise, free):
    model = nn.Sequential(nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"^1: time_dim must say .* and 0 is batch_first"):
        regularize(model, noise, where="1")
    assert type(model[1]) is nn.Linear
    regularize(model, free, where="1")
    assert regularize(model, noise, where="1", time_dim=1)[1].time_dim == 1
