"""The log-probability of one class of many, in blocks, beside torch's functions."""

import pytest
import torch

from cases import pulled_back, seeded
from conftest import assert_close_to_float64
from noisin.fused import categorical
from noisin.fused.categorical import log_probability

SIZES = [(1, 1, 1), (2, 3, 7), (5, 1, 33), (4, 4, 16)]


@pytest.fixture(params=[1, 40, 2**18])
def blocks(request, monkeypatch):
    """Every size counts as large; a block is one row, some rows, or all."""
    monkeypatch.setattr(categorical, "SMALLEST", 0)
    monkeypatch.setattr(categorical, "_BLOCK", request.param)


def torchs(logits, index):
    return logits.log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def given(size, dtype=torch.float32, scale=3.0):
    logits = (scale * seeded(*size, dtype=torch.float64)).to(dtype)
    index = torch.randint(size[-1], size[:-1], generator=torch.Generator().manual_seed(1))
    return logits.requires_grad_(), index


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_values_and_gradients_are_torchs(size, scale):
    logits, index = given(size, scale=scale)
    results = []
    for function, dtype in (
        (log_probability, torch.float32),
        (torchs, torch.float32),
        (torchs, torch.float64),
    ):
        leaf = logits.detach().to(dtype).requires_grad_()
        results.append(pulled_back([function(leaf, index)], [leaf]))
    assert_close_to_float64(*results)


@pytest.mark.usefixtures("blocks")
def test_a_common_offset_costs_no_digits():
    """Log-probabilities near 0 of logits near 1e4, and certainty."""
    logits = torch.tensor([[1e4, 1e4 - 1.0], [1e4, -1e4]])
    found = log_probability(logits, torch.tensor([0, 1]))
    expected = torchs(logits.double(), torch.tensor([0, 1]))
    assert_close_to_float64(found, torchs(logits, torch.tensor([0, 1])), expected)


@pytest.mark.usefixtures("blocks")
def test_both_derivatives_are_those_of_differences():
    logits, index = given((2, 3, 5), torch.float64)
    assert torch.autograd.gradcheck(log_probability, (logits, index))
    assert torch.autograd.gradgradcheck(log_probability, (logits, index))


@pytest.mark.usefixtures("blocks")
def test_transforms_of_functions_see_torchs_operations():
    logits, index = given((2, 3, 5), torch.float64)
    rows = logits.detach()
    by_row = torch.func.vmap(log_probability)(rows, index)
    torch.testing.assert_close(by_row, torchs(rows, index))
    slope = torch.func.grad(lambda x: log_probability(x, index).sum())(rows)
    (expected,) = torch.autograd.grad(torchs(logits, index).sum(), logits)
    torch.testing.assert_close(slope, expected)
    _, tangent = torch.func.jvp(lambda x: log_probability(x, index), (rows,), (rows,))
    assert (tangent != 0).any()


@pytest.mark.usefixtures("blocks")
def test_the_logits_are_not_written_to():
    logits, index = given((2, 3, 5))
    before = logits.detach().clone()
    log_probability(logits, index).sum().backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.usefixtures("blocks")
def test_not_a_number_stays_in_its_row():
    logits = torch.zeros(2, 3)
    logits[0, 1] = torch.nan
    found = log_probability(logits, torch.tensor([0, 0]))
    assert found[0].isnan()
    assert found[1] == -torch.log(torch.tensor(3.0))


@pytest.mark.usefixtures("blocks")
def test_logits_in_any_order_of_memory():
    logits, index = given((2, 3, 5))
    turned = logits.detach().transpose(0, 1)
    torch.testing.assert_close(log_probability(turned, index.t()), torchs(turned, index.t()))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("wrong", [-1, 5])
def test_what_is_no_class_is_refused(wrong):
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        log_probability(torch.zeros(2, 5), torch.tensor([0, wrong]))


@pytest.mark.parametrize("smallest", [0, 2**20])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2), (2, 3, 1), (6,), ()])
def test_as_many_classes_as_rows_are_asked_for(shape, smallest, monkeypatch):
    monkeypatch.setattr(categorical, "SMALLEST", smallest)
    with pytest.raises(ValueError, match=r"one class for each row of the logits, \[2, 3\]"):
        log_probability(torch.zeros(2, 3, 5), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.usefixtures("blocks")
def test_vectorized_gradients():
    logits, index = given((2, 3, 5), torch.float64)
    ways = torch.eye(6, dtype=torch.float64).view(6, 2, 3)
    found, expected = (
        torch.autograd.grad(f(logits, index), logits, ways, is_grads_batched=True)[0]
        for f in (log_probability, torchs)
    )
    torch.testing.assert_close(found, expected)


def test_large_logits_take_the_blocks_and_small_ones_do_not(monkeypatch):
    seen = []
    monkeypatch.setattr(
        categorical, "_blocks", lambda *tensors: seen.append(1) or [(one,) for one in tensors]
    )
    index = torch.zeros(64, dtype=torch.int64)
    log_probability(torch.zeros(64, 100), index)
    assert not seen
    log_probability(torch.zeros(64, 2**15), index)
    assert seen


@pytest.mark.parametrize("rows", [3, 2**12])  # of 300 classes; the latter are taken in blocks
def test_under_autocast_it_is_in_float32_as_torchs_losses_are(rows):
    logits, index = given((rows, 300), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = log_probability(logits, index)
        expected = -torch.nn.functional.cross_entropy(logits, index, reduction="none")
    assert found.dtype == expected.dtype == torch.float32
    assert_close_to_float64(found, expected, torchs(logits.double(), index))
    found.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert log_probability(logits, index).dtype == torch.bfloat16
