"""The Triton kernels beside torch's operations; without a GPU in Triton's interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from conftest import assert_bit_equal, assert_close_to_float64
from noisin.fused import cuda
from noisin.fused.buffers import now, perturbed
from noisin.fused.eager import Eager
from noisin.fused.recurrent import Tied, Untied
from processes import HANGS
from triton_calls import GATES, called

pytest.importorskip("triton")  # before TRITON_INTERPRET is set: for others it stays as it was
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")
    from noisin.fused import triton_told, triton_walk

SIZES = 3, 3, 5  # steps, sequences, units
LENGTHS = (2, 3, 1)
OPTIONS = {
    "plain": {},
    "reverse": {"reverse": True},
    "noise": {"noise": "fresh"},
    "held": {"noise": "held", "reverse": True},
    "untied": {"noise": "untied"},
    "zoneout": {"zoneout": True, "lengths": LENGTHS},
    "lengths": {"noise": "fresh", "zoneout": True, "lengths": LENGTHS, "reverse": True},
}
PROJECTED = {
    "plain": {"projected": 2},
    "noise": {"projected": 2, "noise": "fresh", "lengths": LENGTHS, "reverse": True},
    "untied": {"projected": 7, "noise": "untied", "zoneout": True},
}
CASES = [
    *((mode, options) for mode in GATES for options in OPTIONS.values()),
    *(("LSTM", options) for options in PROJECTED.values()),
]
NAMES = [
    *(f"{mode}-{name}" for mode in GATES for name in OPTIONS),
    *(f"LSTM-projected-{name}" for name in PROJECTED),
]
every_case = pytest.mark.parametrize(("mode", "options"), CASES, ids=NAMES)


def stepped(call, steps=Eager, product=None, rounded=lambda x: x):
    """Walk forward and back step by step; what the projection multiplies is rounded."""
    b, g, hr = call.buffers, call.gradients, call.projection
    product, forward = product or call.product, steps(b)
    for t in b.steps:
        forward.forward(t, product.forward(t, b.before(t)[0]))
        if hr is not None:
            torch.mm(rounded(b.inner), hr.t(), out=b.raw)
        forward.emit(t)
    backward = steps(b, g)
    for t in reversed(b.steps):
        backward.absorb(t)
        if hr is not None:
            torch.mm(rounded(g.raw), hr, out=g.inner)
        backward.backward(t)
        product.backward(t, b.before(t)[0], g.product[t], g.state)
    return call


def walked(call):
    """Walk forward and back by the kernels that take the products, too."""
    triton_walk.Walk([call.forward]).forward()
    triton_walk.Walk([call.backward]).backward()
    return call


def results(call):
    """All that a call leaves behind."""
    b, g = call.buffers, call.gradients
    left = [b.gates, b.cells, b.extra, b.states, b.out, g.gates, g.product, g.state, g.cell]
    return [one.cpu() for one in (*left, g.states, g.cells) if one is not None]


def assert_eager(found, mode, sizes=SIZES, **options):
    """Compare all buffers with the eager steps, by rule 7."""
    eager, exact = (
        results(stepped(called(mode, sizes, dtype, **options)))
        for dtype in (torch.float32, torch.float64)
    )
    assert_close_to_float64(results(found), eager, exact)


@every_case
def test_a_walk_is_that_of_torchs_operations(mode, options):
    assert_eager(walked(called(mode, SIZES, device=DEVICE, **options)), mode, **options)


@every_case
def test_steps_are_torchs_operations(mode, options):
    found = stepped(called(mode, SIZES, device=DEVICE, **options), triton_walk.Steps)
    assert_eager(found, mode, **options)


@pytest.mark.parametrize("mode", GATES)
def test_no_sequences(mode):
    sizes = 3, 0, 5
    assert_eager(walked(called(mode, sizes, device=DEVICE)), mode, sizes)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", GATES)
def test_one_step_of_one_sequence_and_unit(mode, reverse):
    options = {"noise": "fresh", "zoneout": True, "reverse": reverse}
    found = walked(called(mode, (1, 1, 1), device=DEVICE, **options))
    assert_eager(found, mode, (1, 1, 1), **options)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("LSTM", {"noise": "fresh", "lengths": range(2, 19)}),
        ("LSTM", {"noise": "untied", "projected": 33}),
        ("GRU", {"noise": "untied", "reverse": True}),
        ("RNN_TANH", {"noise": "held"}),
    ],
)
def test_several_tiles(mode, options, monkeypatch):
    """More sequences, units and addends than a tile has."""
    tile = {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 16}
    monkeypatch.setattr(triton_walk, "blocks", lambda *sizes: tile)
    sizes = 2, 17, 19
    found = walked(called(mode, sizes, device=DEVICE, **options))
    assert_eager(found, mode, sizes, **options)


@pytest.mark.skipif(DEVICE != "cpu", reason="the order of programs is the interpreter's")
@pytest.mark.parametrize(
    ("mode", "options"), [("LSTM", {}), ("LSTM", {"projected": 33}), ("GRU", {"noise": "untied"})]
)
def test_the_order_of_programs_changes_no_bit(mode, options, monkeypatch):
    """What a program of a launch writes no other of that launch reads."""
    from triton.runtime.interpreter import interpreter_builder as builder

    place, sizes = builder.set_grid_idx, (2, 17, 19)

    def backwards(*programs):
        place(*(count - 1 - at for count, at in zip(builder.grid_dim, programs, strict=True)))

    expected = results(walked(called(mode, sizes, **options)))
    monkeypatch.setattr(builder, "set_grid_idx", backwards)
    assert_bit_equal(results(walked(called(mode, sizes, **options))), expected)


class Rounded:
    """A product whose operands are rounded to half precision, as tensor cores read them."""

    def __init__(self, call, rounded):
        self.call, self.rounded, self.product = call, rounded, call.product
        if isinstance(self.product, Untied):
            seen = self.product._seen
            self.product._seen = lambda *given: rounded(seen(*given))
        else:
            self.product.factor = self.product.offset = None

    def forward(self, t, z):
        if isinstance(self.product, Tied):
            z = self.rounded(perturbed(z, now(self.call.factor, t), now(self.call.offset, t)))
        return self.product.forward(t, z)

    def backward(self, t, z, grad, carry):
        self.product.factor = self.call.factor
        self.product.backward(t, z, self.rounded(grad), carry)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("LSTM", {"noise": "fresh", "zoneout": True, "lengths": LENGTHS}),
        ("LSTM", {"noise": "untied", "projected": 2}),
        ("GRU", {"noise": "untied", "reverse": True}),
        ("RNN_RELU", {"noise": "held"}),
    ],
)
def test_half_precision_of_operands(mode, options, half, rounding_interpreter):
    def rounded(x):
        return x.to(half).to(x.dtype)

    found = walked(called(mode, SIZES, operands=half, half=half, device=DEVICE, **options))
    assert found.buffers.out.dtype == half
    eager = called(mode, SIZES, half=half, **options)
    eager = stepped(eager, product=Rounded(eager, rounded), rounded=rounded)
    exact = stepped(called(mode, SIZES, torch.float64, half=half, **options))
    eager.buffers.out, found.buffers.out = eager.buffers.out.to(half), found.buffers.out
    assert_close_to_float64(results(found), results(eager), results(exact))


@pytest.fixture
def rounding_interpreter(monkeypatch):
    """Triton 3.9's interpreter multiplies bfloat16 by its bits, and truncates to it."""
    from triton import language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def to_nearest(data, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        return torch.from_numpy(data).bfloat16().view(torch.uint16).numpy()

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        data = convert(handle.data, tl.bfloat16, tl.float32, None)
        return interpreter.TensorHandle(data.view("float32"), tl.float32)

    monkeypatch.setattr(interpreter, "_convert_float", to_nearest)
    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest),
    )


def test_the_comparison_fails_where_a_step_is_missing():
    call = called("GRU", SIZES, device=DEVICE)
    walk = triton_walk.Walk([call.forward])
    walk._steps = walk._steps[:-1]
    walk.forward()
    triton_walk.Walk([call.backward]).backward()
    with pytest.raises(AssertionError, match="error"):
        assert_eager(call, "GRU")


def squashed(mode, x):
    """What a cell with a nonlinearity makes of numbers, and the gradient of that."""
    call = called(mode, (1, 1, len(x)), device=DEVICE)
    call.buffers.bias = None
    call.buffers.gates.copy_(x)
    steps = triton_walk.Steps(call.buffers, call.gradients)
    steps.forward(0, torch.zeros_like(call.buffers.gates[0]))
    call.gradients.inner.fill_(1)
    steps.backward(0)
    return call.buffers.gates.flatten().cpu(), call.gradients.product.flatten().cpu()


NONLINEARITIES = {"RNN_TANH": torch.tanh, "RNN_SIGMOID": torch.sigmoid}


@pytest.mark.parametrize(("mode", "function"), NONLINEARITIES.items())
def test_nonlinearities_have_a_small_relative_error(mode, function):
    size = torch.cat((torch.logspace(-30, 1, 200), torch.linspace(0.3, 10, 200)))
    x = torch.cat((size, -size)) if mode == "RNN_TANH" else size
    exact = function(x.double())
    ratios = [(y.double() / exact).float() for y in (squashed(mode, x)[0], function(x))]
    assert_close_to_float64(*ratios, torch.ones_like(exact))


@pytest.mark.parametrize(("mode", "low"), [("RNN_TANH", -1.0), ("RNN_SIGMOID", 0.0)])
def test_nonlinearities_saturate_and_keep_nan(mode, low):
    x = torch.tensor([200.0, 1e4, -200.0, -1e4, float("nan")])
    y, slope = squashed(mode, x)
    assert_bit_equal(y[:4], torch.tensor([1.0, 1.0, low, low]))
    assert_bit_equal(slope[:4], torch.zeros(4))
    assert y[4].isnan()
    assert slope[4].isnan()


def test_nan_passes_a_relu_and_has_a_slope():
    y, slope = squashed("RNN_RELU", torch.tensor([-2.0, -0.0, 0.0, 3.0, float("nan")]))
    assert_bit_equal(y[:4], torch.tensor([0.0, 0.0, 0.0, 3.0]))
    assert y[4].isnan()
    assert_bit_equal(slope, torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))


def test_zoneout_keeps_bits():
    call = called("LSTM", SIZES, zoneout=True, device=DEVICE)
    for kept in (call.buffers.hidden_kept, call.buffers.cell_kept):
        kept.fill_(1)
    triton_walk.Walk([call.forward]).forward()
    for first, last in (
        (call.buffers.h0, call.buffers.states),
        (call.buffers.c0, call.buffers.cells),
    ):
        assert_bit_equal(last, first.expand_as(last))


def test_tf32_where_torch_may_use_it():
    matmul = torch.backends.cuda.matmul
    new = hasattr(matmul, "fp32_precision")  # since torch 2.9
    setting, values = ("fp32_precision", ("tf32", "ieee")) if new else ("allow_tf32", (True, False))
    before, buffers = getattr(matmul, setting), called("GRU", SIZES).buffers
    try:
        for value, expected in zip(values, ("tf32", "ieee"), strict=True):
            setattr(matmul, setting, value)
            assert triton_told.told_of([buffers], [None]).precision.value == expected
    finally:
        setattr(matmul, setting, before)


def test_only_float32_is_served():
    assert triton_walk.serves(torch.float32)
    assert not any(triton_walk.serves(one) for one in (torch.float64, torch.bfloat16))


def test_a_large_tile_where_it_fills_a_gpu():
    def tile(batch, units):
        chosen = triton_walk.blocks(batch, units, 16, 8)
        return chosen["BLOCK_B"], chosen["BLOCK_H"]

    assert tile(1, 1) == tile(20, 650) == (16, 16)
    assert tile(20, 1500) == (16, 32)
    assert tile(256, 1500) == (32, 64)


def test_the_smallest_tile_that_a_gpu_has_room_for():
    def tile(batch, units, room):
        chosen = triton_walk.blocks(batch, units, 16, 8, room=room)
        return chosen["BLOCK_B"], chosen["BLOCK_H"]

    assert tile(20, 650, 132) == tile(20, 650, 82) == (16, 16)
    assert tile(20, 650, 81) == tile(32, 1024, 108) == (16, 32)
    assert tile(256, 4096, 132) == (32, 64)  # more programs than that; a launch a step serves


def test_without_triton_the_package_imports():
    code = (
        "import sys; sys.modules['triton'] = None; import noisin, noisin.fused.cpu;"
        "assert 'noisin.fused.triton_walk' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANGS)


@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_compiles(arch, tmp_path):
    """For 99 KiB of shared memory, all but nothing spilled, and launched once a step."""
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("triton_compiled.py")]
    done = subprocess.run(
        [*command, str(arch), tmp_path], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["kernel"] for one in found} == {
        *("forward", "emit_state", "absorb_state", "backward"),
        *("step", "project", "step_back", "project_back", "send_back"),
        *("all_steps", "all_steps_back"),
    }
    for one in found:
        assert one["shared"] <= 99 * 1024, one
        assert one["spilled"] <= 128, one


def test_replicas_that_lie_together_by_chance_are_all_kept():
    """Of tensors of their own nobody else may keep the second; parts of one keep it together."""
    numbers = torch.arange(24.0)
    memory = numpy.array(numbers.tolist(), "float32")
    apart = [torch.from_numpy(memory[12 * r :][:12]).view(2, 1, 6) for r in range(2)]
    assert apart[1].data_ptr() - apart[0].data_ptr() == apart[0].nbytes
    found = triton_told.rows_of(apart)
    assert found.at.untyped_storage().nbytes() >= 2 * apart[0].nbytes
    assert_bit_equal(torch.as_strided(found.at, (24,), (1,)), numbers)
    whole = numbers.view(2, 2, 1, 6)
    assert triton_told.rows_of(list(whole)).at.data_ptr() == whole.data_ptr()


def test_rocm_is_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "not for ROCm" in cuda.refusal(torch.float32)
