"""The functional entry against the plain loops: outputs, states and all gradients, noise on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad

from cases import (
    ALL_KINDS,
    KINDS,
    SITES,
    cases,
    make,
    plain_with_gradients,
    pulled_back,
    seeded,
    working_noise,
    zeros,
)
from conftest import (
    assert_bit_equal,
    assert_close_to_float64,
    assert_gradients,
    assert_second_gradients,
)
from noisin.draws import places
from noisin.functional import path_of, recur
from noisin.stack import Stack

T, B, F, H = 4, 3, 2, 3
INSIDE = ("hidden", "recurrent")
LIKE = torch.float32, torch.device("cpu")


def call(layer, x, hx, draws, **kwargs):
    """Run a layer's weights through ``recur``; return output, h_n and c_n as a flat tuple."""
    args = (layer.stack, layer.all_weights, x, hx)
    output, state = recur(*args, noise=layer.noise, draws=draws, **kwargs)
    return (output, *state)


def drawn(layer, x, seed=0):
    draws = layer.draw(x, generator=torch.Generator().manual_seed(seed))
    return {k: tuple(v.detach().requires_grad_() for v in vs) for k, vs in draws.items()}


@settings(max_examples=250)
@given(cases(kinds=ALL_KINDS, dtypes=(torch.float32,)), st.booleans(), st.data())
def test_recur_is_the_plain_loop(case, packed, data):
    """On either path, with lengths in any order, and gradients of every input."""
    noise = data.draw(working_noise(case.options["num_layers"]) | st.none())
    layer = case.ours(noise=noise)
    layer.dropout, layer.batch_first = 0.0, False  # the layer's affairs, not those of recur
    x, hx = case.tensors()
    hx = hx or tuple(h.requires_grad_() for h in zeros(layer, x.detach()))
    draws = drawn(layer, x.detach())
    lengths = None
    if packed:
        steps = st.lists(st.integers(1, case.time), min_size=case.batch, max_size=case.batch)
        lengths = torch.tensor(data.draw(steps))
    path = data.draw(st.sampled_from((None, "reference", "cpu")))
    leaves = [x, *hx, *layer.parameters(), *(v for k in sorted(draws) for v in draws[k])]
    results = call(layer, x, hx, draws or None, lengths=lengths, path=path)
    others = [
        plain_with_gradients(layer, x, hx, draws, lengths, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    assert_close_to_float64(pulled_back(results, leaves), *others)


def small(kind, noise, **options):
    """Return a small layer in float64, an input, a state and draws."""
    torch.manual_seed(2)
    layer = make(kind, F, H, noise=noise, dtype=torch.float64, **options)
    x = seeded(T, B, F, dtype=torch.float64)
    hx = tuple(seeded(*z.shape, seed=7, dtype=torch.float64) for z in zeros(layer, x))
    return layer, x, hx, drawn(layer, x)


def torchs(layer, kind, x, hx):
    """Return what torch's own layer of the same weights makes of an input."""
    options = {"bidirectional": layer.bidirectional, "dtype": torch.float64}
    theirs = make(kind, F, H, layer.num_layers, package=nn, **options)
    theirs.load_state_dict(layer.state_dict())
    output, state = theirs(x, hx if kind == "LSTM" else hx[0])
    return (output, *(state if kind == "LSTM" else (state,)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [None, "torch"])
def test_torchs_kernel_serves_where_no_term_acts_inside(kind, path):
    options = {"num_layers": 2, "bidirectional": True}
    layer, x, hx, draws = small(kind, "input * Gaussian(0.5)", **options)
    expected = torchs(layer, kind, x * draws["input"][0], hx)
    assert_bit_equal(call(layer, x, hx, draws, path=path), expected)
    layer, x, hx, draws = small(kind, "output * Gaussian(0.5)", **options)
    output, *state = torchs(layer, kind, x, hx)
    expected = (output * draws["output"][0], *state)
    assert_bit_equal(call(layer, x, hx, draws, path=path), expected)


@pytest.mark.parametrize("site", SITES)
def test_the_path_is_chosen_layer_by_layer(site):
    layer, *_ = small("LSTM", f"{site} * Gaussian(0.5)", num_layers=2)
    found = places(layer.stack, layer.noise)
    expected = "cpu" if site in INSIDE else "torch"
    for index in range(2):
        assert path_of(layer.stack, found, index, *LIKE)[0] == expected
    if site in INSIDE:
        layer.noise = f"{site}[1] * Gaussian(0.5)"
        found = places(layer.stack, layer.noise)
        chosen = [path_of(layer.stack, found, index, *LIKE)[0] for index in range(2)]
        assert chosen == ["torch", "cpu"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_it_is_torch_bit_for_bit(kind):
    layer, x, hx, _ = small(kind, None, num_layers=2, bidirectional=True)
    expected = torchs(layer, kind, x, hx)
    assert_bit_equal(call(layer, x, hx, None), expected)
    assert_bit_equal(call(layer, x, hx, None, path="torch"), expected)


@pytest.mark.parametrize("site", INSIDE)
def test_torchs_kernel_is_refused_where_a_term_acts_inside(site):
    layer, x, hx, draws = small("LSTM", f"{site}[1] * Gaussian(0.5)", num_layers=2)
    with pytest.raises(ValueError, match="torch") as error:
        call(layer, x, hx, draws, path="torch")
    assert site in str(error.value)


def test_torchs_kernel_is_refused_for_the_sigmoid():
    layer, x, hx, _ = small("sigmoid", None)
    with pytest.raises(ValueError, match="SIGMOID"):
        call(layer, x, hx, None, path="torch")


@pytest.mark.parametrize("path", ["fused", "", 1])
def test_an_unknown_path_is_refused(path):
    layer, x, hx, _ = small("LSTM", None)
    with pytest.raises(ValueError, match="path"):
        call(layer, x, hx, None, path=path)


def test_noise_needs_its_draws_and_draws_their_noise():
    layer, x, hx, draws = small("GRU", "hidden * Gaussian(0.5)")
    with pytest.raises(ValueError, match="draws"):
        call(layer, x, hx, None)
    layer.noise = None
    with pytest.raises(ValueError, match="hidden_l0"):
        call(layer, x, hx, draws)


@pytest.mark.parametrize(
    "text", ["candidate * Gaussian(1)", "Zoneout(hidden=0.1)", "hidden[1] * Gaussian(1)"]
)
def test_what_cannot_act_is_refused(text):
    from noisin import parse

    layer, x, hx, draws = small("LSTM", "hidden * Gaussian(0.5)")
    with pytest.raises(ValueError, match="got"):
        recur(layer.stack, layer.all_weights, x, hx, noise=parse(text), draws=draws)


@pytest.mark.parametrize("path", ["torch", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrong", [(1, 1, H), (2, B, H), (1, B + 1, H), (1, B, H + 1), (1, B, 1), (B, H)], ids=str
)
def test_a_state_of_another_shape_is_refused(kind, path, wrong):
    """Above all where it would broadcast: one row for the whole batch, one number a row."""
    layer, x, hx, _ = small(kind, None)
    with pytest.raises((ValueError, RuntimeError)):
        call(layer, x, (torch.zeros(wrong, dtype=torch.float64), *hx[1:]), None, path=path)


@pytest.mark.parametrize("path", ["torch", "reference"])
@pytest.mark.parametrize("lengths", [(0, 2, T), (-1, 2, T), (2, 1, T + 1)], ids=str)
def test_lengths_beyond_the_input_are_refused(path, lengths):
    layer, x, hx, _ = small("LSTM", None)
    with pytest.raises((ValueError, RuntimeError)):
        call(layer, x, hx, None, path=path, lengths=torch.tensor(lengths))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", SITES)
def test_output_behind_the_end_of_a_sequence_is_zero(kind, site):
    """Also under additive noise, which would show there; and no gradient comes from there."""
    layer, x, hx, draws = small(kind, f"{site} + Gaussian(0.5)", num_layers=2, bidirectional=True)
    x.requires_grad_()
    lengths = torch.tensor([2, T, 1])
    behind = torch.arange(T)[:, None] >= lengths
    output, *state = call(layer, x, hx, draws, lengths=lengths)
    assert (output[behind] == 0).all()
    assert (output[~behind] != 0).any(-1).all()
    leaves = [x, *(v for vs in draws.values() for v in vs)]
    _, grads = pulled_back([output, *state], leaves)
    assert len(grads) == 1 + {"hidden": 4, "recurrent": 4}.get(site, 1)
    for grad in grads:
        assert (grad[behind] == 0).all()
        assert (grad[~behind] != 0).any()


def test_second_derivatives_pass_the_reference():
    layer, x, hx, _ = small("LSTM", None)
    x.requires_grad_()
    assert_second_gradients(lambda x: call(layer, x, hx, None, path="reference")[0], (x,))
    noisy, x, hx, draws = small("LSTM", "hidden * Gaussian(0.5)")
    (factor,) = draws["hidden_l0"]
    x.requires_grad_()
    assert_gradients(lambda x, f: call(noisy, x, hx, {"hidden_l0": (f,)}), (x, factor))


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("transform", ["jvp", "dual numbers", "vmap"])
def test_transforms_run_on_the_path_that_is_chosen(transform, kind, site):
    """A directional derivative, and gradients of each sample, against reverse mode one by one."""
    layer, x, hx, draws = small(kind, f"{site} * Gaussian(0.5)", num_layers=2)
    samples, pull = torch.stack([x, -x]), seeded(T, B, H, dtype=torch.float64)

    def output(dtype, path, x):
        weights = [[w.detach().to(dtype) for w in ws] for ws in layer.all_weights]
        cast = {k: tuple(v.detach().to(dtype) for v in vs) for k, vs in draws.items()}
        state = tuple(h.to(dtype) for h in hx)
        noise = {"noise": layer.noise, "draws": cast}
        return recur(layer.stack, weights, x, state, **noise, path=path)[0]

    def transformed(dtype, path, vmap):
        def pulled(x):
            return (output(dtype, path, x) * pull.to(dtype)).sum()

        if transform == "dual numbers":  # the same derivative as jvp, outside of torch.func
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(x.to(dtype), samples[1].to(dtype))
                return forward_ad.unpack_dual(output(dtype, path, dual)).tangent
        if transform == "jvp":
            inputs = (x.to(dtype),), (samples[1].to(dtype),)
            return torch.func.jvp(lambda x: output(dtype, path, x), *inputs)[1]
        grad = torch.func.grad(pulled)
        inputs = samples.to(dtype)
        return torch.func.vmap(grad)(inputs) if vmap else torch.stack([grad(s) for s in inputs])

    actual = transformed(torch.float32, None, vmap=True)
    others = [transformed(d, "reference", vmap=False) for d in (torch.float32, torch.float64)]
    assert (others[1] != 0).any()
    assert_close_to_float64(actual, *others)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_compiles_as_one_graph_on_given_draws(kind):
    import jaxtyping

    noise = "hidden * Gaussian(0.5) & input + Gaussian(0.5) @ sequence & output * Gaussian(0.5)"
    layer, x, hx, draws = small(kind, noise)
    expected = call(layer, x, hx, draws)
    jaxtyping.config.update("jaxtyping_disable", True)  # what dynamo sees is the library alone
    try:
        compiled = torch.compile(recur, fullgraph=True, backend="eager")
        output, state = compiled(
            layer.stack, layer.all_weights, x, hx, noise=layer.noise, draws=draws
        )
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        torch._dynamo.reset()
    assert_bit_equal((output, *state), expected)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        (("rnn_relu", 3, 5), "mode must be one of LSTM, GRU, RNN_TANH, .*; got 'rnn_relu'"),
        (("LSTM", 3, 0), "hidden_size and num_layers must be >= 1"),
        (("LSTM", -3, 5), "input_size and proj_size >= 0"),
        (("LSTM", 3, 5, 0), "num_layers must be >= 1"),
        (("GRU", 3, 5, 1, False, 2), "proj_size must be 0 but for an LSTM, got 2 of GRU"),
    ],
)
def test_a_stack_is_of_a_known_mode_and_size(shape, rule):
    with pytest.raises(ValueError, match=rule):
        Stack(*shape)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_dropout_of_torch_alone_acts_under_transforms(kind):
    layer = make(kind, 3, 5, num_layers=2, dropout=0.5)
    parameters = dict(layer.named_parameters())

    def total(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))[0].sum()

    def both():
        torch.manual_seed(4)
        return torch.func.grad(total)(parameters, seeded(4, 2, 3))

    first, again = both(), both()
    assert_bit_equal([*first.values()], [*again.values()])
    whole = torch.func.grad(total)(parameters, seeded(4, 2, 3))
    assert any(not torch.equal(whole[name], first[name]) for name in first)
