"""Averaging over noise: draws folded into the batch, noise kept on in evaluation."""

import pytest
import torch
from torch import nn

from cases import seeded
from conftest import assert_bit_equal, assert_close_to_float64
from noisin import GRU, LSTM, Bernoulli, Gaussian, at, fold, predictive, sampling, unfold

T, B, F, H, K = 4, 3, 2, 5, 4
NOISE = at.hidden * Gaussian(0.5) & at.output * Bernoulli(keep=0.5)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_fold_repeats_the_whole_batch_for_each_draw_in_turn(dim):
    x = seeded(T, B, F)
    folded = fold(x, K, dim)
    assert folded.shape[dim] == K * x.shape[dim]
    for k, part in enumerate(folded.chunk(K, dim)):
        assert_bit_equal(part, x)
        assert_bit_equal(unfold(folded, K, dim)[k], x)
    assert unfold(folded, K, dim).shape == (K, *x.shape)


def test_fold_and_unfold_take_the_batch_second_by_default():
    x = seeded(T, B, F)
    assert_bit_equal(fold(x, K), fold(x, K, 1))
    assert_bit_equal(unfold(fold(x, K), K), unfold(fold(x, K, 1), K, 1))
    assert_bit_equal(fold(x, 1), x)
    assert_bit_equal(unfold(x, 1), x[None])


def test_fold_of_one_dimension_and_of_class_indices():
    assert fold(torch.tensor([1, 2]), 2, 0).tolist() == [1, 2, 1, 2]
    assert unfold(torch.tensor([1, 2, 1, 2]), 2, 0).tolist() == [[1, 2], [1, 2]]


def test_gradients_pass_fold():
    x = seeded(T, B, F).requires_grad_()
    (grad,) = torch.autograd.grad(fold(x, K).sum(), x)
    assert_bit_equal(grad, torch.full_like(x, K))


@pytest.mark.parametrize("samples", [0, -1])
def test_fewer_draws_than_one_are_refused(samples):
    for use in (fold, unfold):
        with pytest.raises(ValueError, match=str(samples)):
            use(seeded(T, B, F), samples)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="7"):
        unfold(seeded(T, 7, F), K)


def test_folded_draws_are_independent_and_are_what_each_would_be_alone():
    layer, x = LSTM(F, H, noise=NOISE).eval(), seeded(T, B, F)
    draws = layer.draw(fold(x, K), generator=torch.Generator().manual_seed(0))
    together = unfold(layer(fold(x, K), draws=draws)[0], K)
    for k in range(K):
        own = {p: tuple(v[:, k * B : (k + 1) * B] for v in vs) for p, vs in draws.items()}
        alone = layer(x, draws=own)[0].detach()
        assert_close_to_float64(together[k].detach(), alone, alone.double())
        assert k == 0 or not torch.equal(together[k], together[0])


def model():
    inner = nn.ModuleDict({"rnn": GRU(F, H, noise=NOISE), "plain": nn.GRU(F, H)})
    return nn.ModuleDict({"inner": inner, "rnn": LSTM(F, H, noise=NOISE)})


def noisy(net, x):
    """Return which of the model's layers give another output the second time."""
    layers = (net["inner"]["rnn"], net["inner"]["plain"], net["rnn"])
    return [not torch.equal(layer(x)[0], layer(x)[0]) for layer in layers]


def test_sampling_keeps_the_noise_of_every_layer_on_and_puts_it_off_again():
    net, x = model().eval(), seeded(T, B, F)
    assert noisy(net, x) == [False, False, False]
    with sampling(net) as same:
        assert same is net
        assert noisy(net, x) == [True, False, True]
        assert not any(module.training for module in net.modules())
    assert noisy(net, x) == [False, False, False]


def test_sampling_ends_with_an_error_too_and_may_be_nested():
    net, x = model().eval(), seeded(T, B, F)
    with sampling(net["rnn"]):
        with pytest.raises(KeyError), sampling(net):
            raise KeyError
        assert noisy(net, x) == [False, False, True]
    assert noisy(net, x) == [False, False, False]


def test_sampling_leaves_training_and_plain_layers_alone():
    net, x = model().train(), seeded(T, B, F)
    with sampling(net):
        assert noisy(net, x) == [True, False, True]
    assert all(module.training for module in net.modules())
    plain = LSTM(F, H).eval()
    expected = plain(x)
    with sampling(plain):
        assert_bit_equal(plain(x), expected)


def test_predictive_averages_probabilities():
    parts = -3 * seeded(K, T, B).abs()

    def average(dtype):
        return torch.log(torch.exp(parts.to(dtype)).mean(0))

    assert_close_to_float64(predictive(parts), average(torch.float32), average(torch.float64))
    assert predictive(parts).shape == (T, B)
    assert (predictive(parts) > parts.mean(0)).all()  # Jensen
    assert_bit_equal(predictive(parts[:1]), parts[0])


def test_predictive_neither_underflows_nor_loses_what_is_impossible():
    parts = torch.tensor([[-5000.0, -torch.inf, -torch.inf], [-5000.0, -1.0, -torch.inf]])
    ref64 = torch.tensor([-5000.0, -1 - torch.log(torch.tensor(2.0).double()).item()]).double()
    assert_close_to_float64(predictive(parts)[:2], ref64.float(), ref64)
    assert predictive(parts)[2] == -torch.inf
