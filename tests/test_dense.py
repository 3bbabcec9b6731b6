"""Linear and Embedding: torch's own without noise, and where the noise enters."""

import inspect

import pytest
import torch
from torch import nn

from cases import seeded
from conftest import assert_bit_equal, assert_mean, assert_variance
from noisin import Embedding, Gaussian, Learned, Linear, at, fold, regularize, sampling
from noisin.noise import terms_of

T, B, F, V = 5, 3, 4, 7
IDS = torch.tensor([[1, 2, 1], [2, 2, 0], [6, 1, 1], [0, 2, 5], [1, 1, 2]])


def pair(kind, noise=None, **kwargs):
    """Return ours and torch's with the same weights, and an input."""
    torch.manual_seed(0)
    if kind == "linear":
        ours, plain, x = Linear(F, 2, noise=noise, **kwargs), nn.Linear(F, 2), torch.randn(T, B, F)
    else:
        ours, plain, x = Embedding(V, F, noise=noise, **kwargs), nn.Embedding(V, F), IDS
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if "rho" not in k})
    return ours, plain, x


NOISE = {"linear": "input * Gaussian(0.5)", "embedding": "row * Bernoulli(keep=0.5) @ sequence"}


@pytest.mark.parametrize("kind", NOISE)
def test_without_noise_and_in_evaluation_it_is_torchs(kind):
    for noise, training in ((None, True), (NOISE[kind], False)):
        ours, plain, x = pair(kind, noise)
        ours.train(training)
        for layer in (ours, plain):
            layer(x).square().sum().backward()
        assert_bit_equal(ours(x), plain(x))
        assert_bit_equal(ours.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("kind", NOISE)
def test_noise_is_on_in_training_and_while_sampling(kind):
    ours, plain, x = pair(kind, NOISE[kind])
    assert not torch.equal(ours(x), plain(x))
    with sampling(ours.eval()):
        assert not torch.equal(ours(x), plain(x))
    assert torch.equal(ours(x), plain(x))


@pytest.mark.parametrize("kind", NOISE)
def test_given_draws_decide(kind):
    ours, _, x = pair(kind, NOISE[kind])
    draws = ours.draw(x, generator=torch.Generator().manual_seed(1))
    assert_bit_equal(ours(x, draws=draws), ours.eval()(x, draws=draws))
    again = ours.draw(x, generator=torch.Generator().manual_seed(1))
    assert_bit_equal(list(draws.values()), list(again.values()))


@pytest.mark.parametrize("operator", ["*", "+"])
@pytest.mark.parametrize("hold", ["step", "sequence"])
def test_linear_perturbs_its_input_without_bias(operator, hold):
    noise = f"input {operator} Gaussian(0.5) @ {hold}"
    layer = Linear(1, 1, bias=False, noise=noise)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    torch.manual_seed(3)
    out = layer(torch.full((2, 20_000, 1), 3.0)).detach()[..., 0]
    std = 2 * 0.5 * (3 if operator == "*" else 1)
    for step in out:
        assert_mean(step, 6.0, std)
        assert_variance(step, std**2, 6.0)
    assert torch.equal(out[0], out[1]) == (hold == "sequence")


def test_embedding_drops_word_types():
    ours, plain, x = pair("embedding", NOISE["embedding"])
    (factor,) = ours.draw(x, generator=torch.Generator().manual_seed(0))["row"]
    assert factor.shape == (1, V, 1)
    expected = plain(x) * factor[0, x]  # one draw for a word, wherever it stands
    assert_bit_equal(ours(x, draws={"row": (factor,)}), expected)
    assert set(factor.unique().tolist()) == {0.0, 2.0}


def test_embedding_held_a_step_draws_each_step_for_the_batch():
    ours, plain, x = pair("embedding", "row + Gaussian(0.5)")
    (offset,) = ours.draw(x)["row"]
    assert offset.shape == (T, V, 1)
    got = ours(x, draws={"row": (offset,)})
    for t in range(T):
        for b in range(B):
            assert_bit_equal(got[t, b], plain(x)[t, b] + offset[t, x[t, b]])


def test_dropped_rows_get_no_gradient_and_others_do():
    ours, _, x = pair("embedding", NOISE["embedding"])
    draws = ours.draw(x, generator=torch.Generator().manual_seed(0))
    ours(x, draws=draws).sum().backward()
    (factor,) = draws["row"]
    seen = torch.bincount(x.flatten(), minlength=V)[:, None] * factor[0]
    assert_bit_equal(ours.weight.grad, seen.expand(V, F).contiguous())


def test_rows_keep_their_mean():
    layer = Embedding(40_000, 1, noise="row * Laplace(0.5) @ sequence")
    with torch.no_grad():
        layer.weight.fill_(3.0)
    torch.manual_seed(0)
    out = layer(torch.arange(40_000)[None]).detach()[0, :, 0]
    assert_mean(out, 3.0, 1.5)
    assert_variance(out, 2.25, 3.0)


@pytest.mark.parametrize("time_dim", [0, 1])
def test_time_is_the_dimension_that_is_named(time_dim):
    layer = Linear(F, 2, noise="input * Gaussian(1) @ sequence", time_dim=time_dim)
    size = [T, B, F]
    size[time_dim] = 1
    assert [list(v.shape) for v in layer.draw(torch.zeros(T, B, F))["input"]] == [size]
    rows = Embedding(V, F, noise="row * Gaussian(1)", time_dim=time_dim)
    assert rows.draw(IDS)["row"][0].shape == (IDS.shape[time_dim], V, 1)
    assert rows(IDS).shape == (T, B, F)


def test_cumulative_noise_adds_up():
    layer = Linear(F, 2, noise="input + Gaussian(1) @ cumulative")
    x = torch.zeros(400, 100, F)
    (offset,) = layer.draw(x, generator=torch.Generator().manual_seed(0))["input"]
    steps = offset.diff(dim=0).flatten()
    assert_variance(steps, 1.0, 0.0)
    assert_mean(offset[-1].flatten().repeat(3), 0.0, 20 * 3**0.5)


def test_learned_spread_is_trained_and_may_be_missing():
    ours, plain, x = pair("linear", at.input * Gaussian(Learned(0.5, floor=0.1)))
    assert set(ours.state_dict()) == {"weight", "bias", "rho_input"}
    ours.load_state_dict(plain.state_dict())
    ours(x).square().sum().backward()
    assert ours.rho_input.grad.abs() > 0
    each, _, x = pair("linear", at.input * Gaussian(Learned(0.5, per="unit")))
    assert each.rho_input.shape == (F,)
    with pytest.raises(ValueError, match='the rows share one spread, per="layer"; got row'):
        Embedding(7, 3, noise='row * Gaussian(Learned(0.5, per="unit"))')
    model = nn.Sequential(nn.Embedding(7, 3))
    with pytest.raises(ValueError, match="the rows share one spread"):
        regularize(model, 'row * Gaussian(Learned(0.5, per="unit"))', where="0")
    assert type(model[0]) is nn.Embedding  # nothing is changed


@pytest.mark.parametrize("kind", NOISE)
def test_what_does_not_fit_is_refused(kind):
    ours, _, x = pair(kind, NOISE[kind])
    ((site, (value,)),) = ours.draw(x).items()
    for wrong in ({}, {"hidden_l0": (value,)}, {site: ()}, {site: (value[..., :0],)}):
        with pytest.raises(ValueError, match="draws"):
            ours(x, draws=wrong)
    for noise in ("hidden * Gaussian(1)", "output * Gaussian(1)", "Zoneout(hidden=0.1)"):
        with pytest.raises(ValueError, match="got"):
            ours.noise = noise
    assert len(terms_of(ours.noise)) == 1  # what was there stays
    assert fold(x, 2).shape[1] == 2 * B


@pytest.mark.parametrize("kind", NOISE)
def test_a_weight_need_not_be_a_parameter(kind):
    """As FSDP and DataParallel have it; noise is drawn in its type, not in that of word numbers."""
    ours, _, x = pair(kind, NOISE[kind])
    expected = drawn_once(ours, x)
    for name, parameter in [*ours.named_parameters(recurse=False)]:
        delattr(ours, name)
        ours.register_buffer(name, parameter.detach().clone())
    assert_bit_equal(drawn_once(ours, x), expected)
    ours.double().noise = str(ours.noise).replace("Gaussian(0.5)", "Gaussian(Learned(0.5))")
    assert {rho.dtype for rho in ours.parameters()} <= {torch.float64}


def drawn_once(layer, x):
    torch.manual_seed(1)
    return layer(x).detach()


def test_an_empty_sequence_has_no_noise_to_add_up():
    layer = Linear(F, 3, noise="weight * Gaussian(0.1) @ cumulative")
    assert layer(torch.zeros(0, B, F)).shape == (0, B, 3)


def test_an_embedding_has_the_arguments_of_torchs():
    ours, theirs = (inspect.signature(kind) for kind in (Embedding, nn.Embedding))
    assert [*ours.parameters][: len(theirs.parameters)] == [*theirs.parameters]
    for name, one in theirs.parameters.items():
        assert ours.parameters[name].default == one.default
    assert nn.utils.skip_init(Embedding, 10, 4).weight.shape == (10, 4)
    words = torch.tensor([[1, 2]])
    given = {"padding_idx": 2, "max_norm": 0.5, "norm_type": 1.0}
    weight = seeded(10, 4)
    found = [kind(10, 4, _weight=weight.clone(), **given) for kind in (Embedding, nn.Embedding)]
    assert_bit_equal(*(layer(words) for layer in found))
    assert Embedding.from_pretrained(weight).weight.requires_grad is False
