"""Words under propagated noise: the variance of the state goes from window to window."""

import pytest
import torch

from conftest import assert_bit_equal
from noisin import sampling, strip
from noisin.propagation import Moments
from test_words import check_hand_count, task
from test_words import corpus as corpus  # a fixture


@pytest.mark.parametrize("window", [1, 7, 256])
@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_moments_go_on_from_window_to_window(corpus, window, cell):
    """Mean and variance of the state are carried, in scores and in training."""
    noise = "recurrent * Bernoulli(keep=0.5) @ moments"
    one = task(corpus, cell=cell, noise=noise, init_uniform=0.8)
    plain = task(corpus, cell=cell, noise="none", init_uniform=0.8)
    assert one.scores("test", (0,)) != plain.scores("test", (0,))
    check_hand_count(one, corpus, window)


@pytest.mark.parametrize("noise", ["hidden * Gaussian(0.5)", "output * Gaussian(0.5)"])
def test_a_stripped_model_computes_what_it_did(corpus, noise):
    model, ids = task(corpus, noise=noise).model.eval(), torch.tensor([[1, 2], [3, 4]])
    plain = strip(model)
    assert type(plain.rnn) is torch.nn.LSTM
    assert_bit_equal(plain(ids)[1], model(ids)[1])


@pytest.mark.parametrize(
    ("noise", "carried"),
    [
        ("output * Gaussian(0.5) @ moments", False),  # the head's
        ("input * Gaussian(0.5) @ moments", True),
        ("none", False),
    ],
)
def test_moments_are_asked_of_layers_that_have_them(corpus, noise, carried):
    model = task(corpus, noise=noise).model.eval()
    ids = torch.tensor([[1, 2], [3, 4]])
    assert any(isinstance(part, Moments) for part in model(ids)[1]) == carried
    with sampling(model):
        assert not any(isinstance(part, Moments) for part in model(ids)[1])
