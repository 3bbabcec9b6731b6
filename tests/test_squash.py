"""Compiled moments of tanh and the sigmoid beside torch's operations."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import assert_bit_equal
from noisin import Moments, propagation
from noisin.fused import compiled, squash

pytestmark = pytest.mark.skipif(compiled.LIBRARY is None, reason="nothing was compiled")
PAIRS = [(squash.tanh, propagation.tanh), (squash.sigmoid, propagation.sigmoid)]
pairs = pytest.mark.parametrize(("ours", "torchs"), PAIRS, ids=["tanh", "sigmoid"])


def grid():
    means = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([-1e4, -100, 1e-9, 100, 1e4])])
    variances = torch.cat([torch.zeros(1), torch.logspace(-6, 8, 57)])
    mean, variance = torch.meshgrid(means, variances, indexing="ij")
    return [mean.flatten(), variance.flatten()]


@pairs
def test_values_are_those_of_torch(ours, torchs):
    x = grid()
    found = ours(Moments(*x))
    expected = torchs(Moments(*(one.double() for one in x)))
    assert type(found.mean.grad_fn) is type(None)
    for got, wanted in zip(found, expected, strict=True):
        assert (got - wanted).abs().max() < 1e-6
    assert (found.variance >= 0).all()
    assert (found.variance[x[1] == 0] == 0).all()
    assert (found.mean.abs() <= 1).all()


@pairs
def test_gradients_are_those_of_torch(ours, torchs):
    x = [one[(grid()[0].abs() < 10)] for one in grid()]
    x[1] = x[1].clamp(min=1e-3)
    weights = [
        torch.randn(one.shape, generator=torch.Generator().manual_seed(i))
        for i, one in enumerate(x)
    ]
    results = []
    for function, dtype in ((ours, torch.float32), (torchs, torch.float64)):
        leaves = [one.to(dtype).requires_grad_() for one in x]
        grads = [one.to(dtype) for one in weights]
        results.append(torch.autograd.grad(function(Moments(*leaves)), leaves, grads))
    for got, wanted in zip(*results, strict=True):
        assert (got - wanted).abs().max() < 1e-4


@pairs
def test_the_gradient_by_a_variance_of_0_is_there(ours, torchs):
    leaves = [torch.linspace(-3, 3, 31).requires_grad_(), torch.zeros(31).requires_grad_()]
    found = ours(Moments(*leaves))
    (slope,) = torch.autograd.grad(found.variance.sum(), leaves[1])
    plain = torch.tanh if ours is squash.tanh else torch.sigmoid
    mean = leaves[0].detach().requires_grad_()
    (expected,) = torch.autograd.grad(plain(mean).sum(), mean)
    assert (slope - expected.square()).abs().max() < 2e-3


@pairs
def test_second_derivatives_and_vectorized_gradients(ours, torchs):
    leaves = [torch.linspace(-2, 2, 9).requires_grad_(), torch.linspace(0.1, 1, 9).requires_grad_()]
    results = []
    for function in (ours, torchs):
        m, v = function(Moments(*leaves))
        (first,) = torch.autograd.grad(m.sum() + v.square().sum(), leaves[1], create_graph=True)
        results.append(torch.autograd.grad(first.sum(), leaves))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    m, _ = ours(Moments(*leaves))
    (many,) = torch.autograd.grad(m, leaves[0], torch.eye(9), is_grads_batched=True)
    (one,) = torch.autograd.grad(ours(Moments(*leaves)).mean.sum(), leaves[0])
    torch.testing.assert_close(many.diagonal(), one, atol=1e-6, rtol=1e-5)


@pairs
def test_transforms_and_other_types_take_torchs_operations(ours, torchs):
    x = [torch.linspace(-2, 2, 9), torch.linspace(0.1, 1, 9)]
    wide = [one.double() for one in x]
    assert_bit_equal(tuple(ours(Moments(*wide))), tuple(torchs(Moments(*wide))))
    slope = torch.func.grad(lambda m: ours(Moments(m, x[1])).mean.sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(torchs(Moments(leaf, x[1])).mean.sum(), leaf)
    torch.testing.assert_close(slope, expected)
    turned = [one.view(3, 3).t() for one in x]
    found = ours(Moments(*turned))
    for got, wanted in zip(found, torchs(Moments(*turned)), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


@pairs
def test_what_is_no_number_stays_none(ours, torchs):
    found = ours(Moments(torch.tensor([float("nan"), 0.0]), torch.tensor([1.0, float("nan")])))
    assert found.mean[0].isnan()
    assert found.variance.isnan().all()


@pairs
def test_moments_of_one_tensor_are_not_counted_twice(ours, torchs):
    """A first derivative with a graph, where the variance depends on the mean."""
    mean = torch.tensor([0.7], requires_grad=True)
    found, expected = (
        torch.autograd.grad(f(Moments(mean, mean.square())).mean.sum(), mean, create_graph=True)[0]
        for f in (ours, torchs)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pairs
def test_what_does_not_lie_in_memory_alike_takes_torchs_operations(ours, torchs):
    mean = torch.linspace(-1, 1, 12).view(4, 3)
    found = ours(Moments(mean, torch.ones(3)))
    assert_bit_equal(tuple(found), tuple(torchs(Moments(mean, torch.ones(3)))))
    with FakeTensorMode():
        assert ours(Moments(torch.empty(4, 3), torch.empty(4, 3))).mean.shape == (4, 3)
