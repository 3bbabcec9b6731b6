"""The libraries that multiply: which one, tried how, with what memory."""

import itertools

import pytest
import torch

from cases import seeded
from conftest import assert_bit_equal, assert_close_to_float64
from noisin.fused import blas, compiled, own, products


def forget():
    """Let libraries be tried anew."""
    for tried in (products.library, blas._library, blas.address):
        tried.cache_clear()


@pytest.fixture(params=["bfloat16", "float64", "meta"])
def default(request):
    """Another default than float32 on the CPU, set before anything is multiplied."""
    forget()
    dtype = torch.get_default_dtype()
    if request.param == "meta":
        with torch.device("meta"):
            yield
    else:
        torch.set_default_dtype(getattr(torch, request.param))
        yield
        torch.set_default_dtype(dtype)
    forget()


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("intel", [True, False])
def test_whatever_the_defaults_are(intel, monkeypatch):
    """Memory that another library writes is float32 on the CPU."""
    monkeypatch.setattr(blas, "is_intel", lambda: intel)
    monkeypatch.setattr(products, "is_intel", lambda: intel)
    has_mkl = hasattr(blas.torch_library(), "cblas_sgemm_pack")
    assert (blas.address() is not None) == (intel and has_mkl)
    kind = {"dtype": torch.float32, "device": "cpu"}
    weight, x = torch.arange(300.0, **kind).view(20, 15) / 100, torch.ones(3, 15, **kind)
    product = products.Repeated(weight, len(x), products.STEPS)
    assert (product._by == "mkl") == (intel and has_mkl)
    torch.testing.assert_close(product.forward(x), x @ weight.t())
    packed = blas.packed(weight.t(), 3) if product._by == "mkl" else x
    assert (packed.dtype, packed.device.type) == (torch.float32, "cpu")


@pytest.mark.skipif(not products._works(), reason="oneDNN's products are not to be had")
def test_a_library_is_tried_once(monkeypatch):
    """Where the processor is not Intel's, oneDNN is tried by a product that asks for it by name."""
    tried, kept = [], products.Repeated.forward
    monkeypatch.setattr(products, "is_intel", lambda: False)
    monkeypatch.setattr(blas, "address", lambda: None)
    monkeypatch.setattr(
        products.Repeated, "forward", lambda *given: tried.append(1) or kept(*given)
    )
    products.library.cache_clear()
    made = []
    monkeypatch.setattr(products, "_works", lambda _=products._works: made.append(1) or _())
    assert products.library() == "onednn"
    products.library.cache_clear()
    assert (len(made), len(tried)) == (1, 1)


def test_a_weight_is_multiplied_alike_by_every_library():
    weight, x, grad = seeded(17, 9), seeded(3, 9), seeded(3, 17)
    expected, back = x.double() @ weight.double().t(), 1 + grad.double() @ weight.double()
    eager = x @ weight.t(), 1 + grad @ weight
    serve = {"torch": True, "onednn": products._works(), "own": own.serves()}
    for by in (name for name, serves in serve.items() if serves):
        product, carry = products.Repeated(weight, 3, products.STEPS, by), torch.ones(3, 9)
        product.backward(grad, carry)
        assert_close_to_float64((product.forward(x), carry), eager, (expected, back))


needs_own = pytest.mark.skipif(
    not own.serves(), reason="product.c is for x86 with AVX2, compiled by GCC 12 or later"
)


@needs_own
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_our_own_product_takes_any_sizes(threads):
    """Rows that fill no tile, columns that fill no panel, long sums, several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows, columns, inner in itertools.product(
            (1, 5, 6, 7, 13, 20), (1, 15, 16, 17, 400), (1, 2, 255, 257, 600)
        ):
            x, matrix = seeded(rows, inner), seeded(inner, columns)
            out = torch.full((rows, columns + 1), torch.nan).flatten()[: rows * columns]
            out = out.view(rows, columns)
            own.multiply(x, own.packed(matrix), out)
            assert_close_to_float64(out, x @ matrix, x.double() @ matrix.double())
            turned = own.multiply(x, own.packed(matrix.t().contiguous().t()), out.clone())
            assert_bit_equal(turned, out)
    finally:
        torch.set_num_threads(before)


@needs_own
def test_each_row_of_our_own_product_is_what_it_is_alone():
    x, packed = seeded(20, 300), own.packed(seeded(300, 70))
    together = own.multiply(x, packed, torch.empty(20, 70))
    alone = [own.multiply(one, packed, torch.empty(1, 70)) for one in x.split(1)]
    assert_bit_equal(together, torch.cat(alone))


@needs_own
def test_our_own_product_serves_where_torch_lends_none(monkeypatch):
    monkeypatch.setattr(blas, "address", lambda: None)
    assert compiled.walks(torch.float32)  # all steps in C
    assert not compiled.walks(torch.float64)
    weight = seeded(17, 9)
    assert products.Repeated(weight, 3, products.STEPS)._by == "own"
    assert products.Repeated(weight, 3, products.STEPS - 1)._by == "torch"
    assert products.Repeated(weight.double(), 3, products.STEPS)._by == "torch"
