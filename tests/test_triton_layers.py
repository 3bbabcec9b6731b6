"""Layers on the Triton kernels: noise on, whole stacks against the plain loop."""

import pytest
import torch

from cases import ALL_KINDS, make, plain_with_gradients, pulled_back, seeded, zeros
from conftest import assert_close_to_float64, flat
from mapped import several, together
from noisin.functional import path_of
from noisin.fused import cuda, operator
from noisin.stack import Stack
from test_fused import NOISE, PAIRS, assert_plain, fused, made
from test_fused_types import ROWS, assert_low_precision
from test_triton import DEVICE, rounding_interpreter, triton_walk  # noqa: F401 (a fixture)

SOME = [pair for index, pair in enumerate(PAIRS) if index % 5 == 2]
LIKE = torch.float32, torch.device("cuda")


@pytest.fixture
def interpreted(monkeypatch):
    """Let the kernels take the steps of layers on the CPU, in Triton's interpreter."""
    if DEVICE == "cuda":
        pytest.skip("where there is a GPU, kernels are compiled for it")
    monkeypatch.setattr(operator, "DEVICES", {"cpu": cuda})


in_the_interpreter = pytest.mark.usefixtures("interpreted")


@in_the_interpreter
@pytest.mark.parametrize(("row", "kind"), SOME)
def test_rows_are_the_plain_loop(row, kind):
    case = made(kind, row, 3, 3, 3, 5, num_layers=2, bidirectional=True)
    assert_plain(*case, lengths=torch.tensor([2, 3, 1]))


@in_the_interpreter
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_several_tiles_of_every_cell(kind):
    assert_plain(*made(kind, NOISE, 2, 17, 3, 33))


@in_the_interpreter
def test_projected():
    assert_plain(*made("LSTM", NOISE, 3, 3, 3, 7, proj_size=4))


@in_the_interpreter
@pytest.mark.usefixtures("rounding_interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "row"), ROWS)
def test_low_precision_is_no_worse_than_the_plain_loop(dtype, kind, row):
    assert_low_precision(dtype, kind, row, {"num_layers": 2})


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_real_sizes_on_a_gpu(kind, dtype, persistent, monkeypatch):
    """The plain loop on the same GPU is what it is compared with, TF32 off."""
    monkeypatch.setattr(cuda, "persistent", persistent)
    layer = make(kind, 650, 650, noise=NOISE, device=DEVICE, dtype=dtype)
    x = seeded(35, 20, 650).to(DEVICE, dtype).requires_grad_()
    hx = [seeded(*z.shape).to(DEVICE, dtype).requires_grad_() for z in zeros(layer, x)]
    drawn, lengths = layer.draw(x.detach()), torch.arange(16, 36)
    for noise in (one for entries in drawn.values() for one in entries):
        noise.requires_grad_()
    found = pulled_back(*fused(layer, x, tuple(hx), drawn, lengths, path="cuda"))
    others = [
        plain_with_gradients(layer, x, hx, drawn, lengths, one) for one in (dtype, torch.float64)
    ]
    assert_close_to_float64(found, *others)


def test_the_chooser_on_cuda(monkeypatch):
    """The kernels serve what acts inside, cuDNN what does not, and the plain loop the rest."""
    monkeypatch.setattr(operator, "DEVICES", {"cuda": cuda})
    stack = Stack("LSTM", 3, 5, 1)

    def chosen(noise, dtype=torch.float32):
        layer = made("LSTM", noise, 1, 1, 3, 5)[0]
        return path_of(stack, layer.resolve(layer.noise), 0, dtype, torch.device("cuda"))

    assert chosen("hidden * Gaussian(0.5)")[0] == "cuda"
    assert chosen("hidden * Gaussian(0.5)", torch.bfloat16)[0] == "cuda"
    assert chosen("input * Gaussian(0.5)")[0] == "torch"
    path, why = chosen("hidden * Gaussian(0.5)", torch.float64)
    assert path == "reference"
    assert "float32, bfloat16 and float16, not torch.float64" in why
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    path, why = chosen("hidden * Gaussian(0.5)")
    assert path == "reference"
    assert "needs Triton" in why


@in_the_interpreter
@pytest.mark.parametrize(
    ("kind", "row", "options"),
    [
        ("LSTM", NOISE, {}),
        ("LSTM", NOISE, {"proj_size": 4}),
        ("GRU", "recurrent * Gaussian(0.5) @ untied", {"bidirectional": True}),
        ("tanh", "hidden * Gaussian(0.5) @ sequence", {"num_layers": 2}),
        ("LSTM", "weight_hh * Gaussian(0.3) & Zoneout(hidden=0.3, cell=0.2)", {}),
    ],
)
def test_replicas_are_each_call_alone(kind, row, options):
    cases = several(lambda: made(kind, row, 3, 3, 3, 5, **options))
    lengths = torch.tensor([2, 3, 1])
    actual = pulled_back(*together(cases, lengths))
    alone = [fused(*case, lengths) for case in cases]
    expected = pulled_back(*map(flat, zip(*alone, strict=True)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@in_the_interpreter
def test_replicas_share_launches(monkeypatch):
    """A step of all of them is one launch, each way, whatever their number."""
    launches = []
    launch = triton_walk.Launch.__call__

    def counted(self, t, *more):
        launches.append(self._grid[2])
        return launch(self, t, *more)

    monkeypatch.setattr(triton_walk.Launch, "__call__", counted)
    for count in (1, 3):
        launches.clear()
        pulled_back(*together(several(lambda: made("LSTM", NOISE, 4, 3, 3, 5), count)))
        assert launches == [count] * (4 + 4 + 1)
