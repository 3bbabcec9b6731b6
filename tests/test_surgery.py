"""Into noisy layers and back: in place, nothing lost, bit for bit, all of it or nothing."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import noisin
from cases import ROWS, cases, kinds_of, make, seeded
from conftest import assert_bit_equal
from models import HIDDEN, IDS, Tagger, kept, kinds, state
from noisin import Gaussian, GaussianHead, Learned, Recurrence, at, regularize, sampling, strip
from processes import HANGS
from test_layers import DROPOUTS, run

NOISE = "hidden * Gaussian(0.5)"
LEARNED = at.hidden * Gaussian(Learned(0.5, floor=0.1)) & at.input + Gaussian(Learned(0.3))
PLAIN = [row for row in ROWS if "Zoneout" not in row]
PAIRS = (("LSTM", "LSTM"), ("GRU", "GRU"), ("tanh", "RNN"), ("relu", "RNN"))


def is_noisy(model, *inputs):
    return not torch.equal(model(*inputs), model(*inputs))


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_a_model_stays_itself_but_for_its_recurrent_layers(kind, name):
    model = Tagger(kind, num_layers=2)
    before, classes = kept(model), kinds(model)
    assert regularize(model, NOISE) is model
    assert kept(model) == before
    assert kinds(model) == classes | {"rnn": getattr(noisin, name)}
    assert str(model.rnn.noise) == "hidden * Gaussian(0.5)"
    assert is_noisy(model, IDS)
    assert not is_noisy(model.eval(), IDS)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_the_model_may_be_the_layer(kind, name):
    layer = make(kind, 3, 5, package=nn, dtype=torch.float64)
    weights = [id(p) for p in layer.parameters()]
    assert regularize(layer, LEARNED) is layer
    assert type(layer) is getattr(noisin, name)
    assert [id(p) for p in layer.parameters()][: len(weights)] == weights
    assert set(layer.spreads()) == {"rho_hidden_l0", "rho_input"}
    assert all(p.dtype == torch.float64 for p in layer.parameters())
    assert strip(layer, inplace=True) is layer
    assert type(layer) is getattr(nn, name)
    assert [id(p) for p in layer.parameters()] == weights


@settings(max_examples=60)
@given(cases(dropouts=DROPOUTS[:2]))
def test_in_evaluation_a_regularized_layer_computes_what_it_did(case):
    """Outputs, states and gradients, in every layout; and stripped again, in training too."""
    expected = run(case.theirs().eval(), case)
    layer = regularize(case.theirs(), LEARNED)
    assert_bit_equal(run(layer.eval(), case), expected)
    plain = strip(layer)
    assert_bit_equal(run(plain, case), expected)
    assert_bit_equal(run(plain.train(), case), run(case.theirs(), case))


@pytest.mark.parametrize("row", PLAIN)
def test_every_noise_goes_in_and_out_without_a_trace(row):
    kind = kinds_of(row)[-1].replace("sigmoid", "tanh")
    model = Tagger(kind, num_layers=2).eval()
    expected, attributes = model(IDS), set(vars(model.rnn))
    assert_bit_equal(regularize(model, row)(IDS), expected)
    plain = strip(model)
    assert_bit_equal(plain(IDS), expected)
    assert_bit_equal(model(IDS), expected)
    assert set(vars(plain.rnn)) == attributes
    assert list(plain.state_dict()) == list(Tagger(kind, num_layers=2).state_dict())


def test_there_are_forms_to_try():
    assert len(PLAIN) >= 30


def test_zoneout_is_what_evaluation_keeps():
    model = Tagger().eval()
    expected = model(IDS)
    regularize(model, "Zoneout(hidden=0.5)")
    assert not torch.equal(model(IDS), expected)


def test_mode_dtype_gradients_and_frozen_weights_stay():
    model = Tagger().double()
    model.rnn.eval()
    model.rnn.weight_hh_l0.requires_grad_(False)
    model(IDS).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    regularize(model, NOISE, where="rnn")
    regularize(model, "weight * Gaussian(1)", where="read")
    assert (model.training, model.rnn.training, model.read.training) == (True, False, True)
    assert {name: p.grad for name, p in model.named_parameters()} == gradients
    assert not model.rnn.weight_hh_l0.requires_grad
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_spreads_stand_where_the_weights_stand():
    layer = regularize(nn.LSTM(3, 5, device="meta", dtype=torch.bfloat16), LEARNED)
    assert len(list(layer.parameters())) == 4 + 2
    found = {(p.device.type, p.dtype) for p in layer.parameters()}
    assert found == {("meta", torch.bfloat16)}


def test_hooks_fire_before_and_after():
    model, seen = Tagger(), []
    model.rnn.register_forward_hook(lambda *_: seen.append("forward"))
    model.rnn.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.rnn.weight_hh_l0.register_hook(lambda _: seen.append("gradient"))
    expected = ["before", "forward", "gradient"]
    for changed in (regularize(model, NOISE), strip(model, inplace=True)):
        seen.clear()
        changed(IDS).sum().backward()
        assert seen == expected


def test_an_optimizer_made_before_trains_on():
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.rnn.weight_hh_l0.detach().clone()
    regularize(model, NOISE)(IDS).square().sum().backward()
    optimizer.step()
    assert (model.rnn.weight_hh_l0 != before).all()


def test_a_module_in_two_places_stays_one():
    shared = nn.LSTM(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared]), "c": nn.LSTM(3, 3)})
    regularize(model, NOISE, where="b.*")
    assert model["a"] is model["b"][0] is shared
    assert kinds(model)["a"] is noisin.LSTM
    assert kinds(model)["c"] is nn.LSTM
    plain = strip(model)
    assert plain["a"] is plain["b"][0] is not shared
    assert kinds(plain)["b.0"] is kinds(plain)["a"] is nn.LSTM


def test_tied_weights_stay_tied():
    model = Tagger(tied=True)
    regularize(model, "row * Bernoulli(keep=0.5) @ sequence", where="words")
    regularize(model, "weight * Gaussian(0.5)", where="read")
    assert model.read.weight is model.words.weight
    assert is_noisy(model, IDS)
    plain = strip(model)
    assert plain.read.weight is plain.words.weight is not model.words.weight
    assert kinds(plain) == kinds(Tagger(tied=True))
    assert_bit_equal(plain(IDS), Tagger(tied=True)(IDS))


def whole():
    """Return a model with a layer of each kind, some below others."""
    encoder = nn.ModuleDict({"words": nn.Embedding(7, 3), "rnn": nn.GRU(3, 5)})
    decoder = nn.ModuleDict({"rnn": nn.LSTM(5, 5, 2), "deep": nn.ModuleList([nn.RNN(5, 5)])})
    parts = {"encoder": encoder, "decoder": decoder, "read": nn.Linear(5, 7), "norm": nn.ReLU()}
    return nn.ModuleDict(parts)


RECURRENT = ["decoder.deep.0", "decoder.rnn", "encoder.rnn"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, RECURRENT),
        ("*rnn", ["decoder.rnn", "encoder.rnn"]),
        ("decoder.*", ["decoder.deep.0", "decoder.rnn"]),
        (["decoder.deep.[0-9]", "read"], ["decoder.deep.0", "read"]),
        (("encoder.rnn", "encoder.*", "enc*"), ["encoder.rnn", "encoder.words"]),
        ("read", ["read"]),
        ("*", [*RECURRENT, "encoder.words", "read"]),
    ],
)
def test_where_names_the_layers(where, expected):
    model = regularize(whole(), None, where)
    found = [name for name, kind in kinds(model).items() if issubclass(kind, noisin.noisy.Noisy)]
    assert sorted(found) == sorted(expected)
    assert kinds(strip(model)) == kinds(whole())


def test_linear_and_embedding_act_where_they_are_named():
    model = regularize(Tagger(), "weight + Gaussian(0.5)", "read", time_dim=1)
    regularize(model, "row * Gaussian(0.5)", "words")
    assert kinds(model)["rnn"] is nn.LSTM
    assert (model.read.time_dim, model.words.time_dim) == (1, 0)
    assert model.read.draw(torch.zeros(4, 3, HIDDEN))["weight"][0].shape == (3,)
    assert is_noisy(model, IDS)
    assert_bit_equal(model.eval()(IDS), Tagger()(IDS))
    assert_bit_equal(strip(model).train()(IDS), Tagger()(IDS))


def test_options_of_an_embedding_are_kept():
    made = nn.Embedding(7, 3, padding_idx=1, max_norm=0.5, scale_grad_by_freq=True)
    layer = copy.deepcopy(made)
    regularize(layer, "row * Gaussian(0.5)", where="").eval()
    assert repr(layer).startswith(repr(made).removesuffix(")"))
    assert_bit_equal(layer(IDS), made(IDS))
    layer(IDS).sum().backward()
    assert (layer.weight.grad[1] == 0).all()


def test_a_layer_of_ours_gets_other_noise():
    layer = noisin.LSTM(3, 5, noise=LEARNED)
    assert regularize(layer, NOISE) is layer
    assert str(layer.noise) == "hidden * Gaussian(0.5)"
    assert layer.spreads() == {}
    regularize(layer, None)
    assert layer.noise is None
    assert_bit_equal(layer(seeded(4, 2, 3)), strip(layer)(seeded(4, 2, 3)))


@pytest.mark.parametrize(
    ("noise", "where", "named"),
    [
        ("between * Gaussian(1)", None, ["encoder.rnn", "num_layers=1", "between"]),
        ("hidden[1] * Gaussian(1)", None, ["encoder.rnn", "within 0 … 0", "hidden[1]"]),
        ("hidden * Gaussian(1) & Zoneout(cell=0.1)", None, ["encoder.rnn", "LSTM", "GRU"]),
        ("candidate * Gaussian(1)", None, ["decoder.deep.0", "Elman", "candidate"]),
        ("input * Gaussian(1)", "*", ["encoder.words", "row", "input * Gaussian(1.0)"]),
        ("hidden * Gaussian(1)", ["decoder.rnn", "read"], ["read", "weight", "hidden"]),
        (NOISE, ["decoder.rnn", "norm"], ["'norm'", "'decoder.rnn'", "'encoder.words'"]),
        (NOISE, "nothing.*", ["'nothing.*'", "'read'"]),
        (NOISE, "decoder", ["'decoder'"]),
        (NOISE, [], ["where"]),
        ("hiden * Gaussian(1)", None, ["hiden", "hidden"]),
    ],
)
def test_it_changes_all_layers_or_none(noise, where, named):
    model = regularize(whole(), LEARNED, where="decoder.rnn")
    before = state(model)
    with pytest.raises(ValueError, match=re.escape(named[0])) as error:
        regularize(model, noise, where)
    assert [word for word in named if word not in str(error.value)] == []
    assert state(model) == before
    regularize(model, NOISE)
    assert state(model) != before


@pytest.mark.parametrize("wrong", [Gaussian(1.0), at.hidden, 3])
def test_what_is_no_noise_changes_nothing(wrong):
    model = whole()
    before = state(model)
    with pytest.raises(TypeError, match="Gaussian"):
        regularize(model, wrong)
    assert state(model) == before


@pytest.mark.parametrize("model", [nn.Linear(3, 5), nn.Sequential(nn.LSTMCell(3, 5)), nn.ReLU()])
def test_a_model_without_recurrent_layers_is_refused(model):
    with pytest.raises(ValueError, match=f"where=.*got {type(model).__name__}"):
        regularize(model, NOISE)


def test_dropout_of_everything_leaves_nothing_to_be_noisy():
    """A noisy layer refuses it in each call; so it is refused at once."""
    model = nn.Sequential(nn.LSTM(3, 5, num_layers=2, dropout=1.0))
    before = state(model)
    with pytest.raises(ValueError, match="dropout"):
        regularize(model, NOISE)
    assert state(model) == before


@pytest.mark.parametrize("name", ["read", "rnn"])
def test_a_parametrized_layer_is_regularized(name):
    """torch gives such a layer a class of its own, which has the layer's forward."""
    model, weight = Tagger(), {"read": "weight", "rnn": "weight_hh_l0"}[name]
    nn.utils.parametrizations.weight_norm(model.get_submodule(name), weight)
    expected = model(IDS)
    regularize(model, {"read": "input * Gaussian(1)", "rnn": NOISE}[name], where=name)
    assert is_noisy(model, IDS)
    assert_bit_equal(model.eval()(IDS), expected)


def test_strip_returns_a_copy_and_leaves_the_model_noisy():
    model = regularize(Tagger(), LEARNED)
    before = state(model)
    plain = strip(model)
    assert plain is not model
    assert state(model) == before
    pairs = zip(plain.parameters(), Tagger().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in model.parameters()}
    assert is_noisy(model, IDS)


def test_strip_in_place_keeps_the_very_parameters():
    model = Tagger()
    before, classes = kept(model), kinds(model)
    assert strip(regularize(model, LEARNED), inplace=True) is model
    assert kept(model) == before
    assert kinds(model) == classes


def test_a_model_without_noise_is_copied_as_it_is():
    model = Tagger()
    plain = strip(model)
    assert plain is not model
    assert kinds(plain) == kinds(model)
    assert_bit_equal(plain(IDS), model(IDS))


def test_strip_ends_sampling():
    model = regularize(Tagger(), NOISE).eval()
    with sampling(model):
        plain = strip(model)
        assert is_noisy(model, IDS)
        assert not is_noisy(plain, IDS)
    assert "sampling" not in vars(plain.rnn)


def test_a_stripped_model_loads_where_noisin_is_not(tmp_path):
    """The whole model, saved as an object: no class, no attribute and no hook is ours."""
    parts = [nn.Embedding(7, 3), nn.GRU(3, 5, 2, bidirectional=True), nn.LSTM(10, 5), nn.RNN(5, 5)]
    model = nn.ModuleList([*parts, nn.Linear(5, 7)])
    regularize(model, LEARNED)
    regularize(model, "row * Gaussian(0.5)", where="0")
    regularize(model, "weight * Gaussian(0.5)", where="4")
    heads = nn.ModuleDict({"words": noisin.CategoricalHead(5, 7, noise="input * Gaussian(1)")})
    plain = strip(nn.ModuleList([model, heads]))
    x = plain[0][0](IDS)
    for layer in list(plain[0])[1:4]:
        x = layer(x)[0]
    path = tmp_path / "model.pt"
    torch.save((plain, IDS, plain[0][4](x), plain[1]["words"](x)), path)
    code = f"""
import sys, warnings
warnings.simplefilter("error")
for name in ("noisin", "jaxtyping", "beartype"):
    sys.modules[name] = None
import torch
loaded = torch.load({str(path)!r}, weights_only=False)
(model, heads), ids, expected, scores = loaded
x = model[0](ids)
for layer in list(model)[1:4]:
    x = layer(x)[0]
assert torch.equal(model[4](x), expected)
assert torch.equal(heads["words"](x), scores)
print(*(type(m).__module__ for m in (*model, heads["words"])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 6
    assert all(name.startswith("torch.nn.modules") for name in done.stdout.split())


@pytest.mark.parametrize("head", ["BernoulliHead", "CategoricalHead", "PoissonHead"])
def test_heads_become_linear(head):
    made = getattr(noisin, head)(5, 3, noise=at.input * Gaussian(Learned(0.5)), time_dim=1)
    plain = strip(made)
    assert type(plain) is nn.Linear
    assert set(vars(plain)) == set(vars(nn.Linear(5, 3)))
    assert_bit_equal(plain(seeded(4, 5)), made.eval()(seeded(4, 5)))


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        (GaussianHead(5, 3), "spread"),
        (noisin.RNN(3, 5, nonlinearity="sigmoid"), "sigmoid"),
        (noisin.LSTM(3, 5, noise="hidden * Gaussian(1) & Zoneout(cell=0.1)"), "cell=0.1"),
        (Recurrence(nn.GRUCell(3, 5), 3, 5), "GRUCell"),
        (type("Mine", (noisin.GRU,), {})(3, 5), "Mine"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_torch_cannot_express_is_refused_by_name(layer, rule, inplace):
    model = nn.ModuleDict({"first": noisin.LSTM(3, 5, noise=NOISE), "part": layer})
    before = state(model)
    with pytest.raises(ValueError, match=r"^part: ") as error:
        strip(model, inplace=inplace)
    assert rule in str(error.value)
    assert state(model) == before
    with pytest.raises(ValueError, match=r"^the model: "):
        strip(layer)
