"""Where each term enters: each sentence of the design, on inputs where it could be wrong.

Draws are handed in, so that everything is compared exactly: with the plain loop of plain.py, or
with the layer itself on other draws.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cases import ALL_KINDS, SITES, make, pulled_back, seeded, zeros
from conftest import assert_bit_equal, assert_close_to_float64
from noisin import GRU, LSTM, RNN, Bernoulli, Gaussian, at
from plain import cell, parameters, plain

T, B, F, H = 5, 3, 3, 4  # steps, sequences, features of the input, units
BELOW = ("recurrent", "between", "output")  # sites that leave h_n clean


def drawn(layer, x, seed=0):
    """Return draws of a seed, without their gradients."""
    draws = layer.draw(x, generator=torch.Generator().manual_seed(seed))
    return {place: tuple(v.detach() for v in values) for place, values in draws.items()}


def assert_plain(layer, x, hx, draws, lengths=None, actual=None):
    """Compare a call with the plain loop by rule 7; return its output and state."""
    if actual is None:
        output, state = layer(x, hx if layer.mode == "LSTM" else hx[0], draws=draws)
        actual = (output, *(state if layer.mode == "LSTM" else (state,)))
    with torch.no_grad():
        eager = plain(layer, x, hx, draws, lengths)
        wide = {name: p.double() for name, p in layer.named_parameters()}
        hx64 = tuple(h.double() for h in hx)
        draws64 = {place: tuple(v.double() for v in values) for place, values in draws.items()}
        ref64 = plain(layer, x.double(), hx64, draws64, lengths, wide)
    assert_close_to_float64([a.detach() for a in actual], eager, ref64)
    return actual


def given_state(layer, batch=B):
    """Return a random state of the layer's shape."""
    shapes = [z.shape for z in zeros(layer, torch.zeros(1, batch, 1))]
    return tuple(seeded(*shape, seed=9 + i) for i, shape in enumerate(shapes))


def call(layer, x, hx, draws):
    """Return output, h_n and c_n (None but for an LSTM)."""
    output, state = layer(x, hx if layer.mode == "LSTM" else hx[0], draws=draws)
    return (output, *state) if layer.mode == "LSTM" else (output, state, None)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_final_h_is_the_perturbed_one_under_hidden(kind):
    layer = make(kind, F, H, bidirectional=True, noise=at.hidden * Gaussian(0.5))
    x, hx = seeded(T, B, F), given_state(layer)
    output, h_n, *_ = assert_plain(layer, x, hx, drawn(layer, x))
    assert_bit_equal(h_n, torch.stack([output[-1, :, :H], output[0, :, H:]]))


@pytest.mark.parametrize("site", BELOW)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_final_h_is_clean_of_the_last_draw_of_other_sites(kind, site):
    """Whatever the last draw of the last layer does, h_n does not see it as noise in h_n."""
    layer = make(kind, F, H, num_layers=2, noise=getattr(at, site) + Gaussian(0.5))
    x, hx = seeded(T, B, F), given_state(layer)
    draws = drawn(layer, x)
    output, h_n, *_ = assert_plain(layer, x, hx, draws)
    if site == "output":
        assert (output[-1] != h_n[-1]).all()
        assert_bit_equal(output[-1], h_n[-1] + draws["output"][0][-1])
    else:
        assert_bit_equal(output[-1], h_n[-1])


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("site", ["output", "between"])
def test_states_of_the_layer_below_do_not_know_the_noise_above(kind, site):
    layer = make(kind, F, H, num_layers=2, noise=getattr(at, site) * Gaussian(0.5))
    x, hx = seeded(T, B, F), given_state(layer)
    noisy = call(layer, x, hx, drawn(layer, x))
    layer.noise = None
    clean = call(layer, x, hx, None)
    unchanged = {"output": 2, "between": 1}[site]
    assert_close_to_float64(
        noisy[1][:unchanged], clean[1][:unchanged], clean[1][:unchanged].double()
    )
    assert (noisy[0] != clean[0]).any()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_given_state_gets_recurrent_noise_never_hidden(kind):
    for site in ("recurrent", "hidden"):
        layer = make(kind, F, H, noise=getattr(at, site) * Gaussian(0.5))
        x, hx = seeded(1, B, F), given_state(layer)
        factor = drawn(layer, x)[f"{site}_l0"][0]
        weights = parameters(layer, "l0", dict(layer.named_parameters()))
        steps = []
        for dtype in (torch.float32, torch.float64):
            h, f = hx[0][0].to(dtype), factor[0].to(dtype)
            c = hx[1][0].to(dtype) if len(hx) > 1 else None
            cast = [None if w is None else w.detach().to(dtype) for w in weights]
            seen = h * f if site == "recurrent" else h
            h_t, _ = cell(layer.mode, cast, x[0].to(dtype), seen, h, c)
            steps.append(h_t * f if site == "hidden" else h_t)
        actual = call(layer, x, hx, {f"{site}_l0": (factor,)})[1][0].detach()
        assert_close_to_float64(actual, *steps)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_two_carried_calls_are_one_long_call(kind):
    noise = at.input * Gaussian(0.5)
    for site in SITES[1:]:
        noise = noise & getattr(at, site) + Gaussian(0.5)
    layer = make(kind, F, H, num_layers=2, noise=noise)
    x, hx = seeded(T, B, F), given_state(layer)
    draws = drawn(layer, x)
    assert len(draws) == 7  # input, between_l0, output, and two layers of hidden and recurrent
    cut = 2
    early, late = (
        {k: (v[0][s],) for k, v in draws.items()} for s in (slice(cut), slice(cut, None))
    )
    first, *carried = call(layer, x[:cut], hx, early)
    second, *final = call(layer, x[cut:], tuple(s for s in carried if s is not None), late)
    actual = [torch.cat([first, second]), *(s for s in final if s is not None)]
    assert_plain(layer, x, hx, draws, actual=actual)


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("operator", ["*", "+"])
def test_the_cell_state_stays_clean(proj_size, operator):
    layer = LSTM(F, H, proj_size=proj_size, noise=f"hidden {operator} Gaussian(0.5)")
    x, hx = seeded(1, B, F), given_state(layer)
    draws = drawn(layer, x)
    assert draws["hidden_l0"][0].shape == (1, B, proj_size or H)  # the projected h is perturbed
    _, h_n, c_n = assert_plain(layer, x, hx, draws)
    layer.noise = None
    _, (h_plain, c_plain) = layer(x, hx)
    assert_close_to_float64(c_n.detach(), c_plain.detach(), c_plain.detach().double())
    assert (h_n != h_plain).all()


def test_recurrent_noise_of_a_gru_leaves_z_times_h_alone():
    """With the update gate open, h_t = h_{t-1}: all that recurrent noise cannot touch."""
    layer = GRU(F, H, noise=at.recurrent * Gaussian(0.5))
    x, hx = seeded(1, B, F), given_state(layer)
    with torch.no_grad():
        layer.bias_hh_l0[H : 2 * H] = 200.0  # σ(z) is 1 in float32
    _, h_n = layer(x, hx[0])
    assert_close_to_float64(h_n.detach(), hx[0], hx[0].double())
    layer.noise = at.hidden * Gaussian(0.5)
    draws = drawn(layer, x)
    _, h_n = layer(x, hx[0], draws=draws)
    eager = hx[0] * draws["hidden_l0"][0]
    assert_close_to_float64(h_n.detach(), eager, eager.double())


@pytest.mark.parametrize("site", ["hidden", "recurrent"])
def test_directions_draw_separately_inside_the_recurrence(site):
    layer = LSTM(F, H, num_layers=2, bidirectional=True, noise=f"{site} * Gaussian(0.5)")
    x, hx = seeded(T, B, F), given_state(layer)
    draws = drawn(layer, x)
    assert sorted(draws) == [f"{site}_l{i}{d}" for i in (0, 1) for d in ("", "_reverse")]
    values = [v for (v,) in draws.values()]
    assert all(v.shape == (T, B, H) for v in values)
    assert all((a != b).all() for i, a in enumerate(values) for b in values[:i])
    assert_plain(layer, x, hx, draws)


def test_input_is_shared_by_both_directions():
    layer = RNN(F, F, bidirectional=True, noise=at.input * Gaussian(0.5))
    with torch.no_grad():  # both directions show tanh of what they see
        for suffix in ("", "_reverse"):
            getattr(layer, f"weight_ih_l0{suffix}").copy_(torch.eye(F))
            for name in ("weight_hh", "bias_ih", "bias_hh"):
                getattr(layer, f"{name}_l0{suffix}").zero_()
    output, _ = layer(seeded(T, B, F))
    assert (output[..., :F] != torch.tanh(seeded(T, B, F))).all()
    assert_bit_equal(output[..., :F], output[..., F:])
    assert list(layer.draw(seeded(T, B, F))) == ["input"]


@pytest.mark.parametrize("site", ["between", "output"])
def test_between_and_output_act_on_the_concatenation(site):
    layer = GRU(F, H, num_layers=2, bidirectional=True, noise=f"{site} * Gaussian(0.5)")
    x, hx = seeded(T, B, F), given_state(layer)
    draws = drawn(layer, x)
    ((place, (value,)),) = draws.items()
    assert place == {"between": "between_l0", "output": "output"}[site]
    assert value.shape == (T, B, 2 * H)
    assert (value[..., :H] != value[..., H:]).all()
    assert_plain(layer, x, hx, draws)


OUTSIDE = "input + Gaussian(0.5) & between * Gaussian(0.5) & output + Gaussian(0.5)"
INSIDE = "hidden + Gaussian(0.5) @ cumulative & recurrent * Bernoulli(keep=0.7) @ sequence"
EVERYWHERE = f"{OUTSIDE} & {INSIDE}"


@pytest.mark.parametrize("noise", [OUTSIDE, EVERYWHERE])  # torch's kernel, and the plain loop
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [(5, 3, 1), (1, 5, 3), (2, 5, 5)])
def test_packed_equals_padded(kind, bidirectional, lengths, noise):
    layer = make(kind, F, H, num_layers=2, bidirectional=bidirectional, noise=noise)
    x, hx, lengths = seeded(T, B, F), given_state(layer), torch.tensor(lengths)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    draws = drawn(layer, x)
    of_packed = drawn(layer, packed)
    assert draws.keys() == of_packed.keys()
    assert len(draws) == (3 if noise == OUTSIDE else 3 + 4 * (1 + bidirectional))
    for place, values in draws.items():  # the same numbers, whatever the lengths
        assert_bit_equal(of_packed[place], values)
    output, *state = call(layer, packed, hx, draws)
    padded, _ = pad_packed_sequence(output)
    actual = (padded, *(s for s in state if s is not None))
    assert_plain(layer, x, hx, draws, lengths, actual=actual)
    # a sequence's own prefix, run alone and unbatched on its columns of the draws
    alone = 1
    n, column = int(lengths[alone]), slice(alone, alone + 1)
    own = {
        k: tuple(v[:n, column] if len(v) > 1 else v[:, column] for v in vs)
        for k, vs in draws.items()
    }
    single, *_ = call(layer, x[:n, alone], tuple(h[:, alone] for h in hx), own)
    eager = single.detach()
    assert_close_to_float64(padded[:n, alone].detach(), eager, eager.double())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_terms_at_one_site_apply_left_to_right(kind, site):
    here = getattr(at, site)
    times, plus = here * Gaussian(0.5), here + Gaussian(0.5)
    layer, x = make(kind, F, H, num_layers=2, noise=times & plus), seeded(T, B, F)
    hx, draws = given_state(layer), drawn(layer, x)
    times_first = assert_plain(layer, x, hx, draws)[0]
    layer.noise = plus & times
    swapped = {place: values[::-1] for place, values in draws.items()}
    plus_first = assert_plain(layer, x, hx, swapped)[0]
    assert (times_first != plus_first).all()


def test_terms_of_one_site_keep_their_order_between_other_sites():
    text = "hidden * Gaussian(0.5) & output + Gaussian(0.5) & hidden + Gaussian(0.5)"
    layer, x = LSTM(F, H, noise=text), seeded(T, B, F)
    draws = drawn(layer, x)
    assert {place: len(values) for place, values in draws.items()} == {"hidden_l0": 2, "output": 1}
    assert_plain(layer, x, given_state(layer), draws)


@pytest.mark.parametrize("noise", ["between + Gaussian(0.5)", "hidden * Gaussian(0.5)"])
def test_torchs_dropout_is_the_last_term_between(noise):
    layer = LSTM(F, H, num_layers=3, dropout=0.25, noise=noise)
    x = seeded(T, B, F)
    draws = drawn(layer, x)
    own = 1 if "between" in noise else 0
    for place in ("between_l0", "between_l1"):
        assert len(draws[place]) == own + 1
        mask = draws[place][-1]
        assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert "between_l2" not in draws
    assert "output" not in draws
    output, h_n, _ = assert_plain(layer, x, given_state(layer), draws)
    assert_bit_equal(output[-1], h_n[-1])


def test_a_unit_dropped_after_additive_noise_is_exactly_zero():
    """(t + ε) ⊙ b/p, not t ⊙ b/p + ε: layer 1 shows tanh of what it is given."""
    layer = RNN(H, H, num_layers=2, dropout=0.5, noise=at.between + Gaussian(0.5))
    with torch.no_grad():
        layer.weight_ih_l1.copy_(torch.eye(H))
        for name in ("weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
            getattr(layer, name).zero_()
    x = seeded(T, B, H)
    draws = drawn(layer, x)
    output, _ = layer(x, draws=draws)
    assert torch.equal(output == 0, draws["between_l0"][1] == 0)


def test_dropout_follows_the_attribute():
    layer, x = LSTM(F, H, num_layers=2, noise=at.hidden * Gaussian(0.5)), seeded(T, B, F)
    layer.dropout = 0.5
    assert len(drawn(layer, x)["between_l0"]) == 1
    layer.dropout = 0.0
    assert "between_l0" not in drawn(layer, x)


@pytest.mark.parametrize("index", [0, 1, 2, -1, -2, -3])
def test_an_index_counts_layers_as_in_a_list(index):
    for site in ("hidden", "recurrent"):
        layer = LSTM(F, H, num_layers=3, noise=getattr(at, site)[index] * Gaussian(0.5))
        assert list(drawn(layer, seeded(T, B, F))) == [f"{site}_l{index % 3}"]


def test_layout_does_not_change_the_draws():
    x = seeded(T, B, F)
    first = LSTM(F, H, batch_first=True, noise=EVERYWHERE, num_layers=2)
    layer = LSTM(F, H, noise=EVERYWHERE, num_layers=2)
    layer.load_state_dict(first.state_dict())
    draws, others = drawn(layer, x), drawn(first, x.transpose(0, 1))
    assert len(draws) == len(others) == 7
    for place, values in others.items():
        assert_bit_equal(values, draws[place])
    output, state = layer(x, draws=draws)
    swapped, other = first(x.transpose(0, 1), draws=draws)
    assert_bit_equal((swapped.transpose(0, 1), other), (output, state))
    one = drawn(layer, x[:, 0])
    assert {len(v.shape) for values in one.values() for v in values} == {3}
    assert {v.shape[1] for values in one.values() for v in values} == {1}


@pytest.mark.parametrize("site", SITES)
def test_noise_is_independent_a_unit_and_a_sequence(site):
    layer = LSTM(F, H, num_layers=2, noise=f"{site} * Gaussian(0.5)")
    value = next(iter(drawn(layer, seeded(T, B, F)).values()))[0]
    assert value.unique().numel() == value.numel() == T * B * (F if site == "input" else H)


def test_gradients_of_a_dropped_unit_are_zero():
    layer, x = LSTM(F, H, noise=at.input * Bernoulli(keep=0.5)), seeded(T, B, F).requires_grad_()
    draws = drawn(layer, x)
    output, _ = layer(x, draws=draws)
    _, (grad,) = pulled_back([output], [x])
    assert torch.equal(grad == 0, draws["input"][0] == 0)
