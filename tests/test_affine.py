"""The large product of the softmax by oneDNN beside torch's linear."""

import pytest
import torch
from torch.nn.functional import linear

from cases import pulled_back, seeded
from conftest import assert_bit_equal, assert_close_to_float64
from noisin import CategoricalHead
from noisin.fused import affine, products


@pytest.fixture
def onednn(monkeypatch):
    if not products._works():
        pytest.skip("oneDNN's products are not to be had")
    monkeypatch.setattr(products, "library", lambda: "onednn")
    monkeypatch.setattr(affine, "SMALLEST", 0)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 3), (4, 2, 3), (3,), (17, 65)])
def test_results_and_gradients_are_torchs(bias, size, monkeypatch):
    torch.manual_seed(0)
    head = CategoricalHead(size[-1], 33, bias=bias)
    x = seeded(*size).requires_grad_()
    actual = pulled_back([head(x)], [x, *head.parameters()])
    others = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *head.parameters())]
        others.append(pulled_back([linear(*leaves)], leaves))
    assert_close_to_float64(actual, *others)


@pytest.mark.usefixtures("onednn")
def test_the_head_takes_it_and_differentiates_twice(monkeypatch):
    head, x, seen = CategoricalHead(3, 5), seeded(4, 3).requires_grad_(), []
    kept = affine.affine
    monkeypatch.setattr(affine, "affine", lambda *given: seen.append(1) or kept(*given))
    (grad,) = torch.autograd.grad(head(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    found, head.weight.grad = head.weight.grad, None
    (grad,) = torch.autograd.grad(
        linear(x, head.weight, head.bias).square().sum(), x, create_graph=True
    )
    grad.square().sum().backward()
    torch.testing.assert_close(found, head.weight.grad, rtol=1e-4, atol=1e-4)
    assert len(seen) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.bfloat16
    assert torch.func.vmap(head)(x).shape == (4, 5)
    assert len(seen) == 1


def test_elsewhere_the_head_is_torchs_linear(monkeypatch):
    monkeypatch.setattr(products, "library", lambda: "torch")
    monkeypatch.setattr(affine, "SMALLEST", 0)
    head, x = CategoricalHead(3, 5), seeded(4, 3)
    assert_bit_equal(head(x), linear(x, head.weight, head.bias))


@pytest.mark.usefixtures("onednn")
def test_another_size_is_refused_in_torchs_words():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        CategoricalHead(64, 64)(seeded(3, 60))
