"""Surgery on layers of the user's own: subclasses of torch's."""

import copy
import pickle

import pytest
import torch
from torch import nn

import noisin
from cases import seeded
from conftest import assert_bit_equal
from models import Deaf, Renamed, Scaled, Shifted
from noisin import explain, predict, regularize, sampling, strip

NOISE = "hidden * Gaussian(0.5)"
CLASSES = (Scaled, Shifted, Renamed)
X = seeded(4, 2, 3)


def regularized(kind, noise=NOISE):
    torch.manual_seed(0)
    return regularize(kind(3, 5), noise)


def is_noisy(layer):
    return not torch.equal(layer(X)[0], layer(X)[0])


@pytest.mark.parametrize("kind", CLASSES)
def test_noise_acts_in_a_layer_of_the_users_own(kind):
    layer = regularized(kind)
    assert isinstance(layer, kind)
    assert isinstance(layer, noisin.LSTM)
    assert type(layer).__name__ == kind.__name__
    assert is_noisy(layer)
    assert [(row.place, row.path) for row in explain(layer)] == [("hidden_l0", "cpu")]
    with sampling(layer.eval()):
        assert is_noisy(layer)
    torch.manual_seed(0)
    assert_bit_equal(layer(X), kind(3, 5)(X))


@pytest.mark.parametrize("kind", [Scaled, Shifted])
def test_noise_acts_behind_the_users_code(kind):
    """What torch's forward gives is noisy; what the user makes of it is not changed."""
    layer, ours = regularized(kind), noisin.LSTM(3, 5, noise=NOISE)
    ours.load_state_dict(layer.state_dict())
    torch.manual_seed(1)
    output, final = layer(X)
    torch.manual_seed(1)
    noisy, state = ours(X)
    assert_bit_equal((output, final), (2 * noisy + (kind is Shifted), state))


@pytest.mark.parametrize("kind", CLASSES)
def test_it_is_copied_and_pickled_as_it_is(kind):
    layer = regularized(kind)
    layer.scale = 3.0
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert type(twin) is type(layer)
        assert (str(twin.noise), twin.scale) == (str(layer.noise), 3.0)
        assert list(twin.state_dict()) == list(layer.state_dict())
        results = []
        for one in (layer, twin):
            torch.manual_seed(1)
            results.append(one(X))
        assert_bit_equal(*results)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("noise", [NOISE, "hidden * Gaussian(Learned(0.5))"])
def test_strip_gives_the_class_back(kind, noise):
    torch.manual_seed(0)
    made = kind(3, 5)
    layer = regularized(kind, noise)
    layer(X)
    plain = strip(layer)
    assert type(plain) is kind
    assert vars(plain).keys() == vars(made).keys()
    assert_bit_equal(plain(X), made(X))
    assert_bit_equal(layer.eval()(X), made(X))
    assert type(pickle.loads(pickle.dumps(plain))) is kind


def test_two_of_a_class_share_one_class():
    first, second = regularized(Scaled), regularized(Scaled)
    assert type(first) is type(second)
    assert type(regularize(first, None)) is type(second)


def test_a_layer_that_never_calls_torchs_is_refused_in_training():
    layer = regularized(Deaf)
    with pytest.raises(RuntimeError, match=r"Deaf.forward must call super\(\).forward"):
        layer(X)
    assert_bit_equal(layer.eval()(X)[0], X @ layer.weight_ih_l0.T)
    regularize(layer.train(), None)
    assert_bit_equal(layer(X)[0], X @ layer.weight_ih_l0.T)


def test_a_layer_that_never_calls_torchs_is_refused_while_sampling():
    """Or an average over draws would be one of K equal numbers."""
    layer = regularized(Deaf).eval()
    with pytest.raises(RuntimeError, match="Deaf"), sampling(layer):
        layer(X)
    with pytest.raises(RuntimeError, match="Deaf"):
        predict(layer, X, samples=2, link=lambda result: result[0])


def test_a_layer_of_ours_with_a_class_of_its_own_keeps_it():
    kind = type("Mine", (noisin.LSTM,), {})
    layer = kind(3, 5)
    regularize(layer, NOISE)
    assert type(layer) is kind
    assert is_noisy(layer)


def test_a_linear_of_the_users_own():
    class Tanh(nn.Linear):
        def forward(self, input):
            return super().forward(input).tanh()

    model = nn.Sequential(Tanh(3, 5))
    expected = model(X)
    regularize(model, "input * Gaussian(0.5)", where="0", time_dim=1)
    assert not torch.equal(model(X), model(X))
    assert_bit_equal(model.eval()(X), expected)
    plain = strip(model)
    assert type(plain[0]) is Tanh
    assert "time_dim" not in vars(plain[0])


class Carrying(nn.LSTM):
    """Keeps its state between calls, under a name of noisin."""

    _state = None

    def forward(self, x):
        output, self._state = super().forward(x, self._state)
        return output


class Halved(nn.Linear):
    """Has a number of its own under a name of noisin."""

    def __init__(self, *args):
        super().__init__(*args)
        self.strength = 0.5

    def forward(self, x):
        return super().forward(x) * self.strength


@pytest.mark.parametrize(
    ("layer", "name"), [(Carrying(3, 5), "_state"), (Halved(3, 5), "strength")], ids=str
)
def test_names_of_noisin_must_be_free(layer, name):
    before = type(layer)
    with pytest.raises(ValueError, match=rf"must be free.* in {before.__name__}; got {name}"):
        regularize(layer, None, where="")
    assert type(layer) is before


def test_names_in_a_layer_of_torch_itself_must_be_free():
    layer = nn.Linear(3, 5)
    layer.time_dim = 2
    with pytest.raises(ValueError, match="in Linear; got time_dim"):
        regularize(layer, None, where="")
    assert layer.time_dim == 2


def test_a_lazy_layer_must_have_seen_an_input():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"^0: a lazy layer must have seen an input"):
        regularize(model, "input * Gaussian(0.5)", where="0")
    assert model(torch.ones(2, 3)).shape == (2, 4)
    regularize(model, "input * Gaussian(0.5)", where="0")
    assert not torch.equal(model(torch.ones(2, 3)), model(torch.ones(2, 3)))
