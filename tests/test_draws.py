"""Noise as data: where terms act, the shapes of their draws, and refusal of other draws."""

import pytest
import torch

from cases import SITES, make, seeded
from conftest import assert_bit_equal, assert_mean, assert_variance
from noisin import LSTM, Bernoulli, Gaussian, Learned, Zoneout, at, cumulative
from noisin.draws import Stack, draw, places

T, B, F, H = 4, 3, 2, 5
STACK = Stack("LSTM", F, H, num_layers=3, bidirectional=True, proj_size=2)
EVERYWHERE = " & ".join(f"{site} * Gaussian(0.5)" for site in SITES)


def seed(number=0):
    return torch.Generator().manual_seed(number)


def test_masks_of_zoneout_keep_their_rate_where_numbers_are_coarse(monkeypatch):
    stack = Stack("RNN_TANH", 4, 1000)
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.bfloat16)
    term = Zoneout(hidden=0.001)
    ((mask,),) = draw(stack, term, 200, 20, generator=seed()).values()
    assert mask.dtype == torch.bfloat16
    assert_mean(mask.double().flatten(), 0.001, (0.001 * 0.999) ** 0.5)


def test_places_are_named_like_torchs_weights():
    noise = at.input * Gaussian(1) & at.hidden[0] + Gaussian(1) & at.between * Gaussian(1)
    noise = (
        noise & at.recurrent[-1] * Gaussian(1) & at.output * Gaussian(1) & at.hidden * Gaussian(2)
    )
    first, again = at.hidden[0] + Gaussian(1), at.hidden * Gaussian(2)
    found = places(STACK, noise)
    inside = {f"hidden_l{i}{d}": (again,) for i in (1, 2) for d in ("", "_reverse")}
    assert found == inside | {
        "input": (at.input * Gaussian(1),),
        "between_l0": (at.between * Gaussian(1),),
        "between_l1": (at.between * Gaussian(1),),
        "hidden_l0": (first, again),
        "hidden_l0_reverse": (first, again),
        "recurrent_l2": (at.recurrent[-1] * Gaussian(1),),
        "recurrent_l2_reverse": (at.recurrent[-1] * Gaussian(1),),
        "output": (at.output * Gaussian(1),),
    }
    assert places(STACK, None) == {}


def test_the_stack_knows_its_sizes():
    assert STACK.directions == ("", "_reverse")
    assert STACK.state_size == 2
    assert Stack("GRU", F, H).directions == ("",)
    assert Stack("GRU", F, H).state_size == H
    sizes = {"input": F, "between_l0": 4, "output": 4, "hidden_l0": 2, "recurrent_l1_reverse": 2}
    assert {place: STACK.features(place) for place in sizes} == sizes


@pytest.mark.parametrize(
    ("hold", "time"), [("step", T), ("sequence", 1), ("cumulative", T)], ids=lambda v: str(v)
)
def test_shapes_by_hold(hold, time):
    noise = LSTM(F, H, num_layers=3, noise=f"hidden * Gaussian(1) @ {hold}").noise
    values = draw(STACK, noise, T, B, dtype=torch.float64)
    assert len(values) == 6
    for (value,) in values.values():
        assert value.shape == (time, B, 2)
        assert value.dtype == torch.float64


def test_draws_are_reproduced_by_their_generator_and_differ_by_place_and_term():
    noise = LSTM(F, H, num_layers=3, noise=f"{EVERYWHERE} & hidden + Gaussian(0.5)").noise
    first, again = (draw(STACK, noise, T, B, generator=seed()) for _ in range(2))
    assert list(first) == list(again) == list(places(STACK, noise))
    assert_bit_equal(list(first.values()), list(again.values()))
    assert not torch.equal(
        first["output"][0], draw(STACK, noise, T, B, generator=seed(1))["output"][0]
    )
    values = torch.cat([v.flatten() for values in first.values() for v in values])
    assert values.numel() == T * B * (F + 2 * 4 + 6 * 2 + 6 * 2 + 6 * 2 + 4)
    assert values.unique().numel() == values.numel()
    torch.manual_seed(0)
    assert_bit_equal(list(draw(STACK, noise, T, B).values()), list(first.values()))


def test_what_is_drawn_is_the_final_factor_or_offset():
    keep = Bernoulli(keep=0.7)
    noise = at.input * keep & at.output + keep & at.hidden * keep
    values = draw(STACK, noise, 50, B, dtype=torch.float64)
    assert set(values["input"][0].unique().tolist()) == {0.0, 1 / 0.7}
    assert set(values["hidden_l0"][0].unique().tolist()) == {0.0, 1 / 0.7}
    assert set(values["output"][0].unique().tolist()) == {-1.0, 1 / 0.7 - 1}


@pytest.mark.parametrize("operator", ["*", "+"])
def test_cumulative_draws_add_up_or_multiply(operator):
    noise = LSTM(F, H, noise=f"hidden {operator} Gaussian(0.3) @ cumulative").noise
    (value,) = draw(Stack("LSTM", 1, 4), noise, 3, 20_000, dtype=torch.float64)["hidden_l0"]
    increments = value[1:] / value[:-1] if operator == "*" else value[1:] - value[:-1]
    mean = float(operator == "*")
    for fresh in (value[:1], increments):
        assert_mean(fresh.flatten(0, 1), mean, 0.3)
        assert_variance(fresh.flatten(0, 1), 0.3**2, mean)


def test_a_unit_once_dropped_cumulatively_stays_dropped():
    noise = at.hidden * Bernoulli(keep=0.5) @ cumulative
    (value,) = draw(Stack("LSTM", 1, 4), noise, 6, 100, dtype=torch.float64)["hidden_l0"]
    dropped = value == 0
    assert (dropped[1:] >= dropped[:-1]).all()
    for t in range(6):
        assert set(value[t].unique().tolist()) == {0.0, 2.0 ** (t + 1)}


def test_no_noise_draws_nothing():
    assert draw(STACK, None, T, B) == {}
    assert LSTM(F, H).draw(seeded(T, B, F)) == {}


def test_a_learned_spread_is_asked_for_by_place_and_index():
    noise = (
        at.hidden * Gaussian(0.5)
        & at.hidden + Gaussian(Learned(0.5))
        & at.input + Gaussian(Learned(1))
    )
    asked = []

    def spread(place, index, term):
        assert isinstance(term.law.std, Learned)
        asked.append((place, index))
        return torch.tensor(1.0, requires_grad=True)

    values = draw(Stack("LSTM", F, H), noise, T, B, spread=spread)
    assert sorted(asked) == [("hidden_l0", 1), ("input", 0)]
    assert not values["hidden_l0"][0].requires_grad
    assert values["hidden_l0"][1].requires_grad
    with pytest.raises(ValueError, match="spread"):
        draw(Stack("LSTM", F, H), noise, T, B)


LAYER = {"noise": "hidden * Gaussian(0.5) & output + Gaussian(0.5) @ sequence", "num_layers": 2}


def changed(draws, place, value):
    return {**draws, place: value}


def without(draws, place):
    return {k: v for k, v in draws.items() if k != place}


WRONG = {
    "missing place": ("hidden_l1", lambda d: without(d, "hidden_l1")),
    "extra place": ("recurrent_l0", lambda d: changed(d, "recurrent_l0", d["hidden_l0"])),
    "unknown place": ("hidden", lambda d: changed(d, "hidden", d["hidden_l0"])),
    "nothing": ("hidden_l0", lambda d: {}),
    "missing term": ("hidden_l0", lambda d: changed(d, "hidden_l0", ())),
    "extra term": ("hidden_l0", lambda d: changed(d, "hidden_l0", d["hidden_l0"] * 2)),
    "steps": ("hidden_l0", lambda d: changed(d, "hidden_l0", (d["hidden_l0"][0][:-1],))),
    "more steps": ("hidden_l0", lambda d: changed(d, "hidden_l0", (torch.ones(T + 1, B, H),))),
    # these two would broadcast
    "held": ("hidden_l0", lambda d: changed(d, "hidden_l0", (d["hidden_l0"][0][:1],))),
    "shared": ("hidden_l0", lambda d: changed(d, "hidden_l0", (d["hidden_l0"][0][:, :1],))),
    "one unit": ("output", lambda d: changed(d, "output", (torch.ones(1, B, 1),))),
    "batch": ("output", lambda d: changed(d, "output", (torch.ones(1, B + 1, H),))),
    "features": ("output", lambda d: changed(d, "output", (torch.ones(1, B, H + 1),))),
    "dimensions": ("output", lambda d: changed(d, "output", (torch.ones(B, H),))),
    "dtype": ("output", lambda d: changed(d, "output", (d["output"][0].double(),))),
    "integers": ("output", lambda d: changed(d, "output", (d["output"][0].long(),))),
    "device": ("output", lambda d: changed(d, "output", (d["output"][0].to("meta"),))),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("training", [True, False])
def test_draws_of_another_call_are_refused(name, training):
    place, sabotage = WRONG[name]
    layer = LSTM(F, H, **LAYER).train(training)
    x = seeded(T, B, F)
    draws = layer.draw(x)
    with pytest.raises(ValueError, match=place) as error:
        layer(x, draws=sabotage(draws))
    assert "got" in str(error.value)


@pytest.mark.parametrize("wrong", ["list", "tensor", "number", "numpy"])
def test_draws_of_another_kind_are_refused(wrong):
    layer, x = LSTM(F, H, **LAYER), seeded(T, B, F)
    draws = layer.draw(x)
    made = {
        "list": lambda: list(draws.items()),
        "tensor": lambda: changed(draws, "hidden_l0", draws["hidden_l0"][0]),
        "number": lambda: changed(draws, "output", (1.0,)),
        "numpy": lambda: changed(draws, "output", (draws["output"][0].numpy(),)),
    }
    with pytest.raises((TypeError, ValueError), match=r"draws"):
        layer(x, draws=made[wrong]())


def test_draws_without_noise_are_refused():
    for layer in (LSTM(F, H), make("GRU", F, H)):
        with pytest.raises(ValueError, match="hidden_l0"):
            layer(seeded(T, B, F), draws={"hidden_l0": (torch.ones(T, B, H),)})


def test_no_noise_takes_no_draws():
    layer, x = LSTM(F, H), seeded(T, B, F)
    assert_bit_equal(layer(x, draws={}), layer(x))


@pytest.mark.parametrize(
    "noise",
    [
        "hidden * Gaussian(0.5)",
        "weight_hh + Gaussian(Learned(0.5))",
        "hidden * Gaussian(1) @ moments",
    ],
)
def test_draws_lie_on_file_as_other_tensors_do(noise, tmp_path):
    layer, x = LSTM(F, H, noise=noise), seeded(T, B, F)
    draws = layer.draw(x)
    torch.save(draws, tmp_path / "draws.pt")
    again = torch.load(tmp_path / "draws.pt")
    assert_bit_equal(layer(x, draws=again)[0], layer(x, draws=draws)[0])
