"""Settings of all tests, and the comparison helpers: nothing else in tests/ has a tolerance."""

import importlib.util
import os
import time
import typing
from contextlib import contextmanager
from pathlib import Path

import beartype
import hypothesis
import jaxtyping
import pytest
import torch


def shapes_checked(function):
    """Let beartype check annotations of shape, and only those.

    All others would be refused by beartype before the library could refuse them itself, and its
    own refusals are what the tests are about.
    """

    def has_shape(hint):
        is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
        return is_array or any(has_shape(part) for part in typing.get_args(hint))

    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if has_shape(hint)}
    return beartype.beartype(function)


# Before noisin is imported anywhere. Modules without a shape are left as they are: wrapped
# functions are slow, and Triton reads the source of its kernels.
hook = jaxtyping.install_import_hook("noisin", "conftest.shapes_checked").hook
SOURCE = Path(importlib.util.find_spec("noisin").origin).parent
SHAPED = {
    ".".join(("noisin", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in SOURCE.rglob("*.py")
    if "from noisin.shapes import" in path.read_text(encoding="utf-8")
}
hook.should_instrument = SHAPED.__contains__

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or some torch refuses products
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)  # fills new memory (torch.empty) with NaN

hypothesis.settings.register_profile(
    "noisin",
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("noisin")


def pytest_configure(config):
    """Let pass what torch itself warns about: oneDNN's missing projection, and its own script."""
    for message in ("LSTM with projections is not supported", "`torch.jit.script` is deprecated"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


@pytest.fixture(autouse=True)
def seeded_generator():
    """Start every test from one seed: a statistic at z = 6 is then right or wrong for good."""
    torch.manual_seed(0)


@pytest.fixture
def bach(tmp_path_factory, monkeypatch):
    """Make the cache one in which Bach's chorales are read once, by one of the tests' processes."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    monkeypatch.setenv("NOISIN_CACHE", str(shared / "bach"))


Z = 6.0  # standard errors a statistic may be off; two-sided false alarm 2e-9 a comparison
STEEPEST = 100.0  # bound of |d output / d std| in the small networks of these tests
SECONDS = 2.0  # a text of 1,000 characters is read, or refused, within this


def flat(tensors):
    """Return nested tuples of tensors, None included, as one list."""
    if tensors is None or isinstance(tensors, torch.Tensor):
        return [tensors]
    return [one for part in tensors for one in flat(part)]


def assert_bit_equal(actual, expected):
    """No tolerance: the same shapes, dtypes and bits (NaN equals nothing, 0 equals -0)."""
    actual, expected = flat(actual), flat(expected)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def assert_close_to_float64(actual, eager, ref64, pooled=False):
    """Tolerance of rule 7: 2 · err_eager + 8 · eps · max|ref64|, both errors against float64.

    Args:
        actual: what is tested, in some dtype.
        eager: the plain loop in that dtype.
        ref64: the plain loop in float64.
        pooled: whether the maximum of a number alone is that of all results: the gradient of a
            layer's spread is a sum of terms of either sign, whose size it does not show, and its
            eager error is luck.
    """
    actual, eager, ref64 = flat(actual), flat(eager), flat(ref64)
    assert len(actual) == len(eager) == len(ref64) > 0
    largest = max([r.abs().max().item() for r in ref64 if r.numel()], default=0.0)
    for a, e, r in zip(actual, eager, ref64, strict=True):
        assert a.shape == e.shape == r.shape, (a.shape, e.shape, r.shape)
        assert a.dtype == e.dtype, (a.dtype, e.dtype)
        assert r.dtype == torch.float64
        if r.numel() == 0:
            continue
        scale = largest if pooled and r.numel() == 1 else r.abs().max().item()
        bound = 2 * (e.double() - r).abs().max().item() + 8 * torch.finfo(a.dtype).eps * scale
        error = (a.double() - r).abs().max().item()
        assert error <= bound, f"error {error:.3g} above {bound:.3g}"


def assert_close_curves(actual, expected):
    """Losses over epochs that were added up in another order: 1e-5 relative."""
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert abs(one - other) <= 1e-5 * abs(other), (one, other)


def assert_mean(samples, expected, std, z=Z):
    """The mean over dim 0 of N samples is within z · std / √N of what is expected."""
    count = samples.shape[0]
    assert count >= 1000
    expected, std = (torch.as_tensor(value, dtype=torch.float64) for value in (expected, std))
    off = (samples.double().mean(0) - expected).abs()
    assert (std > 0).all()
    score = (off * count**0.5 / std).max().item()
    assert score <= z, f"mean is {score:.1f} standard errors off"


def assert_variance(samples, expected, mean, z=Z):
    """The variance over dim 0 of N samples around a known mean, likewise.

    Its standard error is √((m₄ - m₂²) / N) with the samples' own moments.
    """
    count = samples.shape[0]
    assert count >= 1000
    square = (samples.double() - torch.as_tensor(mean, dtype=torch.float64)) ** 2
    error = square.var(0, correction=0).sqrt() / count**0.5
    off = (square.mean(0) - torch.as_tensor(expected, dtype=torch.float64)).abs()
    assert (error > 0).all(), "the samples do not vary"
    score = (off / error).max().item()
    assert score <= z, f"variance is {score:.1f} standard errors off"


def assert_uncorrelated(first, second, z=Z):
    """The correlation of N pairs (each of mean 0) is within z / √N of 0, for every column."""
    first, second = first.double(), second.double()
    assert first.shape == second.shape
    assert first.shape[0] >= 1000
    products = first * second
    error = (products**2).mean(0).sqrt() / first.shape[0] ** 0.5
    score = (products.mean(0).abs() / error).max().item()
    assert score <= z, f"correlation is {score:.1f} standard errors from 0"


def assert_distribution(samples, cdf):
    """Kolmogorov-Smirnov: √N · sup|F_N - F| stays below its quantile of false alarm 2e-9.

    Each sample may have been moved by 4 eps of its dtype (relative, and of 1) by rounding.
    """
    from scipy.stats import kstwobign

    x = samples.flatten().sort().values
    slack = 4 * torch.finfo(x.dtype).eps * (1 + x.double().abs())
    count = x.numel()
    assert count >= 1000
    above = torch.from_numpy(cdf((x.double() + slack).numpy()))
    below = torch.from_numpy(cdf((x.double() - slack).numpy()))
    rank = torch.arange(count, dtype=torch.float64)
    distance = max((((rank + 1) / count) - above).max().item(), (below - rank / count).max().item())
    assert distance * count**0.5 <= kstwobign.isf(2e-9), f"KS distance {distance:.3g}, N = {count}"


def assert_vanishes(actual, plain, std):
    """Noise of a tiny std leaves the plain result but for 100 · std, and is not nothing."""
    error = max((a - p).abs().max().item() for a, p in zip(flat(actual), flat(plain), strict=True))
    assert 0 < error <= STEEPEST * std, f"error {error:.3g} for std {std:.3g}"


def assert_gradients(function, inputs):
    """Float64 gradients equal central differences: eps 1e-6, atol 1e-5, rtol 1e-3 (gradcheck's)."""
    assert inputs
    assert all(one.dtype == torch.float64 and one.requires_grad for one in inputs)
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


def assert_second_gradients(function, inputs):
    """Second derivatives likewise, by gradgradcheck."""
    assert inputs
    assert torch.autograd.gradgradcheck(function, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


@contextmanager
def within_seconds(seconds=SECONDS):
    """The block ends within some seconds: no text makes the reader compute."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < seconds
