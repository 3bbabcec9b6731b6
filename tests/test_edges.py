"""What users meet at the edges: small types, odd sizes, wrong kinds, layers nobody calls."""

import copy
import pickle

import pytest
import torch
from torch import nn

from conftest import assert_bit_equal, assert_close_to_float64, assert_mean
from models import IDS
from noisin import (
    GRU,
    LSTM,
    RNN,
    Embedding,
    Law,
    Linear,
    Propagation,
    Recurrence,
    at,
    explain,
    regularize,
    sampling,
    strip,
)

NOISE = "hidden * Gaussian(0.5)"


def test_a_sigmoid_rnn_drops_out_without_noise():
    layer, x = RNN(3, 8, 2, nonlinearity="sigmoid", dropout=0.5), torch.randn(5, 2, 3)
    first, second = layer(x)[0], layer(x)[0]
    assert (first != second).any()
    draws = layer.draw(x)
    assert list(draws) == ["between_l0"]
    assert_bit_equal(layer(x, draws=draws)[0], layer(x, draws=draws)[0])
    with pytest.raises(ValueError, match="dropout must be below 1"):
        RNN(3, 8, 2, nonlinearity="sigmoid", dropout=1.0)(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_zoneout_keeps_with_its_probability_in_every_type(dtype):
    layer = RNN(1, 500, noise="Zoneout(hidden=0.002)").to(dtype)
    mask = layer.draw(torch.zeros(200, 20, 1, dtype=dtype))["zoneout_hidden_l0"][0]
    assert mask.dtype == dtype
    assert_mean(mask.double().flatten(), 0.002, (0.002 * 0.998) ** 0.5)  # N = 2,000,000


def test_fresh_noise_beside_held_noise_keeps_no_matrix_a_step():
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    noise = "weight_hh * Bernoulli(keep=0.5) @ sequence & weight_hh + Gaussian(0.1)"
    layer = RNN(4, 9, noise=noise)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(torch.randn(50, 2, 4))
    assert sum(t.numel() == 81 for t in held.values()) <= 3  # the stored one, and the held factor


def test_explain_counts_the_matrices_that_accumulate():
    (line,) = explain(RNN(10, 10, noise="weight_hh + Gaussian(0.1) @ cumulative"), time=7)
    assert line.memory == 7 * 100 * 4
    (line,) = explain(Linear(10, 6, noise="weight + Gaussian(0.1) @ cumulative"), time=7)
    assert line.memory == 7 * 60 * 4


def test_a_layer_whose_parent_only_reads_its_weights_is_refused():
    model = nn.MultiheadAttention(4, 2)
    with pytest.raises(ValueError, match="noise acts when a layer is called"):
        regularize(model, "weight + Gaussian(1)", where="out_proj")


def test_recurrence_checks_its_sizes():
    noise = "input * Gaussian(1) & hidden + Gaussian(1)"
    x, state = torch.randn(5, 2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"input must be \[T, B, 1\]"):
        Recurrence(nn.GRUCell(3, 4), 1, 4, noise=noise)(x, state)
    with pytest.raises(ValueError, match=r"h_t must be \[B, 1\], got \[2, 4\]"):
        Recurrence(nn.GRUCell(3, 4), 3, 1, noise=noise)(x, state)


def test_embedding_at_its_edges():
    held = Embedding(4, 3, noise="row * Bernoulli(keep=0.5) @ sequence")
    with pytest.raises(ValueError, match="time_dim must be a dimension"):
        held(torch.tensor(1))
    with pytest.raises(ValueError, match="time_dim must be a dimension"):
        Embedding(4, 3, noise=held.noise, time_dim=3)(torch.ones(2, 2, dtype=torch.long))
    fresh = Embedding(4, 3, noise="row * Bernoulli(keep=0.5)")
    assert fresh(torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 3)


@pytest.mark.parametrize("noise", ["weight + Gaussian(0.1)", "input * Gaussian(0.1) @ sequence"])
def test_linear_takes_a_vector_for_one_step(noise):
    for time_dim in (0, 1):
        layer, x = Linear(4, 3, noise=noise, time_dim=time_dim), torch.randn(4)
        draws = layer.draw(x)
        assert layer(x, draws=draws).shape == (3,)
        assert_bit_equal(layer(x, draws=draws), layer(x, draws=draws))


def test_linear_does_not_cast_in_silence():
    layer = Linear(4, 3, noise="input * Gaussian(0.1)")
    with pytest.raises(RuntimeError, match="dtype"):
        layer.eval()(torch.randn(2, 4).double())
    with pytest.raises((RuntimeError, ValueError), match="dtype"):
        layer.train()(torch.randn(2, 4).double())


def test_autocast_does_not_round_what_it_does_not_lower():
    layer = Embedding(50, 4, noise="row * Bernoulli(keep=0.7) @ sequence")
    with torch.autocast("cpu", dtype=torch.bfloat16), sampling(layer):
        (factor,) = layer.draw(IDS)["row"]
    assert factor.dtype == torch.float32
    assert set(factor.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}


@pytest.mark.parametrize("noise", ["hidden * Gaussian(1)", "weight_hh * Gaussian(0.1)"])
def test_meta_tensors_run_with_noise(noise):
    layer = LSTM(3, 4, noise=noise, device="meta")
    assert layer(torch.randn(5, 2, 3, device="meta"))[0].shape == (5, 2, 4)
    read = Linear(4, 3, noise="weight + Gaussian(0.1)", time_dim=0, device="meta")
    assert read(torch.randn(5, 2, 4, device="meta")).shape == (5, 2, 3)


@pytest.mark.parametrize("draws", [3, {"hidden_l0": None}, {"hidden_l0": 3}])
def test_draws_of_another_kind_are_refused(draws):
    layer = LSTM(3, 4, noise="hidden * Gaussian(1)")
    with pytest.raises(ValueError, match=r"must be a (dict|tuple)"):
        layer(torch.randn(5, 2, 3), draws=draws)


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
@pytest.mark.parametrize(("steps", "batch"), [(1, 33), (1, 200), (3, 0)])
def test_gradients_of_one_step_of_many_and_of_none(kind, steps, batch):
    """The gradient of W_hh has nothing to add up but the first step, or nothing at all."""
    layer, x = kind(4, 8, noise="hidden * Bernoulli(keep=0.5)"), torch.randn(steps, batch, 4)
    draws = layer.draw(x)
    wide = (
        copy.deepcopy(layer).double(),
        x.double(),
        {k: (v[0].double(),) for k, v in draws.items()},
    )
    found = []
    for path, (own, inputs, noise) in (
        *((None, (layer, x, draws)), ("reference", (layer, x, draws))),
        ("reference", wide),
    ):
        own.zero_grad()
        own(inputs, draws=noise, path=path)[0].square().sum().backward()
        found.append([parameter.grad.clone() for parameter in own.parameters()])
    for fused, eager, ref64 in zip(*found, strict=True):
        assert_close_to_float64(fused, eager, ref64)


def test_a_state_on_another_device_is_refused():
    layer, x = LSTM(4, 8, noise="hidden * Gaussian(0.1)"), torch.randn(3, 2, 4)
    hx = tuple(torch.zeros(1, 2, 8, device="meta") for _ in range(2))
    with pytest.raises(ValueError, match="hx must be where x is, on cpu; got meta"):
        layer(x, hx)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_a_state_with_a_batch_is_refused_of_input_without_one(kind):
    layer, h = kind(4, 8, noise=NOISE), torch.zeros(1, 1, 8)
    hx = (h, h) if kind is LSTM else h
    with pytest.raises(RuntimeError, match=r"hx must be 2-D where the input is.*got 3-D"):
        layer(torch.randn(3, 4), hx)


class Signs(Law):
    """A law of the user's own: -1 and 1."""

    def standard(self, size, generator, dtype, device):
        """Draw as the other laws do."""
        u = torch.rand(tuple(size), generator=generator, dtype=dtype, device=device)
        return 1 - 2 * (u < 0.5).to(u.dtype)


@pytest.mark.parametrize("site", ["hidden", "recurrent", "weight_hh", "weight_ih"])
def test_a_law_of_the_users_own_acts_at_every_site(site):
    torch.manual_seed(0)
    layer, x = LSTM(4, 8, noise=getattr(at, site) + Signs(0.3)), torch.randn(3, 2, 4)
    assert (layer(x)[0] != layer(x)[0]).any()
    layer(x)[0].sum().backward()


@pytest.mark.parametrize("noise", ["recurrent", "input", "weight_hh"])
def test_learned_moments_under_autocast(noise):
    layer = LSTM(4, 8, 2, noise=f"{noise} + Gaussian(Learned(0.5)) @ moments")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 2, 4))[0].dtype == torch.bfloat16
        dense = Linear(4, 3, noise="weight + Gaussian(Learned(0.5)) @ moments")
        assert dense(torch.randn(2, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [LSTM, RNN])
@pytest.mark.parametrize("site", ["weight_hh", "weight_ih"])
def test_learned_spreads_of_fresh_matrices_beside_moments_under_autocast(kind, site):
    noise = f'{site} + Gaussian(Learned(0.1, per="unit"))'
    layer = kind(4, 8, noise=noise + " & recurrent * Bernoulli(keep=0.8) @ moments")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 2, 4))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [LSTM, RNN])
def test_autocast_leaves_float64_as_torch_does(kind):
    layer = kind(4, 8, noise="hidden * Gaussian(0.5)").double()
    dense = Linear(8, 3, noise="input * Gaussian(0.5)").double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        for training in (True, False):
            output = layer.train(training)(x)[0]
            assert output.dtype == dense.train(training)(output).dtype == torch.float64


def test_noise_that_accumulates_needs_a_dimension_of_time():
    dense = Linear(8, 3, noise="input * Gaussian(0.1) @ cumulative", time_dim=1)
    with pytest.raises(ValueError, match="time_dim must be a dimension of the input other than"):
        dense(torch.randn(4, 8))
    (entry,) = dense.draw(torch.ones(8))["input"]  # one step, whatever the dimension
    assert len(set(entry.flatten().tolist())) == 8
    ahead, behind = entry[0, :-1], entry[0, 1:]
    assert (ahead / behind - 1).abs().std() < 0.3  # not products of products


def test_a_linear_over_time_gives_what_can_be_viewed():
    dense = Linear(4, 3, noise="weight + Gaussian(0.1)", time_dim=1)
    assert dense(torch.randn(2, 5, 4)).view(-1, 3).shape == (10, 3)


def test_explain_knows_a_later_dimension_of_time():
    dense = Linear(4, 3, noise="input * Gaussian(0.1) @ sequence", time_dim=2)
    assert [line.memory for line in explain(dense)] == [20 * 4 * 4]  # one step of a batch of 20


def test_noise_that_the_strength_of_a_layer_refuses_changes_no_layer():
    model = nn.ModuleList([LSTM(3, 5, noise=NOISE), LSTM(3, 5, noise="hidden * Gaussian(1)")])
    model[1].strength = 0
    with pytest.raises(ValueError, match=r"^1: strength must be > 0 beside a learned spread"):
        regularize(model, "hidden * Gaussian(Learned(0.5)) & input * Gaussian(0.1)")
    assert [str(layer.noise) for layer in model] == [NOISE, "hidden * Gaussian(1.0)"]
    with pytest.raises(ValueError, match="noise acts in RNN, GRU and LSTM layers, got RNNBase"):
        regularize(nn.RNNBase("LSTM", 3, 5), NOISE)


def test_nothing_of_noisin_is_left_in_a_stripped_layer():
    layer = LSTM(3, 5, noise="hidden * Gaussian(1)")
    layer.propagation = Propagation("closed")
    assert b"noisin" not in pickle.dumps(strip(layer))
