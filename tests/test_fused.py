"""The fused recurrence on a CPU: every way it can be computed against the plain loop, noise on."""

import ctypes

import pytest
import torch
from torch.autograd import forward_ad

from cases import (
    ALL_KINDS,
    ROWS,
    given_draws,
    kinds_of,
    leaf_draws,
    make,
    plain_with_gradients,
    pulled_back,
    seeded,
    zeros,
)
from conftest import assert_bit_equal, assert_close_to_float64, flat
from noisin import LSTM, native
from noisin.functional import path_of, recur
from noisin.fused import blas, compiled, own, products, unroll
from noisin.fused.given import Given, checked
from noisin.stack import places

LIKE = torch.float32, torch.device("cpu")
# how a call is computed: all of it in C, by our own product or one that torch lends; step by step
# in C, or in torch's operations, with torch's product; in C with oneDNN's, or with our own
WAYS = ("walk", "lent", "steps", "eager", "onednn", "own")
NOISE = "hidden * Bernoulli(keep=0.5) & recurrent + Gaussian(0.3)"


@pytest.fixture
def way(request, monkeypatch):
    """Take one way, or skip where this machine has not got it."""
    if request.param != "eager" and compiled.LIBRARY is None:
        pytest.skip("the C functions were not compiled")
    if request.param in ("walk", "own") and not own.serves():
        pytest.skip("product.c is for x86 with AVX2, compiled by GCC 12 or later")
    if request.param == "lent" and blas.address() is None:
        pytest.skip("torch's library has no packed product, or the processor is not Intel's")
    if request.param in ("walk", "own"):
        monkeypatch.setattr(blas, "address", lambda: None)
    if request.param not in ("walk", "lent"):
        monkeypatch.setattr(compiled, "walks", lambda dtype: False)
    if request.param == "eager":
        monkeypatch.setattr(compiled, "serves", lambda dtype: False)
    works = request.param == "onednn" and products._works()
    if request.param == "onednn" and not works:
        pytest.skip("oneDNN's products are not to be had")
    monkeypatch.setattr(products, "library", lambda: "onednn" if works else "torch")
    if request.param not in ("walk", "lent", "own"):
        monkeypatch.setattr(products, "_for_steps", products.library)
    return request.param


every_way = pytest.mark.parametrize("way", WAYS, indirect=True)


def fused(layer, x, hx, drawn, lengths=None, path="cpu"):
    """Return the results by the fused recurrence, and the leaves to differentiate for."""
    args = (layer.stack, layer.all_weights, x, hx)
    noise = {"noise": layer.noise, "draws": drawn} if layer.noise is not None else {}
    output, state = recur(*args, **noise, lengths=lengths, path=path)
    return [output, *state], [x, *hx, *layer.parameters(), *given_draws(layer, drawn)]


def assert_plain(layer, x, hx, drawn, lengths=None):
    """Compare results and all gradients with the plain loop, by rule 7."""
    actual = pulled_back(*fused(layer, x, hx, drawn, lengths))
    others = [
        plain_with_gradients(layer, x, hx, drawn, lengths, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    assert_close_to_float64(actual, *others, pooled=True)


def made(kind, noise, time, batch, features, hidden, scale=1.0, **options):
    """Return a layer, an input, a state that is 0 nowhere, and draws."""
    torch.manual_seed(4)
    layer = make(kind, features, hidden, noise=noise, **options)
    x = (scale * seeded(time, batch, features)).requires_grad_()
    hx = [seeded(*z.shape, seed=i).requires_grad_() for i, z in enumerate(zeros(layer, x))]
    return layer, x, tuple(hx), leaf_draws(layer, x.detach())


def refused(row, kind):
    layer = make(kind, 3, 5, 2, noise=row)
    return any(
        unroll.refusal(layer.stack, places(layer.stack, layer.noise), i, *LIKE) for i in (0, 1)
    )


PAIRS = [(row, kind) for row in ROWS for kind in kinds_of(row) if not refused(row, kind)]


def test_most_rows_are_served():
    rows = {row for row, _ in PAIRS}
    assert len(rows) == 29
    left = [row for row in ROWS if row not in rows]
    assert all("preactivation" in row or "cumulative" in row or "&" in row for row in left)


@every_way
@pytest.mark.parametrize(("row", "kind"), PAIRS)
def test_every_row_is_the_plain_loop(way, row, kind):
    """Both directions, sequences of several lengths; two layers, the upper fed by both."""
    case = made(kind, row, 4, 3, 3, 5, num_layers=2, bidirectional=True)
    assert_plain(*case, lengths=torch.tensor([2, 4, 1]))


@every_way
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    "sizes",  # steps, sequences, features, units; the last are many enough to be shared by threads
    [(1, 1, 3, 3), (1, 3, 2, 63), (40, 1, 3, 3), (33, 3, 63, 17), (9, 5, 3, 1), (3, 50, 4, 65)],
)
def test_odd_sizes_one_thread_and_two(way, kind, sizes):
    case = made(kind, NOISE, *sizes)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            assert_plain(*case)
        finally:
            torch.set_num_threads(1)


@every_way
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("hidden", [1, 5])
def test_noise_of_each_gates_own(way, kind, hidden):
    assert_plain(*made(kind, "recurrent * Gaussian(0.5) @ untied", 20, 2, 3, hidden))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_how_many_threads_share_a_step_does_not_change_a_bit(kind, monkeypatch):
    """The products aside: these are torch's, and here they are 0 but for the bias."""
    layer, x, hx, drawn = made(kind, NOISE, 3, 50, 4, 65)
    with torch.no_grad():
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
            weight.zero_()
    results = []
    for count in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        results.append(pulled_back(*fused(layer, x, hx, drawn)))
    assert all(
        torch.equal(a, b)
        for more in results[1:]
        for a, b in zip(flat(results[0]), flat(more), strict=True)
    )


WRONG = [
    ("h0", lambda t: t.double(), "h0 must be .* in torch.float32 on cpu; got .* in torch.float64"),
    ("h0", lambda t: t.to(torch.uint8), "got .* in torch.uint8"),
    ("c0", lambda t: t[:, :4], "c0 must be"),
    ("weight_hh", lambda t: t.double(), "weight_hh must be"),
    ("weight_hh", lambda t: t[:, :2], "must be"),
    ("weight_ih", lambda t: t[:5], "weight_ih must be"),
    ("bias_ih", lambda t: t[:1], "bias_ih must be"),
    ("bias_hh", lambda t: t.half(), "bias_hh must be"),
    ("hidden_factor", lambda t: t[:2], "hidden_factor must be"),
    ("recurrent_offset", lambda t: t[..., :3], "recurrent_offset must be"),
    ("recurrent_offset", lambda t: t.repeat(1, 1, 4), "must be as wide, got 5 and 20"),
    ("c0", lambda t: None, "c0 must be given for LSTM"),
    ("mode", lambda t: "RNN_TANHH", "mode must be one of RNN_TANH, .*; got 'RNN_TANHH'"),
]


@pytest.mark.parametrize(("name", "spoil", "rule"), WRONG)
def test_what_memory_could_not_be_read_as_is_refused(name, spoil, rule):
    layer, x, hx, drawn = made("LSTM", NOISE, 4, 3, 3, 5)
    given = Given(
        *(x, *layer.all_weights[0], None, hx[0][0], hx[1][0]),
        *(drawn["hidden_l0"][0], None, None, drawn["recurrent_l0"][0]),
        *[None] * 7,
        *("", "LSTM", False),
    )
    given = given._replace(recurrent_factor=1 + given.recurrent_offset)
    checked(given)
    one = getattr(given, name)
    with pytest.raises(ValueError, match=rule):
        checked(given._replace(**{name: spoil(one.detach() if name != "mode" else one)}))


def test_a_state_of_another_dtype_is_refused():
    layer = LSTM(3, 5, noise=NOISE)
    state = torch.zeros(1, 2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="the state must be in"):
        layer(torch.zeros(4, 2, 3), (state, state))


def test_lengths_in_any_order_of_memory():
    layer, x, hx, drawn = made("GRU", NOISE, 4, 3, 3, 5)
    lengths = torch.tensor([[2, 4, 1], [0, 0, 0]]).t()[:, 0]
    assert_plain(layer, x, hx, drawn, lengths=lengths)


def test_vectorized_gradients_are_refused_and_the_way_out_named():
    layer, x, hx, drawn = made("LSTM", NOISE, 4, 3, 3, 5)
    output = fused(layer, x, hx, drawn)[0][0]
    with pytest.raises(RuntimeError, match='path="reference"'):
        torch.autograd.grad(output, x, torch.ones(2, *output.shape), is_grads_batched=True)


@every_way
@pytest.mark.parametrize("options", [{"bias": False}, {"proj_size": 2}, {"proj_size": 1}], ids=str)
def test_without_biases_and_projected(way, options):
    zoneout = "Zoneout(hidden=0.3, cell=0.5) & candidate * Gaussian(0.5)"
    assert_plain(*made("LSTM", f"{NOISE} & {zoneout}", 20, 3, 4, 5, **options))


@every_way
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_without_noise(way, kind):
    assert_plain(*made(kind, None, 20, 3, 4, 5))


@every_way
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh", "sigmoid"])
@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_gates_near_zero_and_saturated(way, kind, scale):
    assert_plain(*made(kind, NOISE, 3, 3, 5, 7, scale=scale))


@every_way
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(way, kind, value):
    """In the sequence that it is in, from the step on at which it comes."""
    layer, x, hx, drawn = made(kind, NOISE, 4, 3, 3, 5)
    x.data[2, 1, 0] = value
    expected = fused(layer, x, hx, drawn, path="reference")[0][0]
    output = fused(layer, x, hx, drawn)[0][0]
    assert torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.isinf(), expected.isinf())
    torch.testing.assert_close(output.isfinite()[:, [0, 2]], torch.ones(4, 2, 5) > 0)


@every_way
@pytest.mark.parametrize("wanted", range(3))
def test_each_result_alone_has_its_gradients(way, wanted):
    case = made("LSTM", f"{NOISE} & Zoneout(hidden=0.3, cell=0.2)", 3, 2, 3, 5)
    results, leaves = fused(*case)
    actual = pulled_back([results[wanted]], leaves)
    expected, leaves = fused(*case, path="reference")
    expected = pulled_back([expected[wanted]], leaves)
    case64 = [one.double() for one in expected[0]], [one.double() for one in expected[1]]
    assert all((one != 0).any() for one in actual[0])
    for one, other in zip(actual[1], case64[1], strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)


@every_way
@pytest.mark.parametrize(
    ("kind", "noise", "options"),
    [
        ("LSTM", f"{NOISE} & Zoneout(hidden=0.3, cell=0.2)", {}),
        ("LSTM", "candidate * Gaussian(0.5)", {"proj_size": 2}),
        ("GRU", f"{NOISE} & candidate + Gaussian(0.5)", {}),
        ("tanh", "weight_hh * Gaussian(Learned(0.3))", {}),
        ("relu", "recurrent * Gaussian(0.3) @ untied & input * Gaussian(0.3) @ untied", {}),
    ],
)
def test_the_operators_keep_their_contract(way, kind, noise, options):
    """torch's own checks: schema, autograd, shapes without numbers, tracing."""
    calls = {"recurrence": [], "recurrence_backward": []}
    layer, x, hx, drawn = made(kind, noise, 4, 3, 3, 5, **options)
    with Recorded(calls):
        pulled_back(*fused(layer, x, hx, drawn))
    assert [len(found) for found in calls.values()] == [1, 1]
    for name, ((args),) in calls.items():
        found = torch.library.opcheck(getattr(torch.ops.noisin, name).default, args)
        assert set(found.values()) == {"SUCCESS"}


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the arguments of our operators."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if name in self.calls:
            first = name == "recurrence"  # its way back is differentiable no further
            self.calls[name].append(copied(args, first))
        return function(*args, **(kwargs or {}))


def copied(args, wanted):
    """Return arguments whose tensors are leaves that want gradients, or do not."""
    if isinstance(args, (tuple, list)):
        return [copied(one, wanted) for one in args]
    if not isinstance(args, torch.Tensor):
        return args
    return args.detach().clone().requires_grad_(wanted and args.is_floating_point())


def test_the_final_state_is_no_view_of_the_output():
    layer, x, hx, drawn = made("LSTM", NOISE, 4, 3, 3, 5)
    (output, h, c), _ = fused(layer, x, hx, drawn)
    pointers = {one.untyped_storage().data_ptr() for one in (output, h, c)}
    assert len(pointers) == 3
    before = h.detach().clone()
    output.detach().zero_()
    assert_bit_equal(h, before)


def test_a_second_backward_pass_gives_the_same_gradients():
    layer, x, hx, drawn = made("GRU", NOISE, 4, 3, 3, 5)
    results, leaves = fused(layer, x, hx, drawn)
    total = sum(one.square().sum() for one in results)
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    assert_bit_equal(torch.autograd.grad(total, leaves), first)


def test_a_second_derivative_is_refused_and_the_way_out_named():
    layer, x, hx, drawn = made("LSTM", NOISE, 4, 3, 3, 5)
    output = fused(layer, x, hx, drawn)[0][0]
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='path="reference"'):
        grad.square().sum().backward()
    output, _ = layer(x, hx, draws=drawn, path="reference")
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert (layer.weight_hh_l0.grad != 0).any()


def test_derivatives_of_torch_func_and_forward_mode_take_the_plain_loop():
    stack = LSTM(3, 5, noise=NOISE).stack
    found = places(stack, LSTM(3, 5, noise=NOISE).noise)
    chosen = []

    def note(x):
        chosen.append(path_of(stack, found, 0, *LIKE)[0])
        return x.sum()

    x = torch.ones(3)
    torch.func.grad(note)(x)
    torch.func.vmap(torch.func.grad(note))(x[None])
    torch.func.jvp(note, (x,), (x,))
    with forward_ad.dual_level():
        note(x)
    assert chosen == ["reference"] * 4
    note(x)
    torch.func.vmap(note)(x[None])
    assert chosen[-2:] == ["cpu"] * 2


@pytest.mark.parametrize(
    ("noise", "dtype", "rule"),
    [
        ("recurrent * Gaussian(0.3) @ preactivation", torch.float32, "preactivation"),
        ("weight_hh * Gaussian(0.3) @ preactivation", torch.float32, "preactivation"),
        ("weight_hh + Gaussian(0.3) @ cumulative", torch.float32, "weight_hh"),
        ("weight_hh + Gaussian(0.3) & weight_hh * Gaussian(0.3)", torch.float32, "weight_hh"),
        ("weight_hh + Gaussian(0.3) & recurrent * Gaussian(0.3) @ untied", torch.float32, "gate"),
        ("hidden * Gaussian(0.3)", torch.bfloat16, "bfloat16"),
        (None, torch.float16, "float16"),
    ],
)
def test_what_cannot_be_fused_is_refused_where_it_is_forced(noise, dtype, rule):
    layer = LSTM(3, 5, noise=noise, dtype=dtype)
    x = torch.zeros(2, 3, 3, dtype=dtype)
    hx = zeros(layer, x)
    drawn = layer.draw(x) if noise else None
    with pytest.raises(ValueError, match='path="cpu"') as error:
        recur(layer.stack, layer.all_weights, x, hx, noise=layer.noise, draws=drawn, path="cpu")
    assert rule in str(error.value)
    if noise is not None:
        assert layer(x, hx, draws=drawn)[0].dtype == dtype


def test_noise_held_in_the_weights_may_stand_before_what_is_drawn_anew():
    noise = "weight_hh + Gaussian(0.3) @ sequence & weight_hh * Gaussian(0.3)"
    assert_plain(*made("LSTM", noise, 4, 3, 3, 5))


def test_a_library_of_another_version_is_not_used(monkeypatch):
    if compiled.LIBRARY is None:
        pytest.skip("the C functions were not compiled")
    assert compiled.load() is not None
    longer = type("Longer", (ctypes.Structure,), {"_fields_": [("x", ctypes.c_int64 * 99)]})
    monkeypatch.setattr(compiled, "_Pass", longer)
    assert compiled.load() is None


def test_without_the_extension_there_is_no_library(monkeypatch):
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    assert compiled.load() is None
