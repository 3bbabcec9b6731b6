"""Layers on the Triton kernels: noise on, whole stacks against the plain loop."""

import pytest
import torch

from cases import ALL_KINDS
from noisin.functional import path_of
from noisin.fused import cuda, operator
from noisin.stack import Stack
from test_fused import NOISE, PAIRS, assert_plain, made
from test_fused_types import ROWS, assert_low_precision
from test_triton import DEVICE, rounding_interpreter  # noqa: F401

SOME = [pair for index, pair in enumerate(PAIRS) if index % 5 == 2]
LIKE = torch.float32, torch.device("cuda")


@pytest.fixture(autouse=True)
def _by_kernels(monkeypatch):
    """Let the kernels take the steps; without a GPU in Triton's interpreter on the CPU."""
    if DEVICE == "cuda":
        pytest.skip("these layers are on the CPU")
    monkeypatch.setattr(operator, "_DEVICES", {"cpu": cuda})


@pytest.mark.parametrize(("row", "kind"), SOME)
def test_rows_are_the_plain_loop(row, kind):
    case = made(kind, row, 3, 3, 3, 5, num_layers=2, bidirectional=True)
    assert_plain(*case, lengths=torch.tensor([2, 3, 1]))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_several_tiles_of_every_cell(kind):
    assert_plain(*made(kind, NOISE, 2, 17, 3, 33))


def test_projected():
    assert_plain(*made("LSTM", NOISE, 3, 3, 3, 7, proj_size=4))


@pytest.mark.usefixtures("rounding_interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "row"), ROWS)
def test_low_precision_is_no_worse_than_the_plain_loop(dtype, kind, row):
    assert_low_precision(dtype, kind, row, {"num_layers": 2})


def test_the_chooser_on_cuda(monkeypatch):
    """The kernels serve what acts inside, cuDNN what does not, and the plain loop the rest."""
    monkeypatch.setattr(operator, "_DEVICES", {"cuda": cuda})
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
