"""The layers stand in for torch's: bit for bit without noise, and through every layout with it."""

import copy
import inspect
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import noisin
from cases import (
    ALL_KINDS,
    LAWS,
    cases,
    make,
    plain_with_gradients,
    pulled_back,
    seeded,
    working_noise,
)
from conftest import assert_bit_equal, assert_close_to_float64
from noisin import GRU, LSTM, RNN, Gaussian, Learned, at

NOISY = at.hidden * Gaussian(0.5) & at.input + Gaussian(1.0) & at.output * Gaussian(0.3)
DROPOUTS = (0.0, 0.4, 1.0)  # torch allows to drop everything
PAIRS = ((RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM))


def run(layer, case):
    """Return results and gradients of one call, dropout included, as flat tensors."""
    x, hx = case.tensors()
    input, state = case.arguments(x, hx)
    torch.manual_seed(5)
    output, final = layer(input, state) if case.given else layer(input)
    packed = isinstance(output, PackedSequence)
    extra = [output.batch_sizes, output.sorted_indices, output.unsorted_indices] if packed else []
    results = [output.data if packed else output, *(final if type(final) is tuple else (final,))]
    weights = [p for n, p in layer.named_parameters() if not n.startswith("rho")]
    return *pulled_back(results, [x, *hx, *weights]), extra


@settings(max_examples=200)
@given(cases(dropouts=DROPOUTS))
def test_without_noise_training_is_torchs(case):
    assert_bit_equal(run(case.ours(), case), run(case.theirs(), case))


@settings(max_examples=200)
@given(cases(dropouts=DROPOUTS), st.data())
def test_in_evaluation_noise_is_off(case, data):
    noise = data.draw(working_noise(case.options["num_layers"]) | st.none())
    if case.options["dropout"] == 1:  # of everything: noise on top of it is refused
        noise = None
    ours, theirs = case.ours(noise=noise).eval(), case.theirs().eval()
    assert_bit_equal(run(ours, case), run(theirs, case))
    before = torch.get_rng_state()
    ours(*case.arguments(*case.tensors()))
    assert torch.equal(before, torch.get_rng_state()), "evaluation used random numbers"


@settings(max_examples=250)
@given(cases(kinds=ALL_KINDS, dtypes=(torch.float32,)), st.data())
def test_with_noise_training_is_the_plain_loop(case, data):
    """Outputs, states and all gradients, the draws' included, in every layout."""
    noise = data.draw(working_noise(case.options["num_layers"]))
    layer = case.ours(noise=noise)
    x, hx = case.tensors()
    input, state = case.arguments(x, hx)
    drawn = layer.draw(input, state, generator=torch.Generator().manual_seed(0))
    draws = {k: tuple(v.detach().requires_grad_() for v in vs) for k, vs in drawn.items()}
    assert len(draws) > 0
    output, final = layer(input, state, draws=draws)
    leaves = [x, *hx, *layer.parameters(), *(v for k in sorted(draws) for v in draws[k])]
    actual = pulled_back([case.time_major(output), *case.batched(final)], leaves)
    others = [
        plain_with_gradients(layer, x, hx, draws, case.lengths, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    assert_close_to_float64(actual, *others)


@settings(max_examples=60)
@given(cases(), st.integers(0, 99))
def test_state_dicts_both_ways(case, seed):
    theirs = case.theirs()
    ours = case.ours(noise=at.hidden * Gaussian(0.5))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_bit_equal(list(ours.state_dict().values()), list(theirs.state_dict().values()))
    torch.manual_seed(seed + 1000)
    nn.init.normal_(theirs.weight_hh_l0)
    ours.load_state_dict(theirs.state_dict())
    assert_bit_equal(run(ours.eval(), case), run(theirs.eval(), case))
    nn.init.normal_(ours.weight_ih_l0)
    theirs.load_state_dict(ours.state_dict())
    assert_bit_equal(run(ours, case), run(theirs, case))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_is_a_torch_layer_with_torchs_arguments(ours, theirs):
    nonlinearity = ("relu",) if ours is RNN else ()
    arguments = (3, 5, 2, *nonlinearity, False, True, 0.25, True)
    layer = ours(*arguments, device="cpu", dtype=torch.float64)
    assert layer.mode == theirs(*arguments).mode
    assert isinstance(layer, theirs)
    known = (layer.input_size, layer.hidden_size, layer.num_layers, layer.bias)
    assert known == (3, 5, 2, False)
    assert (layer.batch_first, layer.dropout, layer.bidirectional) == (True, 0.25, True)
    assert layer.weight_ih_l0.dtype == torch.float64
    noise = inspect.signature(ours.__init__).parameters["noise"]
    assert noise.kind is inspect.Parameter.KEYWORD_ONLY
    assert noise.default is None
    assert layer.noise is None


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"input_size": 3, "hidden_size": 0},
        {"input_size": 3, "hidden_size": 5, "num_layers": 0},
        {"input_size": 3, "hidden_size": 5, "dropout": 1.5},
        {"input_size": 3, "hidden_size": 5, "nonsense": 1},
        {"input_size": 3, "hidden_size": 5, "proj_size": 5},
        {"input_size": 3, "hidden_size": 5, "nonlinearity": "cosine"},
    ],
)
def test_wrong_arguments_are_torchs_errors(ours, theirs, wrong):
    with pytest.raises((TypeError, ValueError)) as expected:
        theirs(**wrong)
    with pytest.raises(expected.type):
        ours(**wrong, noise="hidden * Gaussian(1)")


def test_wrong_shapes_are_torchs_errors_with_noise_on():
    ours = LSTM(3, 5, noise=NOISY)
    theirs = nn.LSTM(3, 5)
    x, h = torch.zeros(2, 4, 3), torch.zeros(1, 4, 5)
    calls = (
        (torch.zeros(2, 4, 7),),  # features
        (torch.zeros(2, 4, 3, 1),),  # dimensions
        (x, (h, torch.zeros(1, 3, 5))),  # batch of c
        (x, (torch.zeros(2, 4, 5), h)),  # layers
        (x, (h[:, 0], h[:, 0])),  # unbatched state of a batched input
        (x.double(),),
        (torch.zeros(0, 4, 3),),
    )
    for call in calls:
        with pytest.raises((RuntimeError, ValueError)) as expected:
            theirs(*call)
        with pytest.raises((RuntimeError, ValueError)) as got:
            ours(*call)
        assert isinstance(got.value, expected.type), call
    assert len(calls) == 7


@pytest.mark.parametrize("mode", ["no noise", "evaluation"])
def test_sigmoid_is_ours_alone(mode):
    """torch has no kernel for it, so neither of these is torch's result."""
    layer = RNN(3, 5, num_layers=2, bidirectional=True, nonlinearity="sigmoid")
    if mode == "evaluation":
        layer.noise = "hidden * Gaussian(0.5)"
        layer.eval()
    x, h = seeded(4, 3, 3).requires_grad_(), seeded(4, 3, 5, seed=1).requires_grad_()
    actual = pulled_back(layer(x, h), [x, h, *layer.parameters()])
    layer.noise = None
    others = [
        plain_with_gradients(layer, x, (h,), {}, None, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    assert_close_to_float64(actual, *others)


def test_sigmoid_trades_weights_with_torch():
    layer, tanh = RNN(3, 5, 1, "sigmoid"), nn.RNN(3, 5)
    layer.load_state_dict(tanh.state_dict())
    tanh.load_state_dict(layer.state_dict())
    assert "sigmoid" in repr(layer)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh", "sigmoid"])
def test_copies_and_pickles_compute_the_same(kind):
    layer = make(kind, 3, 5, noise=at.hidden * Gaussian(Learned(0.5)) & at.output + Gaussian(0.1))
    x = seeded(4, 2, 3)
    draws = layer.draw(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.noise == layer.noise
        assert_bit_equal(twin(x, draws=draws), layer(x, draws=draws))
        assert all(a is not b for a, b in zip(twin.parameters(), layer.parameters(), strict=True))


def test_text_and_terms_are_the_same_noise():
    assert LSTM(3, 5, noise=str(NOISY)).noise == LSTM(3, 5, noise=NOISY).noise == NOISY
    assert LSTM(3, 5, noise="none").noise is None
    assert str(NOISY) in repr(LSTM(3, 5, noise=NOISY))
    assert "LSTM(3, 5, num_layers=2" in repr(LSTM(3, 5, num_layers=2, noise=NOISY))


@pytest.mark.parametrize(
    "text",
    [
        "candidate * Gaussian(1) @ untied",
        "weight_ih + Gaussian(1) @ untied",
        "weight_hh * Bernoulli(keep=0.5) @ cumulative @ preactivation",
        "weight_hh[2] + Gaussian(1)",
        "weight * Gaussian(1)",
        "row * Bernoulli(keep=0.5)",
        "recurrent * Gaussian(1) @ untied @ preactivation",
        "recurrent * Gaussian(1) & recurrent + Gaussian(1) @ preactivation",
        "hidden * Gaussian(1) @ untied",
        "output * Gaussian(1) @ preactivation",
        "input * Gaussian(1) @ sequence @ moments",
        "weight_hh + Gaussian(1) @ cumulative @ moments",
        "recurrent * Gaussian(1) @ untied @ moments",
        "input * Gaussian(1) @ moments & recurrent * Gaussian(1) @ preactivation",
        "hidden * Gaussian(1) @ preactivation",
        "hidden * Gaussian(Learned(0.5, per='weight'))",
        "Zoneout(hidden=0.1) & Zoneout(hidden=0.2)",
        "Zoneout(cell=0.1)",
        "hidden[2] * Gaussian(1)",
        "hidden[-3] * Gaussian(1)",
        "between[1] * Gaussian(1)",
        "hidden * Gaussian(1) & hidden * Gaussian(1) @ moments",
    ],
)
def test_what_cannot_act_is_refused_and_changes_nothing(text):
    with pytest.raises(ValueError, match="got"):
        GRU(3, 5, num_layers=2, noise=text)
    layer = GRU(3, 5, num_layers=2, noise=at.hidden * Gaussian(Learned(0.5)))
    before = list(layer.state_dict())
    with pytest.raises(ValueError, match="got"):
        layer.noise = text
    assert layer.noise == at.hidden * Gaussian(Learned(0.5))
    assert list(layer.state_dict()) == before


def test_between_needs_two_layers():
    with pytest.raises(ValueError, match="between"):
        LSTM(3, 5, noise=at.between * LAWS[0])


@pytest.mark.parametrize("wrong", [3, [NOISY], (NOISY, NOISY), Gaussian(1.0), at.hidden, b"none"])
def test_what_is_no_noise_is_refused(wrong):
    with pytest.raises(TypeError):
        LSTM(3, 5, noise=wrong)


def test_noise_can_be_set_anew():
    layer, x = LSTM(3, 5), seeded(4, 2, 3)
    clean = layer(x)
    layer.noise = "hidden * Gaussian(0.5)"
    assert not torch.equal(layer(x)[0], clean[0])
    layer.noise = None
    assert_bit_equal(layer(x), clean)


def test_without_draws_the_default_generator_is_used():
    layer, x = LSTM(3, 5, noise=NOISY), seeded(4, 2, 3)
    torch.manual_seed(1)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(1)
    draws = layer.draw(x)
    assert_bit_equal(layer(x, draws=draws), first)
    assert not torch.equal(first[0], second[0])


def test_draws_act_whatever_the_mode():
    layer, x = GRU(3, 5, noise=NOISY), seeded(4, 2, 3)
    draws = layer.draw(x)
    training = layer(x, draws=draws)
    assert_bit_equal(layer.eval()(x, draws=draws), training)
    assert not torch.equal(layer(x)[0], training[0])


@pytest.mark.parametrize("noise", ["output * Gaussian(0.5)", "hidden * Gaussian(0.5)"])
def test_packed_output_keeps_the_order_of_its_input(noise):
    layer, x = LSTM(3, 5, noise=noise), seeded(4, 3, 3)
    packed = pack_padded_sequence(x, torch.tensor([2, 4, 1]), enforce_sorted=False)
    output, _ = layer(packed)
    assert isinstance(output, PackedSequence)
    assert_bit_equal(list(output)[1:], list(packed)[1:])
    assert output.data.shape == (7, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_draws_follow_the_dtype_of_the_layer(dtype):
    layer = noisin.LSTM(3, 5, num_layers=2, dropout=0.5, noise=NOISY).to(dtype)
    x = seeded(4, 2, 3).to(dtype)
    draws = layer.draw(x)
    assert {v.dtype for values in draws.values() for v in values} == {dtype}
    output, (h, c) = layer(x)
    assert output.dtype == h.dtype == c.dtype == dtype
    assert output.isfinite().all()


@pytest.mark.parametrize("noise", [None, NOISY])
def test_other_weights_by_functional_call(noise):
    layer, other = LSTM(3, 5, 2, noise=noise), LSTM(3, 5, 2, noise=noise)
    x = seeded(4, 2, 3)
    draws = layer.draw(x)
    weights = dict(other.named_parameters())
    called = torch.func.functional_call(layer, weights, (x,), {"draws": draws})
    assert_bit_equal(called, other(x, draws=draws))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_an_empty_batch_is_as_torchs(kind):
    x = torch.zeros(4, 0, 3)
    expected = make(kind, 3, 5, package=nn)(x)
    assert_bit_equal(make(kind, 3, 5, noise=NOISY)(x), expected)


def test_weights_made_without_memory_are_filled_by_reset():
    layer = LSTM(3, 5, noise=at.hidden * Gaussian(Learned(0.5)), device="meta")
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    fresh = LSTM(3, 5, noise=layer.noise)
    assert_bit_equal(layer.rho_hidden_l0, fresh.rho_hidden_l0)
    assert layer(seeded(4, 2, 3))[0].isfinite().all()


@pytest.mark.parametrize("noise", [None, "hidden * Gaussian(1)"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_check_finds_what_is_not_finite(noise, value):
    layer, x = LSTM(3, 5, noise=noise), torch.zeros(4, 2, 3)
    state = (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    layer(x, state, check=True)
    x[1, 0, 2] = value
    layer(x, state)  # nothing is read without being asked for
    with pytest.raises(ValueError, match=r"input must be finite; got (nan|inf) at \[1, 0, 2\]"):
        layer(x, state, check=True)
    with pytest.raises(ValueError, match="input must be finite"):
        layer(pack_padded_sequence(x, [4, 4]), check=True)
    state[1][0, 1, 4] = value
    with pytest.raises(ValueError, match=r"c must be finite; got (nan|inf) at \[0, 1, 4\]"):
        layer(torch.zeros(4, 2, 3), state, check=True)
