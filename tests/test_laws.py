"""The laws: mean, variance and shape of what is drawn, and refusal of what is no law."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

import noisin
from conftest import (
    assert_bit_equal,
    assert_close_to_float64,
    assert_distribution,
    assert_mean,
    assert_variance,
)
from noisin import (
    Bernoulli,
    Beta,
    ChiSquare,
    Gamma,
    Gaussian,
    Gumbel,
    Laplace,
    Learned,
    Logistic,
    Uniform,
    laws,
)

N = 1_000_000

# Each law beside scipy's: any location and scale, since it is standardized below.
CONTINUOUS = [
    (Gaussian(0.7), stats.norm()),
    (Logistic(0.7), stats.logistic()),
    (Laplace(0.7), stats.laplace()),
    (Gumbel(0.7), stats.gumbel_r()),
    (Uniform(0.7), stats.uniform()),
    (Gamma(0.7), stats.gamma(2)),
    (Gamma(0.7, shape=0.1), stats.gamma(0.1)),
    (Gamma(0.7, shape=50.0), stats.gamma(50)),
    (ChiSquare(0.7), stats.chi2(1)),
    (ChiSquare(0.7, df=4), stats.gamma(2)),
    (ChiSquare(0.7, df=0.3), stats.chi2(0.3)),
    (Beta(0.7), stats.beta(0.5, 0.5)),
    (Beta(0.7, a=2.0, b=5.0), stats.beta(2, 5)),
    (Beta(0.7, a=0.01, b=3.0), stats.beta(0.01, 3)),
    (Beta(0.7, a=0.01, b=0.01), stats.beta(0.01, 0.01)),
]
DISCRETE = [Bernoulli(keep=0.41), Bernoulli(keep=0.02), Bernoulli(keep=0.98)]
ALL = [law for law, _ in CONTINUOUS] + DISCRETE


def seed(number=0):
    return torch.Generator().manual_seed(number)


def test_every_law_is_tested():
    assert len(laws.LAWS) == 9
    assert {type(law).__name__ for law in ALL} == set(laws.LAWS)
    assert all(getattr(noisin, name) is law for name, law in laws.LAWS.items())


@pytest.mark.parametrize(("law", "known"), CONTINUOUS, ids=[str(law) for law, _ in CONTINUOUS])
def test_draws_have_the_stated_mean_variance_and_shape(law, known):
    draws = law.sample((N,), generator=seed(), dtype=torch.float64)
    assert draws.isfinite().all()
    assert law.mean == 0
    assert law.variance == 0.7**2
    assert_mean(draws, 0.0, 0.7)
    assert_variance(draws, 0.7**2, mean=0.0)
    mean, std = known.mean(), known.std()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        some = law.sample((100_000,), generator=seed(1), dtype=dtype)
        assert some.dtype == dtype
        assert_distribution(some, lambda x: known.cdf(mean + std * x / 0.7))


@pytest.mark.parametrize("law", DISCRETE, ids=str)
def test_bernoulli_keeps_with_probability_p_and_scales_by_exactly_one_over_p(law):
    p = law.keep
    factor = law.factor((N,), generator=seed(), dtype=torch.float64)
    assert set(factor.unique().tolist()) == {0.0, 1 / p}
    assert law.mean == 0
    assert_mean(factor, 1.0, ((1 - p) / p) ** 0.5)
    assert_variance(factor, (1 - p) / p, mean=1.0)
    assert_bit_equal(torch.tensor(law.variance).double(), torch.tensor((1 - p) / p).double())
    offset = law.sample((N,), generator=seed(), dtype=torch.float64)
    assert_bit_equal(offset, factor - 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        factor = law.factor((10_000,), generator=seed(), dtype=dtype)
        assert set(factor.unique().tolist()) == {0.0, torch.tensor(1 / p, dtype=dtype).item()}


@pytest.mark.parametrize("law", ALL, ids=str)
def test_no_draw_is_infinite(law):
    # among the uniforms of this seed is an exact 0, of which naive formulas take the logarithm
    assert torch.rand(N, generator=seed(12)).min() == 0
    for draw in (law.sample, law.factor):
        assert draw((N,), generator=seed(12), dtype=torch.float32).isfinite().all()


@pytest.mark.parametrize("law", ALL, ids=str)
@pytest.mark.parametrize("draw", ["sample", "factor"])
def test_sixteen_bit_draws_are_rounded_from_float32(law, draw):
    """Once, at the end: an offset b/p - 1 made of a rounded 1/p has no mean of 0."""
    exact = getattr(law, draw)((1000,), generator=seed(), dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = getattr(law, draw)((1000,), generator=seed(), dtype=dtype)
        assert_bit_equal(rounded, exact.to(dtype))


@pytest.mark.parametrize("law", ALL, ids=str)
def test_a_generator_reproduces_and_the_default_one_is_left_alone(law):
    before = torch.get_rng_state()
    first = law.sample((3, 5), generator=seed())
    again = law.sample([3, 5], generator=seed(), dtype=torch.get_default_dtype(), device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert_bit_equal(first, again)
    generator = seed(1)
    one, two = (law.sample((50,), generator=generator) for _ in range(2))
    assert not torch.equal(one, two)
    torch.manual_seed(4)
    default = law.sample((3, 5))
    assert_bit_equal(default, law.sample((3, 5), generator=seed(4)))
    assert_bit_equal(law.factor((3, 5), generator=seed()), 1 + first)


@pytest.mark.parametrize("law", ALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_floating_types_are_drawn(law, dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        law.sample((3,), dtype=dtype)
    with pytest.raises(TypeError, match=str(dtype)):
        law.factor((3,), dtype=dtype)


def test_draws_of_no_size_and_of_one_number():
    for law in ALL:
        assert law.sample(()).shape == ()
        assert law.factor((0, 3)).shape == (0, 3)
    assert len(ALL) == 18


WRONG = (True, False, math.nan, math.inf, -math.inf, 0, -1, -0.0, "1", "x", None, b"1", [1.0], 1j)
WRONG += (10**400, torch.tensor(1.0), np.ones(2))
PARAMETERS = [
    *((law, "std", {}) for name, law in laws.LAWS.items() if name != "Bernoulli"),
    (Gamma, "shape", {"std": 1.0}),
    (ChiSquare, "df", {"std": 1.0}),
    (Beta, "a", {"std": 1.0}),
    (Beta, "b", {"std": 1.0}),
    (Learned, "init", {}),
]


@pytest.mark.parametrize(("law", "name", "others"), PARAMETERS)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
def test_what_is_no_positive_number_is_refused(law, name, others, value):
    with pytest.raises(ValueError, match=r"> 0|> floor") as error:
        law(**{name: value}, **others)
    assert name in str(error.value)
    assert repr(value) in str(error.value)


def test_every_parameter_is_refused_somewhere():
    names = {
        (law.__name__, field.name)
        for law in laws.LAWS.values()
        for field in dataclasses.fields(law)
    }
    tested = {(law.__name__, name) for law, name, _ in PARAMETERS}
    assert names - tested == {("Bernoulli", "std"), ("Bernoulli", "keep")}  # below


@pytest.mark.parametrize("value", [*WRONG, 1, 1.0, 1.5], ids=lambda value: repr(value)[:20])
def test_bernoulli_refuses_what_is_no_probability_to_keep(value):
    with pytest.raises(ValueError, match="0 < keep < 1") as error:
        Bernoulli(keep=value)
    assert repr(value) in str(error.value)


def test_bernoulli_has_no_std_to_give():
    for arguments in ((0.5,), (0.5, 0.5)):
        with pytest.raises(TypeError):
            Bernoulli(*arguments)
    with pytest.raises(TypeError):
        Bernoulli()
    with pytest.raises(TypeError):
        Bernoulli(std=0.5, keep=0.5)


@pytest.mark.parametrize("floor", [True, False, math.nan, math.inf, -0.1, "0", None, 0.5, 0.6, [0]])
def test_learned_refuses_a_floor_that_is_negative_or_not_below_the_start(floor):
    with pytest.raises(ValueError, match="floor") as error:
        Learned(0.5, floor=floor)
    assert repr(floor) in str(error.value)


@pytest.mark.parametrize("per", ["layers", "", None, 1, "Unit", ["unit"]])
def test_learned_refuses_an_unknown_unit_of_sharing(per):
    with pytest.raises(ValueError, match="weight") as error:
        Learned(0.5, per=per)
    assert repr(per) in str(error.value)


@pytest.mark.parametrize("floor", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("above", [1e-6, 0.5, 40.0])
def test_learned_starts_at_its_start(floor, above):
    learned = Learned(floor + above, floor=floor)
    rho = torch.tensor(learned.initial(), dtype=torch.float64)
    eager = floor + torch.log1p(torch.exp(rho))
    expected = torch.tensor(floor + above, dtype=torch.float64)
    assert_close_to_float64(learned.std(rho), eager, expected)
    assert Gaussian(learned).variance == learned.init**2


def test_learned_never_falls_below_its_floor():
    std = Learned(0.5, floor=0.1).std(torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4]))
    assert (std >= 0.1).all()
    assert std.isfinite().all()
    assert (std.diff() >= 0).all()


def test_a_learned_std_is_given_at_the_draw_and_only_then():
    law = Laplace(Learned(0.5))
    std = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    draws = law.sample((4, 3), std=std, generator=seed())
    assert_bit_equal(draws, std * Laplace(1).sample((4, 3), generator=seed()))
    (grad,) = torch.autograd.grad(draws.sum(), std)
    assert (grad != 0).all()
    with pytest.raises(ValueError, match="std"):
        law.sample((4, 3))
    with pytest.raises(ValueError, match="std"):
        law.factor((4, 3))
    for plain in (Laplace(0.5), Bernoulli(keep=0.5)):
        with pytest.raises(ValueError, match="std"):
            plain.sample((4, 3), std=std)
        with pytest.raises(ValueError, match="std"):
            plain.factor((4, 3), std=std)


@pytest.mark.parametrize("law", [*ALL, Gaussian(Learned(0.5, floor=0.1))], ids=str)
def test_laws_are_frozen_values(law):
    fields = {field.name: getattr(law, field.name) for field in dataclasses.fields(law)}
    if isinstance(law, Bernoulli):
        del fields["std"]
    twin = type(law)(**fields)
    assert twin == law
    assert hash(twin) == hash(law)
    assert twin is not law
    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(law, name, 1.0)
    assert repr(law) == str(law)


def test_laws_of_other_names_or_numbers_differ():
    assert len(ALL) == 18
    assert len({*ALL}) == 18
    assert Gamma(0.5) == Gamma(0.5, shape=2)
    assert Gamma(0.5) != ChiSquare(0.5, df=4)  # the same distribution, not the same words
    assert Gaussian(1) == Gaussian(1.0) == Gaussian(np.float64(1))
    assert str(Gaussian(np.float64(1))) == str(Gaussian(1))
    assert Gaussian(Learned(0.5)) != Gaussian(0.5)


def test_bernoulli_refuses_a_learned_probability():
    with pytest.raises(ValueError, match=r"keep cannot be learned.*no gradient"):
        Bernoulli(keep=laws.Learned(0.5))
