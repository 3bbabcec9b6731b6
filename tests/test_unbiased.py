"""Every term keeps the mean of the tensor it perturbs, with the stated variance, end to end.

The cells are made transparent: gates open or shut, identity weights, so that what a cell was given
can be computed back from what it shows, and with it the perturbation that really acted.
"""

import pytest
import torch
from torch import nn

from cases import ALL_KINDS, HOLDS, KINDS, SITES, make, seeded, zeros
from conftest import assert_mean, assert_vanishes, assert_variance
from noisin import Bernoulli, Gaussian, at, laws
from plain import cell, mode_of, parameters

STD = 0.2
LAWS = [Bernoulli(keep=0.8) if n == "Bernoulli" else law(STD) for n, law in laws.LAWS.items()]
VARIANCE = {str(law): 0.2 / 0.8 if law == Bernoulli(keep=0.8) else STD**2 for law in LAWS}
H, ROWS, TIME = 3, 5000, 3
SIGNAL = 0.3


def test_all_laws_are_here():
    assert len(LAWS) == len(laws.LAWS) == 9


def transparent(kind, noise, site):
    """Return layers that show tanh(x + h_{t-1}), an LSTM tanh(tanh(·)); x alone by most sites."""
    layer = make(kind, H, H, num_layers=2 if site == "between" else 1, noise=noise).double()
    for name, p in layer.named_parameters():
        nn.init.zeros_(p)
        # the block of the candidate is g of i f g o, n of r z n
        rows = p[{"LSTM": slice(2 * H, 3 * H), "GRU": slice(2 * H, None)}.get(kind, slice(None))]
        if name.startswith("weight_ih") or (name == "weight_hh_l0" and site == "recurrent"):
            nn.init.eye_(rows)
        if name.startswith("bias_ih"):
            gates = {"LSTM": (100, -100, 0, 100), "GRU": (100, -100, 0)}.get(kind, (0,))
            p.data.copy_(torch.tensor(gates, dtype=p.dtype).repeat_interleave(H))
    return layer


def shown(kind, x):
    return x.tanh().tanh() if kind == "LSTM" else x.tanh()


def computed_back(kind, output):
    return output.atanh().atanh() if kind == "LSTM" else output.atanh()


def acted(kind, site, operator, output):
    """Return the factor or offset that acted at each step, [T, N·H]."""
    x = torch.full_like(output, SIGNAL)
    if site == "recurrent":
        before = torch.cat([x[:1], output[:-1]])
        perturbed = computed_back(kind, output) - x
    else:
        before = x if site == "input" else shown(kind, x)
        perturbed = output if site in ("hidden", "output") else computed_back(kind, output)
    return (perturbed / before if operator == "*" else perturbed - before).flatten(1)


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("operator", ["*", "+"])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_mean_and_variance_of_what_acted(law, operator, site, kind, hold):
    torch.manual_seed(0)
    layer = transparent(kind, f"{site} {operator} {law} @ {hold}", site)
    x = torch.full((TIME, ROWS, H), SIGNAL, dtype=torch.float64)
    with torch.no_grad():
        h = torch.full((layer.num_layers, ROWS, H), SIGNAL, dtype=torch.float64)
        output, _ = layer(x, (h, 0 * h) if kind == "LSTM" else h)
    noise = acted(kind, site, operator, output)
    assert noise.shape == (TIME, ROWS * H)
    mean, one = float(operator == "*"), VARIANCE[str(law)]
    for t in range(TIME):
        if hold != "cumulative":
            variance = one
        else:  # of a product of t + 1 factors, of a sum of t + 1 offsets
            variance = (1 + one) ** (t + 1) - 1 if operator == "*" else (t + 1) * one
        assert_mean(noise[t], mean, variance**0.5)
        assert_variance(noise[t], variance, mean)
    # fresh at each step, the same, or the same and a fresh one on top
    together = (noise[0] - mean) * (noise[1] - mean)
    assert_mean(together, 0.0 if hold == "step" else one, together.std())
    units = (noise.view(TIME, ROWS, H) - mean)[-1]
    for shared in (units[:, 0] * units[:, 1], units[1:, 0] * units[:-1, 0]):
        assert_mean(shared, 0.0, shared.std())


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("operator", ["*", "+"])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_mean_of_a_hidden_step_is_the_plain_transition(law, operator, kind):
    """E[z_t | z_{t-1}] and V[z_t | z_{t-1}]: one step from one state, over and over."""
    torch.manual_seed(1)
    layer = make(kind, 2, 4, noise=f"hidden {operator} {law}").double()
    x = seeded(1, 1, 2, dtype=torch.float64)
    hx = tuple(0.3 + z for z in zeros(layer, x))
    weights = parameters(layer, "l0", dict(layer.named_parameters()))
    with torch.no_grad():
        h, _ = cell(mode_of(layer), weights, x[0, 0], hx[0][0, 0], hx[0][0, 0], hx[-1][0, 0])
        many = tuple(s.expand(1, 20_000, 4).contiguous() for s in hx)
        z, _ = layer(x.expand(1, 20_000, 2), many if kind == "LSTM" else many[0])
    alive = h != 0  # a rectifier may show 0, which a factor leaves alone
    assert alive.sum() >= 2
    std = VARIANCE[str(law)] ** 0.5 * (h.abs() if operator == "*" else torch.ones_like(h))
    assert_mean(z[0][:, alive], h[alive], std[alive])
    assert_variance(z[0][:, alive], std[alive] ** 2, h[alive])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_std_towards_0_is_torchs_result(law, site, kind):
    tiny = 1e-6
    small = Bernoulli(keep=1 - tiny**2) if isinstance(law, Bernoulli) else type(law)(tiny)
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    theirs = make(kind, 3, 4, package=nn, **options)
    x = seeded(5, 2, 3, dtype=torch.float64)
    for operator in "*+":
        for hold in HOLDS:
            ours = make(kind, 3, 4, noise=f"{site} {operator} {small} @ {hold}", **options)
            ours.load_state_dict(theirs.state_dict())
            with torch.no_grad():
                assert_vanishes(ours(x), theirs(x), std=tiny)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", SITES)
def test_noise_acts_in_training_and_on_every_sequence(site, kind):
    layer = make(kind, 3, 4, num_layers=2, noise=getattr(at, site) + Gaussian(0.5))
    x = seeded(5, 1, 3).expand(5, 4, 3)
    with torch.no_grad():
        noisy, clean = layer(x)[0], layer.eval()(x)[0]
    assert (noisy != clean).any(2).any(0).all()
    assert torch.unique(noisy[-1], dim=0).shape[0] == 4
