"""Noise around any cell: as in the layers where torch has the cell, and against a plain loop."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn

from cases import make, plain_with_gradients, pulled_back, seeded
from conftest import assert_bit_equal, assert_close_to_float64, assert_gradients
from noisin import Gaussian, Learned, Recurrence, at, fold, parse, predict, sampling, unfold

T, B, F, H = 4, 3, 2, 5
CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "tanh": nn.RNNCell, "relu": nn.RNNCell}
SITES = ("input", "hidden", "output", "recurrent")
PAIRS = [(kind, site) for kind in CELLS for site in SITES if (kind, site) != ("GRU", "recurrent")]
HOLDS = ("step", "sequence", "cumulative")


def cell_of(kind, dtype=torch.float32):
    torch.manual_seed(0)
    nonlinearity = {} if kind in ("LSTM", "GRU") else {"nonlinearity": kind}
    return CELLS[kind](F, H, **nonlinearity, dtype=dtype)


def twin(kind, noise):
    """Return a recurrence over torch's cell, and the layer of the same weights and noise."""
    cell = cell_of(kind)
    layer = make(kind, F, H, noise=noise)
    layer.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    return Recurrence(cell, F, H, noise=noise), layer


def state_of(kind):
    """Return h_0, and c_0 of an LSTM, each [1, B, H]."""
    return tuple(seeded(1, B, H, seed=7 + i).requires_grad_() for i in range(1 + (kind == "LSTM")))


def as_cell(kind, state):
    """Return a state of a layer as the cell takes it."""
    return tuple(s[0] for s in state) if kind == "LSTM" else state[0][0]


def renamed(draws):
    """Return draws of a recurrence by the places of a layer."""
    return {f"{k}_l0" if k in ("hidden", "recurrent") else k: v for k, v in draws.items()}


def assert_is_the_layer(kind, noise):
    """Outputs, states and gradients of x, h_0, weights and draws are the plain loop's."""
    ours, layer = twin(kind, noise)
    x, hx = seeded(T, B, F, seed=1).requires_grad_(), state_of(kind)
    drawn = ours.draw(x, generator=torch.Generator().manual_seed(0))
    draws = {k: tuple(v.detach().requires_grad_() for v in vs) for k, vs in drawn.items()}
    named = renamed(draws)
    ordered = [v for place in sorted(named) for v in named[place]]
    assert len(ordered) > 0
    output, final = ours(x, as_cell(kind, hx), draws=draws)
    states = [s[None] for s in (final if kind == "LSTM" else (final,))]
    actual = pulled_back([output, *states], [x, *hx, *ours.cell.parameters(), *ordered])
    others = [
        plain_with_gradients(layer, x, hx, named, None, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    assert_close_to_float64(actual, *others)


@pytest.mark.parametrize(("kind", "site"), PAIRS)
@pytest.mark.parametrize("operator", ["*", "+"])
@pytest.mark.parametrize("hold", HOLDS)
def test_over_torchs_cells_it_is_the_layer(kind, site, operator, hold):
    assert_is_the_layer(kind, parse(f"{site} {operator} Gaussian(0.5) @ {hold}"))


@pytest.mark.parametrize("kind", ["LSTM", "tanh"])
def test_terms_act_together_and_from_left_to_right(kind):
    both = at.hidden * Gaussian(0.5) & at.hidden + Gaussian(0.5) & at.recurrent + Gaussian(0.3)
    assert_is_the_layer(kind, both & at.input * Gaussian(0.5) & at.output + Gaussian(0.5))


@pytest.mark.parametrize("site", SITES)
def test_the_same_seed_draws_what_the_layer_draws(site):
    ours, layer = twin("LSTM", parse(f"{site} * Bernoulli(keep=0.5)"))
    x = seeded(T, B, F)
    drawn = [one.draw(x, generator=torch.Generator().manual_seed(3)) for one in (ours, layer)]
    assert list(renamed(drawn[0])) == list(drawn[1])
    assert_bit_equal(list(drawn[0].values()), list(drawn[1].values()))
    state = as_cell("LSTM", state_of("LSTM"))
    torch.manual_seed(3)
    assert_bit_equal(ours(x, state), ours(x, state, draws=drawn[0]))


def test_what_a_gru_cell_cannot_separate_stays_joined():
    """All that reads h_{t-1} sees recurrent noise, z ⊙ h_{t-1} too: not so in the layer."""
    ours, layer = twin("GRU", at.recurrent * Gaussian(0.5))
    x, h = seeded(T, B, F), as_cell("GRU", state_of("GRU"))
    (factor,) = ours.draw(x)["recurrent"]
    output, final = ours(x, h, draws={"recurrent": (factor,)})
    expected, state = [], h
    for t in range(T):
        state = ours.cell(x[t], state * factor[t])
        expected.append(state)
    assert_bit_equal((output, final), (torch.stack(expected), state))
    theirs, _ = layer(x, h[None], draws={"recurrent_l0": (factor,)})
    assert not torch.allclose(output, theirs)


class Leaky(nn.Module):
    """A cell of the user's own, with a state of tensors of two sizes."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(5)
        self.into = nn.Linear(F + H, H, dtype=dtype)
        self.mix = nn.Parameter(torch.randn(H, 2, dtype=dtype))

    def forward(self, x, state):
        h, memory = state
        memory = 0.5 * memory + h @ self.mix
        h = 0.3 * h + torch.tanh(self.into(torch.cat([x, h], -1))) * memory.sum(-1, keepdim=True)
        return h, (h, memory)


def leaky_by_hand(x, state, params, draws):
    """Run the cell, its noise and all, written out from the definition."""
    factor, before, inside, after = draws
    h, memory = state
    outputs = []
    for t in range(T):
        row, seen = x[t] * factor[t], h + before[0]
        memory = 0.5 * memory + seen @ params["mix"]
        a = torch.cat([row, seen], -1) @ params["into.weight"].T + params["into.bias"]
        h = 0.3 * seen + torch.tanh(a) * memory.sum(-1, keepdim=True)
        h = h * inside[t]
        outputs.append(h + after[t])
    return [torch.stack(outputs), h, memory]


NOISE = (
    at.input * Gaussian(0.5)
    & parse("recurrent + Gaussian(0.5) @ sequence")
    & at.hidden * Gaussian(0.5)
    & at.output + Gaussian(0.5)
)


def test_a_cell_of_the_users_own_against_a_plain_loop():
    layer, x = Recurrence(Leaky(), F, H, noise=NOISE), seeded(T, B, F)
    state = (seeded(B, H, seed=1), seeded(B, 2, seed=2))
    drawn = layer.draw(x, generator=torch.Generator().manual_seed(0))
    assert list(drawn) == ["input", "recurrent", "hidden", "output"]
    draws = [v for (v,) in drawn.values()]
    params = dict(layer.cell.named_parameters())

    def leaves(dtype):
        tensors = [x, *state, *params.values(), *draws]
        return [one.detach().to(dtype, copy=True).requires_grad_() for one in tensors]

    def by_hand(dtype):
        ends = leaves(dtype)
        named = dict(zip(params, ends[3:6], strict=True))
        return pulled_back(leaky_by_hand(ends[0], ends[1:3], named, ends[6:]), ends)

    ends = leaves(torch.float32)
    given = {place: (v,) for place, v in zip(drawn, ends[6:], strict=True)}
    output, final = layer(ends[0], (ends[1], ends[2]), draws=given)
    actual = pulled_back([output, *final], [*ends[:3], *params.values(), *ends[6:]])
    assert_close_to_float64(actual, by_hand(torch.float32), by_hand(torch.float64))


def test_gradients_are_the_differences():
    layer = Recurrence(Leaky(torch.float64), F, H, noise=NOISE)
    x = seeded(T, B, F, dtype=torch.float64)
    drawn = layer.draw(x)
    sizes = [(T, B, F), (B, H), (B, 2)]
    starts = [seeded(*size, seed=i, dtype=torch.float64) for i, size in enumerate(sizes)]
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach() for p in layer.parameters()] + [v for (v,) in drawn.values()]

    def run(x, h, memory, *rest):
        weights = dict(zip(names, rest, strict=False))
        given = {k: (v,) for k, v in zip(drawn, rest[len(names) :], strict=True)}
        called = torch.func.functional_call(layer, weights, (x, (h, memory)), {"draws": given})
        return called[0], *called[1]

    assert_gradients(run, tuple(v.clone().requires_grad_() for v in (*starts, *values)))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("per", "size"), [("layer", (1,)), ("unit", (H,))])
def test_learned_spreads_are_trained(site, per, size):
    """Their gradient is the difference of two calls with the same numbers of the generator."""
    law = Gaussian(Learned(0.5, floor=0.1, per=per))
    layer = Recurrence(cell_of("GRU", torch.float64), F, H, noise=getattr(at, site) * law)
    rho = layer.get_parameter(f"rho_{site}")
    assert rho.shape == ((F,) if per == "unit" and site == "input" else size)
    assert layer.spreads() == {f"rho_{site}": pytest.approx(0.5)}
    x, h = seeded(T, B, F, dtype=torch.float64), seeded(B, H, dtype=torch.float64)

    def run(rho):
        torch.manual_seed(2)
        return torch.func.functional_call(layer, {f"rho_{site}": rho}, (x, h))[0]

    assert_gradients(run, (rho.detach().clone().requires_grad_(),))
    run(rho).square().sum().backward()
    assert (rho.grad != 0).all()


def test_resetting_starts_weights_and_spreads_anew():
    layer = Recurrence(cell_of("GRU"), F, H, noise=at.hidden * Gaussian(Learned(0.5)))
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with torch.no_grad():
        layer.rho_hidden.fill_(7.0)
    layer.reset_parameters()
    assert_bit_equal(layer.rho_hidden, before["rho_hidden"])
    assert not torch.equal(layer.cell.weight_hh, before["cell.weight_hh"])
    own = Recurrence(Leaky(), F, H, noise=at.hidden * Gaussian(Learned(0.5)))
    own.reset_parameters()  # a cell need not be able to


def test_noise_is_off_in_evaluation_and_on_while_sampling():
    layer, x, h = twin("GRU", NOISE)[0], seeded(T, B, F), seeded(B, H, seed=7)
    assert not torch.equal(layer(x, h)[0], layer(x, h)[0])
    layer.eval()
    state, outputs = h, []
    for row in x:
        state = layer.cell(row, state)
        outputs.append(state)
    before = torch.get_rng_state()
    assert_bit_equal(layer(x, h), (torch.stack(outputs), state))
    assert torch.equal(torch.get_rng_state(), before)
    with sampling(layer):
        assert not torch.equal(layer(x, h)[0], layer(x, h)[0])
    found = predict(layer, x, h, samples=3, link=lambda result: result[0])
    assert not torch.equal(found, layer(x, h)[0])
    layer.noise = None
    assert_bit_equal(layer.train()(x, h), (torch.stack(outputs), state))


def test_folded_draws_are_what_each_would_be_alone():
    layer, x = Recurrence(Leaky(), F, H, noise=NOISE).eval(), seeded(T, B, F)
    state = (seeded(B, H, seed=1), seeded(B, 2, seed=2))
    draws = layer.draw(fold(x, 2))
    folded = tuple(fold(s, 2, 0) for s in state)
    together = unfold(layer(fold(x, 2), folded, draws=draws)[0], 2).detach()
    for k in range(2):
        own = {p: tuple(v[:, k * B : (k + 1) * B] for v in vs) for p, vs in draws.items()}
        alone = layer(x, state, draws=own)[0].detach()
        assert_close_to_float64(together[k], alone, alone.double())


def test_the_state_carried_over_is_one_long_run():
    layer, x, h = twin("tanh", NOISE)[0], seeded(T, B, F), seeded(B, H, seed=7)
    draws = layer.draw(x)
    first = {k: tuple(v[:2] if len(v) > 1 else v for v in vs) for k, vs in draws.items()}
    second = {k: tuple(v[2:] if len(v) > 1 else v for v in vs) for k, vs in draws.items()}
    one, between = layer(x[:2], h, draws=first)
    two, final = layer(x[2:], between, draws=second)
    assert_bit_equal((torch.cat([one, two]), final), layer(x, h, draws=draws))


class Pair(NamedTuple):
    h: torch.Tensor
    age: torch.Tensor


class Named(nn.Module):
    """A cell whose state is a tuple with names."""

    def forward(self, x, state):
        h = torch.tanh(state.h + state.age + x.sum(-1, keepdim=True))
        return h, Pair(h, state.age + 1)


@pytest.mark.parametrize("site", ["hidden", "recurrent", "output"])
def test_a_state_keeps_its_kind_of_tuple(site):
    layer = Recurrence(Named(), F, H, noise=f"{site} * Gaussian(0.5)")
    _, state = layer(seeded(T, B, F), Pair(torch.zeros(B, H), torch.zeros(B, 1)))
    assert isinstance(state, Pair)
    assert (state.age == T).all()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
@pytest.mark.parametrize("site", SITES)
def test_without_a_state_torchs_cells_start_from_zero(kind, site):
    """``None`` is a state as these cells take it; only noise in h_0 has nothing to act on."""
    layer, x = Recurrence(cell_of(kind), F, H, noise=f"{site} * Gaussian(0.5)"), seeded(T, B, F)
    draws = layer.draw(x)
    zero = as_cell(kind, [torch.zeros(1, B, H)] * 2)
    if site == "recurrent":
        with pytest.raises(ValueError, match="state"):
            layer(x, None, draws=draws)
    else:
        assert_bit_equal(layer(x, None, draws=draws), layer(x, zero, draws=draws))


class Hiding(nn.Module):
    """A cell whose state does not begin with what it shows."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x, state):
        memory = torch.tanh(state[0] + x.sum(-1, keepdim=True))
        h = memory * 2
        return h, {"last": (memory, h), "copy": (h.clone(), memory)}[self.order]


@pytest.mark.parametrize("order", ["last", "copy"])
def test_noise_in_h_needs_a_state_that_begins_with_it(order):
    layer, x = Recurrence(Hiding(order), F, H), seeded(T, B, F)
    state = (torch.zeros(B, H), torch.zeros(B, H))
    for site in ("hidden", "recurrent"):
        layer.noise = f"{site} * Gaussian(0.5)"
        with pytest.raises(ValueError, match=r"begins with .* Hiding"):
            layer(x, state)
        layer.eval()(x, state)
        layer.train()
    layer.noise = "input * Gaussian(0.5) & output + Gaussian(0.5)"
    assert not torch.equal(layer(x, state)[0], layer(x, state)[0])


@pytest.mark.parametrize(
    "noise",
    [
        *("between * Gaussian(1)", "candidate * Gaussian(1)", "weight_hh + Gaussian(1)"),
        *("weight_ih * Gaussian(1) @ sequence", "weight + Gaussian(1)", "row * Gaussian(1)"),
        *("input * Gaussian(1) @ untied", "input * Gaussian(1) @ preactivation"),
        *("recurrent * Gaussian(1) @ untied", "recurrent + Gaussian(1) @ preactivation"),
        *("hidden * Gaussian(1) @ moments", "hidden[0] * Gaussian(1)", "Zoneout(hidden=0.1)"),
        "hidden * Gaussian(Learned(0.5, per='weight'))",
    ],
)
def test_what_needs_to_see_into_the_cell_is_refused(noise):
    layer = Recurrence(nn.GRUCell(F, H), F, H, noise=NOISE)
    with pytest.raises(ValueError, match="got"):
        layer.noise = noise
    assert layer.noise == NOISE
    with pytest.raises(ValueError, match="got"):
        Recurrence(nn.GRUCell(F, H), F, H, noise=noise)


@pytest.mark.parametrize("size", [(B, F), (0, B, F), (F,)])
def test_an_input_of_another_layout_is_refused(size):
    layer = Recurrence(nn.GRUCell(F, H), F, H)
    with pytest.raises((ValueError, TypeError)):  # the shape, where it is annotated
        layer(torch.zeros(size), torch.zeros(B, H))


def test_draws_that_do_not_fit_are_refused():
    layer, x, h = twin("GRU", "hidden * Gaussian(1)")[0], seeded(T, B, F), seeded(B, H, seed=7)
    (value,) = layer.draw(x)["hidden"]
    place = {"hidden_l0": (value,)}
    wrong = [{}, place, {"hidden": ()}, {"hidden": (value[1:],)}, {"hidden": (value.double(),)}]
    for draws in wrong:
        with pytest.raises(ValueError, match="draws"):
            layer(x, h, draws=draws)


def test_copies_and_pickles_compute_the_same():
    layer, x = Recurrence(Leaky(), F, H, noise=NOISE), seeded(T, B, F)
    state, draws = (seeded(B, H), seeded(B, 2)), layer.draw(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.noise == layer.noise
        assert_bit_equal(other(x, state, draws=draws), layer(x, state, draws=draws))
    assert str(NOISE) in repr(layer)
