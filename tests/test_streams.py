"""Numbers of a seed by a counter: Threefry's own, their laws, and the same by any path."""

import math

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import assert_bit_equal, assert_close_to_float64, assert_distribution, assert_mean
from noisin import Bernoulli, Gaussian, Laplace, native, streams
from noisin.streams import Stream

CPU = torch.device("cpu")
HALF = 128  # numbers from one word of a counter, before as many from the other
compiled = pytest.mark.skipif(streams._DRAW is None, reason="the C functions were not compiled")


def threefry(key, counter):
    """Return two words of Threefry-2x32 with 20 rounds, in whole numbers without a limit."""
    limit, turns = 2**32, ((13, 15, 26, 6), (17, 29, 16, 24))
    keys = (*key, 0x1BD11BDA ^ key[0] ^ key[1])
    a, b = ((word + one) % limit for word, one in zip(counter, keys, strict=False))
    for group in range(5):
        for turn in turns[group % 2]:
            a = (a + b) % limit
            b = ((b << turn | b >> (32 - turn)) % limit) ^ a
        a = (a + keys[(group + 1) % 3]) % limit
        b = (b + keys[(group + 2) % 3] + group + 1) % limit
    return a, b


def words(seed, call, size):
    """Return the words behind ``size`` numbers, in their order."""
    key, found = (seed % 2**32, seed >> 32), []
    for start in range(0, size, 2 * HALF):
        pairs = [threefry(key, (start // 2 + j, call)) for j in range(HALF)]
        found += [a for a, _ in pairs] + [b for _, b in pairs]
    return found[:size]


def rand(stream, *size):
    return stream.rand(size, torch.float32)


def randn(stream, *size):
    return stream.randn(size, torch.float32)


# The vectors that Random123, the authors' library, publishes.
@pytest.mark.parametrize(
    ("key", "counter", "known"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_function_of_these_tests_is_threefry(key, counter, known):
    assert threefry(key, counter) == known


def test_what_was_compiled_draws():
    assert (streams._DRAW is None) == (native.extension() is None)


@compiled
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 2, 2**64 - 1])
@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000])
def test_uniform_numbers_are_threefrys(seed, size):
    stream = Stream(CPU, seed)
    for call in range(3):
        expected = [(word >> 8) / 2**24 for word in words(seed, call, size)]
        assert rand(stream, size).tolist() == expected


@compiled
def test_normal_numbers_are_box_and_mullers_of_the_same_words():
    size, seed = 80 * HALF, 3
    first, second = zip(*(threefry((seed, 0), (j, 0)) for j in range(size // 2)), strict=True)

    def pairs(dtype):
        u = ((torch.tensor(first) // 256).to(dtype) + 0.5) / 2**24
        turn = torch.tensor(second)
        angle = (turn - 2**32 * (turn >= 2**31)).to(dtype) * (2 * math.pi / 2**32)
        return (-2 * u.log()).sqrt() * torch.stack((angle.cos(), angle.sin()))  # [2, pairs]

    drawn = randn(Stream(CPU, seed), size).view(-1, 2, HALF).transpose(0, 1).reshape(2, -1)
    assert_close_to_float64(drawn, pairs(torch.float32), pairs(torch.float64))


def test_numbers_have_their_laws():
    drawn = rand(Stream(CPU, 1), 400, 500)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert_distribution(drawn.flatten(), stats.uniform().cdf)
    assert_distribution(randn(Stream(CPU, 2), 400, 500).flatten(), stats.norm().cdf)
    laplace = Laplace(0.7).sample((200_000,), generator=Stream(CPU, 3))
    assert_distribution(laplace, stats.laplace(scale=0.7 / math.sqrt(2)).cdf)
    factor = Bernoulli(keep=0.3).factor((200_000,), generator=Stream(CPU, 4))
    assert set((factor * 0.3).round(decimals=6).tolist()) == {0.0, 1.0}
    assert_mean(factor, 1.0, math.sqrt(0.7 / 0.3))


FAR = pytest.param("far seed", marks=compiled)  # torch's reads 32 bits of a seed


@pytest.mark.parametrize("other", ["neighbour", "other half", "next seed", FAR, "next call"])
def test_numbers_do_not_know_each_other(other):
    size = 200_000
    stream = Stream(CPU, 5)
    one = randn(stream, size)
    two = {
        "neighbour": lambda: one.roll(1),
        "other half": lambda: one.roll(HALF),  # of the same radius
        "next seed": lambda: randn(Stream(CPU, 6), size),
        "far seed": lambda: randn(Stream(CPU, 5 + 2**32), size),
        "next call": lambda: randn(stream, size),
    }[other]()
    assert_mean(one * two, 0.0, 1.0)
    assert_mean((one.square() - 1) * (two.square() - 1), 0.0, 2.0)


@compiled
def test_threads_share_the_same_numbers(monkeypatch):
    alone = randn(Stream(CPU, 8), 100_003)
    for threads in (2, 5):
        shared = {"parallel": native.parallel(), "threads": threads}
        monkeypatch.setattr(native, "in_threads", lambda shared=shared: shared)
        assert_bit_equal(randn(Stream(CPU, 8), 100_003), alone)


@pytest.mark.parametrize("missing", ["the extension", "the type"])
def test_torch_draws_where_the_counter_does_not_serve(missing, monkeypatch):
    dtype = torch.float64 if missing == "the type" else torch.float32
    if missing == "the extension":
        monkeypatch.setattr(streams, "_DRAW", None)
    stream, plain = Stream(CPU, 9), torch.Generator().manual_seed(9)
    for draw, by_torch in ((stream.randn, torch.randn), (stream.rand, torch.rand)):
        assert_bit_equal(draw((3, 4), dtype), by_torch(3, 4, generator=plain, dtype=dtype))


def test_too_many_numbers_for_the_counter_are_torchs(monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", 11)
    plain = torch.Generator().manual_seed(9)
    assert_bit_equal(rand(Stream(CPU, 9), 3, 4), torch.rand(3, 4, generator=plain))


def test_a_stream_is_a_generator_to_the_rest_of_torch():
    stream, plain = Stream(CPU, 10), torch.Generator().manual_seed(10)
    assert isinstance(stream, torch.Generator)
    assert stream.device == CPU
    assert_bit_equal(torch.randperm(20, generator=stream), torch.randperm(20, generator=plain))


def test_a_seed_that_is_set_again_begins_anew():
    stream = Stream(CPU, 11)
    first = randn(stream, 5), torch.rand(5, generator=stream)
    assert stream.manual_seed(11) is stream
    assert_bit_equal((randn(stream, 5), torch.rand(5, generator=stream)), first)


def test_numbers_are_where_they_are_asked_for():
    drawn = Gaussian(1.0).sample((2,), generator=Stream(CPU, 1), device="meta")
    assert drawn.device.type == "meta"
    with FakeTensorMode():
        assert randn(Stream(CPU, 1), 2, 3).shape == (2, 3)


def test_an_empty_draw_is_empty():
    assert Gaussian(1.0).sample((0, 3), generator=Stream(CPU, 1)).shape == (0, 3)
