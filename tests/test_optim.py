"""The optimizer against the two-point form in the papers: look ahead, take the gradient there."""

import copy
import math

import pytest
import torch

from conftest import assert_close_to_float64
from noisin.optim import NesterovRMSprop


def gradient(theta):
    """Return that of a skew, not quite quadratic bowl."""
    a = torch.tensor([[2.0, 0.3], [0.1, 0.5]], dtype=theta.dtype)
    return a @ theta + torch.sin(theta)


def two_point_form(theta, steps, lr, momentum, decay, eps):
    """θ stands still while the gradient is taken at θ - μ v; returns the look-ahead points."""
    velocity, square, ahead = torch.zeros_like(theta), torch.ones_like(theta), []
    for _ in range(steps):
        g = gradient(theta - momentum * velocity)
        square = decay * square + (1 - decay) * g**2
        velocity = momentum * velocity + lr * g / torch.sqrt(square + eps)
        theta = theta - velocity
        ahead.append(theta - momentum * velocity)
    return torch.stack(ahead)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.8, 0.99])
def test_parameters_are_the_look_ahead_points(momentum, decay):
    start = [1.0, -2.0]
    settings = {"lr": 0.01, "momentum": momentum, "decay": decay, "eps": 1e-3}
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = NesterovRMSprop([p], **settings)
    got = []
    for _ in range(20):
        p.grad = gradient(p.detach())
        optimizer.step()
        got.append(p.detach().clone())
    eager = two_point_form(torch.tensor(start), 20, **settings)
    exact = two_point_form(torch.tensor(start, dtype=torch.float64), 20, **settings)
    assert_close_to_float64(torch.stack(got), eager, exact)


def test_state_comes_back():
    p = torch.nn.Parameter(torch.ones(3))
    first = NesterovRMSprop([p], lr=0.1)
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    first.step()
    twin = torch.nn.Parameter(p.detach().clone())
    second = NesterovRMSprop([twin], lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    twin.grad = p.grad.clone()
    first.step()
    second.step()
    assert torch.equal(p, twin)


def test_closure_and_missing_gradients():
    p, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = NesterovRMSprop([p, unused], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert (p < 1).all()
    assert (unused == 1).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0), ("lr", math.nan), ("momentum", 1), ("decay", -0.1), ("eps", 0)],
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        NesterovRMSprop([torch.nn.Parameter(torch.ones(1))], **{name: value})


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [
        ({"lr": math.inf}, "lr must be finite and > 0, got inf"),
        ({"lr": 0}, "lr must be finite and > 0, got 0"),
        ({"eps": math.nan}, "eps must be finite and > 0, got nan"),
        ({"momentum": 1}, r"momentum must be in \[0, 1\), got 1"),
        ({"decay": -1}, r"decay must be in \[0, 1\), got -1"),
    ],
)
def test_numbers_of_a_group_are_checked(numbers, rule):
    weight = torch.nn.Parameter(torch.ones(2))
    for given in ([weight], numbers), ([{"params": [weight], **numbers}], {}):
        with pytest.raises(ValueError, match=rule):
            NesterovRMSprop(given[0], **given[1])


def test_sparse_gradients_are_refused():
    layer = torch.nn.Embedding(5, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="no sparse gradients"):
        NesterovRMSprop(layer.parameters()).step()
