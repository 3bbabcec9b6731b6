"""Learned spreads: how many there are, their gradients, their floor, and their life in a module."""

import copy
import math

import pytest
import torch
from torch import nn

from cases import make, seeded
from conftest import assert_bit_equal, assert_close_to_float64, assert_gradients
from noisin import GRU, LSTM, RNN, Gaussian, Gumbel, Learned, at

T, B, F, H = 4, 3, 2, 3
SPREAD = Gaussian(Learned(0.5, floor=0.1))


def spreads(layer):
    """Return the parameters that a torch layer does not have."""
    plain = make(
        "LSTM",
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        package=nn,
        bidirectional=layer.bidirectional,
        proj_size=layer.proj_size,
    )
    known = dict(plain.named_parameters())
    return {name: p for name, p in layer.named_parameters() if name not in known}


COUNTS = [("input", 1), ("between", 2), ("hidden", 6), ("recurrent", 6), ("output", 1)]
SIZES = {"input": F, "between": 4, "hidden": 2, "recurrent": 2, "output": 4}


@pytest.mark.parametrize(("site", "count"), COUNTS)
@pytest.mark.parametrize("per", ["layer", "unit"])
def test_there_is_one_spread_a_layer_and_direction_or_one_a_unit(site, count, per):
    law = Gaussian(Learned(0.5, per=per))
    layer = LSTM(F, H, 3, bidirectional=True, proj_size=2, noise=getattr(at, site) * law)
    found = spreads(layer)
    assert len(found) == count
    assert {p.numel() for p in found.values()} == {SIZES[site] if per == "unit" else 1}
    assert len({*found}) == len(found)
    draws = layer.draw(seeded(T, B, F))
    assert all(v.requires_grad for values in draws.values() for v in values)


def test_each_learned_term_has_its_own_spread():
    noise = at.hidden * SPREAD & at.output * Gaussian(0.3) & at.hidden + Gumbel(Learned(0.7))
    layer = LSTM(F, H, noise=noise)
    assert len(spreads(layer)) == 2
    starts = sorted(nn.functional.softplus(p.detach()).item() for p in spreads(layer).values())
    expected = torch.tensor([0.4, 0.7], dtype=torch.float64)  # the first one has a floor of 0.1
    assert_close_to_float64(torch.tensor(starts), expected.float(), expected)


def test_the_gradient_of_an_offset_is_analytic():
    """∂/∂ρ of Σ w (h + std ξ) is σ(ρ) Σ w ξ: the noise itself, whatever the network."""
    law = Gaussian(Learned(0.5, floor=0.1, per="unit"))
    layer, x = GRU(F, H, noise=at.output + law), seeded(T, B, F)
    (rho,) = spreads_of_gru(layer)
    draws = layer.draw(x)
    pull = seeded(T, B, H, seed=1)
    (grad,) = torch.autograd.grad((layer(x, draws=draws)[0] * pull).sum(), rho)

    def analytic(dtype):
        xi = draws["output"][0].detach().to(dtype) / 0.5
        slope = torch.sigmoid(rho.detach().to(dtype))
        return slope * (pull.to(dtype) * xi).sum((0, 1))

    assert_close_to_float64(grad, analytic(torch.float32), analytic(torch.float64))


def spreads_of_gru(layer):
    plain = dict(nn.GRU(F, H).named_parameters())
    return [p for name, p in layer.named_parameters() if name not in plain]


@pytest.mark.parametrize("per", ["layer", "unit"])
@pytest.mark.parametrize("hold", ["step", "sequence", "cumulative"])
@pytest.mark.parametrize("operator", ["*", "+"])
def test_gradients_reach_every_spread_through_the_whole_network(operator, hold, per):
    sites = ("input", "between", "hidden", "recurrent", "output")
    law = f"Gaussian(Learned(0.5, floor=0.1, per='{per}')) @ {hold}"
    noise = " & ".join(f"{site} {operator} {law}" for site in sites)
    layer = LSTM(F, H, 2, bidirectional=True, proj_size=2, noise=noise, dtype=torch.float64)
    x, found = seeded(T, B, F, dtype=torch.float64), spreads(layer)
    assert len(found) == 1 + 1 + 4 + 4 + 1

    def output(*_):
        torch.manual_seed(0)
        return layer(x)[0]

    assert_gradients(output, tuple(found.values()))
    grads = torch.autograd.grad(output().pow(2).sum(), list(found.values()))
    assert all((grad != 0).all() for grad in grads)


def test_training_never_passes_the_floor():
    """Driven down hard, the std comes to rest on the floor and stays finite."""
    layer, x = LSTM(F, H, noise=at.hidden * SPREAD), seeded(50, B, F)
    (rho,) = spreads(layer).values()
    optimizer = torch.optim.SGD([rho], lr=1e4)
    with torch.no_grad():
        rho.fill_(3.0)
    for _ in range(5):
        optimizer.zero_grad()
        layer.draw(x)["hidden_l0"][0].sub(1).pow(2).sum().backward()
        optimizer.step()
    assert rho < -1000
    offsets = layer.draw(x, generator=torch.Generator().manual_seed(0))["hidden_l0"][0] - 1
    exact = Gaussian(0.1).sample((50, B, H), generator=torch.Generator().manual_seed(0))
    assert_close_to_float64(offsets.detach(), 1 + exact - 1, exact.double())


@pytest.mark.parametrize("module", [LSTM, GRU, RNN])
def test_reset_parameters_draws_weights_and_restarts_spreads(module):
    layer = module(F, H, noise=at.hidden * Gaussian(Learned(0.5, floor=0.1, per="unit")))
    rho = dict(layer.named_parameters())["rho_hidden_l0"]
    start, weight = rho.detach().clone(), layer.weight_hh_l0.detach().clone()
    with torch.no_grad():
        rho.fill_(9.0)
    layer.reset_parameters()
    assert_bit_equal(rho.detach(), start)
    assert dict(layer.named_parameters())["rho_hidden_l0"] is rho  # optimizers hold it
    assert not torch.equal(layer.weight_hh_l0, weight)
    assert layer.weight_hh_l0.abs().max() <= 1 / math.sqrt(H)


def test_the_seed_gives_torchs_weights_whatever_the_noise():
    torch.manual_seed(0)
    theirs = nn.LSTM(F, H)
    torch.manual_seed(0)
    ours = LSTM(F, H, noise=at.hidden * SPREAD)
    for name, p in theirs.named_parameters():
        assert_bit_equal(dict(ours.named_parameters())[name], p)


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_state_dicts_with_spreads(per):
    noise = at.hidden * Gaussian(Learned(0.5, per=per)) & at.output + SPREAD
    ours, theirs = LSTM(F, H, noise=noise), nn.LSTM(F, H)
    found = spreads(ours)
    assert len(found) == 2
    with torch.no_grad():
        for p in found.values():
            p.add_(1)
    before = {name: p.detach().clone() for name, p in found.items()}
    ours.load_state_dict(theirs.state_dict())  # strict: a torch checkpoint lacks them, they stay
    assert_bit_equal(ours.weight_hh_l0, theirs.weight_hh_l0)
    for name, p in before.items():
        assert_bit_equal(found[name].detach(), p)
    state = ours.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        theirs.load_state_dict(state)
    theirs.load_state_dict({name: p for name, p in state.items() if name not in found})
    twin = LSTM(F, H, noise=noise)
    twin.load_state_dict(state)
    for name, p in spreads(twin).items():
        assert_bit_equal(p, found[name])


def test_a_checkpoint_that_lacks_a_weight_is_still_refused():
    ours = LSTM(F, H, noise=at.hidden * SPREAD)
    state = nn.LSTM(F, H).state_dict()
    del state["weight_hh_l0"]
    with pytest.raises(RuntimeError, match="weight_hh_l0"):
        ours.load_state_dict(state)
    with pytest.raises(RuntimeError, match="bias_hh_l7"):
        ours.load_state_dict(nn.LSTM(F, H).state_dict() | {"bias_hh_l7": torch.zeros(1)})
    outer = nn.ModuleDict({"rnn": ours})
    outer.load_state_dict(nn.ModuleDict({"rnn": nn.LSTM(F, H)}).state_dict())


def test_a_copy_learns_on_its_own():
    layer, x = LSTM(F, H, noise=at.hidden * SPREAD), seeded(T, B, F)
    twin = copy.deepcopy(layer)
    (rho,), (other,) = spreads(layer).values(), spreads(twin).values()
    assert rho is not other
    twin(x)[0].pow(2).sum().backward()
    assert rho.grad is None
    assert (other.grad != 0).all()
    with torch.no_grad():
        other.fill_(5.0)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    small, large = (m.draw(x, generator=g) for m, g in zip((layer, twin), seeds, strict=True))
    assert ((large["hidden_l0"][0] - 1).abs() > (small["hidden_l0"][0] - 1).abs()).all()


def test_setting_noise_anew_starts_spreads_anew():
    layer = LSTM(F, H, noise=at.hidden * SPREAD)
    (rho,) = spreads(layer).values()
    start = rho.detach().clone()
    with torch.no_grad():
        rho.fill_(9.0)
    layer.noise = layer.noise
    (rho,) = spreads(layer).values()
    assert_bit_equal(rho.detach(), start)
    layer.noise = at.output * Gaussian(Learned(0.5, per="unit")) & at.input * SPREAD
    assert {p.numel() for p in spreads(layer).values()} == {H, 1}
    layer.noise = at.hidden * Gaussian(0.5)
    assert spreads(layer) == {}
    layer.noise = None
    assert list(layer.state_dict()) == list(nn.LSTM(F, H).state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_spreads_follow_the_dtype(dtype):
    by_argument = LSTM(F, H, noise=at.hidden * SPREAD, dtype=dtype)
    moved = LSTM(F, H, noise=at.hidden * SPREAD).to(dtype)
    for layer in (by_argument, moved):
        (rho,) = spreads(layer).values()
        assert rho.dtype == dtype
        assert layer(seeded(T, B, F).to(dtype))[0].dtype == dtype


def test_torchs_own_list_of_weights_has_no_spread():
    """cuDNN's flat weights are counted; a stranger among them would be a shape error there."""
    layer = LSTM(F, H, 2, noise=at.hidden * SPREAD)
    plain = nn.LSTM(F, H, 2)
    assert [w.shape for w in layer._flat_weights] == [w.shape for w in plain._flat_weights]
    assert [[w.shape for w in ws] for ws in layer.all_weights] == [
        [w.shape for w in ws] for ws in plain.all_weights
    ]


def test_a_layer_made_of_what_is_assigned_has_its_spreads():
    """A plain checkpoint has none: they begin where they would, in the type of the weights."""
    saved = nn.LSTM(3, 5).bfloat16().state_dict()
    layer = LSTM(3, 5, noise="hidden * Gaussian(Learned(0.5, per='unit'))", device="meta")
    assert not any(layer.load_state_dict(saved, assign=True))
    assert layer.spreads()["rho_hidden_l0"] == pytest.approx(0.5, rel=1e-2)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("cpu", torch.bfloat16)}
    layer(torch.randn(2, 2, 3, dtype=torch.bfloat16))
    other = LSTM(3, 5, noise="hidden * Gaussian(Learned(0.5))")
    with torch.no_grad():
        other.rho_hidden_l0.fill_(1.0)
    other.load_state_dict(nn.LSTM(3, 5).state_dict(), assign=True)
    assert other.rho_hidden_l0 == 1  # one that is there stays


def test_one_spread_is_no_scalar_and_those_of_older_files_are_read():
    """FSDP takes no scalars."""
    layer = LSTM(F, H, noise=at.hidden * SPREAD)
    assert layer.rho_hidden_l0.shape == (1,)
    older = layer.state_dict() | {"rho_hidden_l0": torch.tensor(1.5)}
    for assign in (False, True):
        other = LSTM(F, H, noise=at.hidden * SPREAD)
        other.load_state_dict(older, assign=assign)
        assert other.rho_hidden_l0.tolist() == [1.5]
    assert older["rho_hidden_l0"].shape == (), "what the caller holds stays as it is"
