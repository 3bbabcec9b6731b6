"""The heads against torch.distributions, and what they draw."""

import jaxtyping
import pytest
import torch
from torch import distributions, nn

from cases import pulled_back, seeded
from conftest import assert_bit_equal, assert_close_to_float64, assert_mean, assert_variance
from noisin import BernoulliHead, CategoricalHead, GaussianHead, Moments, PoissonHead
from noisin.likelihood import squared_error

T, B, H, V = 5, 3, 4, 6
HEADS = (BernoulliHead, CategoricalHead, GaussianHead, PoissonHead)


def distribution(head, parameters, sigma):
    """Return torch's distribution, one event a time step."""
    if isinstance(head, CategoricalHead):
        return distributions.Categorical(logits=parameters)
    independent = {
        BernoulliHead: lambda: distributions.Bernoulli(logits=parameters),
        GaussianHead: lambda: distributions.Normal(parameters, sigma),
        PoissonHead: lambda: distributions.Poisson(parameters.exp()),
    }[type(head)]()
    return distributions.Independent(independent, 1)


def made(kind):
    """Return a head, natural parameters and observations; σ differs by feature."""
    torch.manual_seed(0)
    head = kind(H, V)
    if kind is GaussianHead:
        with torch.no_grad():
            spread_of(head).copy_(torch.linspace(-1, 1, V))
    parameters = 2 * seeded(T, B, V)
    sigma = spread_of(head).detach().exp() if kind is GaussianHead else None
    return head, parameters, distribution(head, parameters, sigma).sample()


def spread_of(head):
    return head.log_std


@pytest.mark.parametrize("kind", HEADS)
def test_log_likelihood_is_that_of_torchs_distribution(kind):
    head, parameters, x = made(kind)
    results = []
    for dtype in (None, torch.float32, torch.float64):
        leaves = [parameters.to(dtype or torch.float32).detach().clone().requires_grad_()]
        sigma = None
        if kind is GaussianHead:
            sigma = spread_of(head).detach().to(dtype or torch.float32).requires_grad_()
            leaves.append(spread_of(head) if dtype is None else sigma)
        if dtype is None:
            value = head.log_likelihood(leaves[0], x)
        else:
            known = distribution(head, leaves[0], None if sigma is None else sigma.exp())
            value = known.log_prob(x if kind is CategoricalHead else x.to(dtype))
        assert value.shape == (T, B)
        results.append(pulled_back([value], leaves))
    assert_close_to_float64(*results)


@pytest.mark.parametrize("kind", HEADS)
def test_heads_are_linear_layers(kind):
    head = kind(H, V, bias=False, dtype=torch.float64)
    assert isinstance(head, nn.Linear)
    assert head.bias is None
    z = seeded(T, B, H, dtype=torch.float64)
    assert_bit_equal(head(z), z @ head.weight.T)
    assert {p.dtype for p in head.parameters()} == {torch.float64}
    names = {"weight", "log_std"} if kind is GaussianHead else {"weight"}
    assert {name for name, _ in head.named_parameters()} == names


@pytest.mark.parametrize("kind", HEADS)
def test_samples_have_the_mean_and_variance_of_the_distribution(kind):
    head, parameters, _ = made(kind)
    one = parameters[0, 0] / 2
    draws = head.sample(one.expand(50_000, V), torch.Generator().manual_seed(0))
    if kind is CategoricalHead:
        assert draws.shape == (50_000,)
        assert draws.dtype == torch.int64
        draws = nn.functional.one_hot(draws, V)
        mean = one.double().softmax(0)
        variance = mean * (1 - mean)
    else:
        assert draws.shape == (50_000, V)
        sigma = spread_of(head).detach().double().exp() if kind is GaussianHead else None
        known = distribution(head, one.double(), sigma)
        mean, variance = known.mean, known.variance
    assert_mean(draws, mean, variance.sqrt())
    assert_variance(draws, variance, mean)


@pytest.mark.parametrize("kind", HEADS)
def test_samples_are_reproduced_and_can_be_scored(kind):
    head, parameters, _ = made(kind)
    first, again = (head.sample(parameters, torch.Generator().manual_seed(1)) for _ in range(2))
    assert_bit_equal(first, again)
    torch.manual_seed(1)
    assert_bit_equal(head.sample(parameters), first)
    other = head.sample(parameters, torch.Generator().manual_seed(2))
    assert not torch.equal(first, other)
    value = head.log_likelihood(parameters, first)
    assert value.shape == (T, B)
    assert value.isfinite().all()


def test_features_are_drawn_on_their_own():
    draws = BernoulliHead(H, 2).sample(torch.zeros(10_000, 2), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert_mean(draws.prod(1), 0.25, (0.25 * 0.75) ** 0.5)


def test_certainty_is_finite_and_exact():
    """Logits of a trained model grow large; log σ(-1e4) must not be -inf."""
    sure = torch.tensor([1e4, -1e4])
    head = BernoulliHead(H, 2)
    assert head.log_likelihood(sure, torch.tensor([1.0, 0.0])) == 0
    assert head.log_likelihood(sure, torch.tensor([0.0, 0.0])) == -1e4
    assert CategoricalHead(H, 2).log_likelihood(sure, torch.tensor(1)) == -2e4


def test_poisson_counts_the_factorial():
    value = PoissonHead(H, 1).log_likelihood(torch.zeros(1), torch.tensor([3.0]))
    expected = -1 - torch.log(torch.tensor(6.0, dtype=torch.float64))
    assert_close_to_float64(value, expected.float(), expected)


def test_the_width_of_a_gaussian_is_trained():
    head = GaussianHead(H, V)
    head.log_likelihood(seeded(T, B, V), seeded(T, B, V, seed=1)).sum().backward()
    assert (spread_of(head).grad != 0).all()


@pytest.mark.parametrize("features", [1, 3])
def test_spread_has_memory_of_its_own(features):
    """Not the stride of the weight that it is made beside, which no byte view of it would allow."""
    spread = GaussianHead(5, features).log_std
    assert spread.stride() == (1,)
    assert spread.detach().view(torch.uint8).shape == (4 * features,)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("moments", [False, True])
def test_observations_are_never_broadcast(kind, moments, monkeypatch):
    """[2] beside [2, 1] would be [2, 2], a sum of which has the right shape and another value."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    head, parameters = kind(3, 1), torch.zeros(2, 1)
    x = torch.zeros(1, 2, dtype=torch.long) if kind is CategoricalHead else torch.ones(2)
    given = Moments(parameters, torch.ones(2, 1)) if moments else parameters
    with pytest.raises(ValueError, match="must"):
        head.log_likelihood(given, x)
    with pytest.raises(ValueError, match=r"shape of the parameters, \[2, 1\]; got \[2\]"):
        squared_error(given, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.uint8, torch.float64])
@pytest.mark.parametrize("moments", [False, True])
def test_features_may_be_whole_numbers(dtype, moments, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    head, parameters = BernoulliHead(3, 2), torch.tensor([[0.5, -1.0]])
    given = Moments(parameters, torch.ones(1, 2)) if moments else parameters
    x = torch.tensor([[1.0, 0.0]])
    found = head.log_likelihood(given, x.to(dtype))
    torch.testing.assert_close(found, head.log_likelihood(given, x), check_dtype=False)


def test_a_reset_sets_every_spread_to_1():
    head = GaussianHead(4, 2, device="meta").to_empty(device="cpu")
    head.reset_parameters()
    assert spread_of(head).tolist() == [0, 0]
    with torch.no_grad():
        spread_of(head).fill_(3.0)
    head.reset_parameters()
    assert spread_of(head).tolist() == [0, 0]


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_under_autocast_log_likelihoods_are_float32(kind, moments):
    head, x = kind(H, V), torch.zeros(T, B, V)
    x = x[..., 0].long() if kind is CategoricalHead else x
    with torch.autocast("cpu", torch.bfloat16):
        parameters = head(seeded(T, B, H))
        assert parameters.dtype == torch.bfloat16
        given = Moments(parameters, torch.ones_like(parameters)) if moments else parameters
        assert head.log_likelihood(given, x).dtype == torch.float32
