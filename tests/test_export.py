"""What a stripped model can do that only torch's own classes can: export, ONNX, quantization."""

import io

import pytest
import torch
from torch import nn

from cases import make
from conftest import assert_bit_equal, assert_close_to_float64
from models import IDS, Tagger
from noisin import regularize, strip

KINDS = ("LSTM", "GRU", "tanh", "relu")
NOISE = "hidden * Gaussian(Learned(0.5)) & weight_hh + Gaussian(0.5) & between * Gaussian(0.5)"
OPTIONS = {"num_layers": 2, "bidirectional": True}

# torch's own: its exporters warn of the list of weights that each of its layers holds and of a
# class of its own that it copies; its quantization of its end, and of the tensors it makes
export_warns = pytest.mark.filterwarnings(
    r"ignore:The tensor attributes self\.(rnn\.)?_flat_weights",
    "ignore:.isinstance.treespec, LeafSpec.",
)
exports_layers = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="older exporters refuse torch's own recurrent layers unless a model is around them",
)
quantization_warns = pytest.mark.filterwarnings(
    r"ignore:torch\.ao\.quantization is deprecated",
    r"ignore:torch\.quantize_per_tensor",
    "ignore:TypedStorage is deprecated",
)


def stripped(kind, **options):
    """Return a model that was noisy, trained a step, and stripped; and torch's of its weights."""
    model = regularize(Tagger(kind, **options), NOISE)
    regularize(model, "weight + Gaussian(0.5)", where="read")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS).square().mean().backward()
    optimizer.step()
    plain, theirs = strip(model).eval(), Tagger(kind, **options).eval()
    theirs.load_state_dict(plain.state_dict())
    assert not torch.equal(plain(IDS), Tagger(kind, **options).eval()(IDS))
    return plain, theirs


@export_warns
@pytest.mark.parametrize("kind", KINDS)
def test_torch_export(kind):
    plain, theirs = stripped(kind, **OPTIONS)
    program = torch.export.export(plain, (IDS,))
    assert_bit_equal(program.module()(IDS), theirs(IDS))
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    assert_bit_equal(torch.export.load(saved).module()(IDS), theirs(IDS))
    assert program.graph_module.code == torch.export.export(theirs, (IDS,)).graph_module.code


@export_warns
@exports_layers
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_sequences_stays_open_and_that_of_steps_does_not(kind):
    """As the guide to deployment says; torch's recurrent layers are traced for one length."""
    layer, x = make(kind, 3, 5, package=nn, num_layers=2).eval(), torch.randn(7, 2, 3)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: dynamic},)).module()
    for count in (1, 2, 5):
        other = torch.randn(7, count, 3)
        assert_bit_equal(program(other), layer(other))
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        torch.export.export(layer, (x,), dynamic_shapes=({0: dynamic},))


@export_warns
@exports_layers
def test_a_state_of_one_tensor_given_twice_is_taken_for_one_input():
    """torch's own, silently; the guide to deployment warns of it."""
    layer, x, zeros = nn.LSTM(3, 5).eval(), torch.randn(7, 2, 3), torch.zeros(1, 2, 5)
    h, c = torch.randn(2, 1, 2, 5)
    once = torch.export.export(layer, (x, (zeros, zeros))).module()
    assert_bit_equal(once(x, (h, c)), layer(x, (c, c)))
    apart = torch.export.export(layer, (x, (zeros, zeros.clone()))).module()
    assert_bit_equal(apart(x, (h, c)), layer(x, (h, c)))


@export_warns
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_onnx(kind, tmp_path):
    pytest.importorskip("onnxscript", reason="torch's exporter writes ONNX through it")
    onnxruntime = pytest.importorskip("onnxruntime", reason="what was exported is run by it")
    plain, theirs = stripped(kind, **OPTIONS)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(plain, (IDS,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (words,) = (one.name for one in session.get_inputs())
    found = torch.from_numpy(session.run(None, {words: IDS.numpy()})[0])
    with torch.no_grad():
        assert_close_to_float64(found, theirs(IDS), theirs.double()(IDS))


@quantization_warns
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_dynamic_quantization(kind):
    """To int8 it is what quantizing torch's layers of the same weights gives, bit for bit."""
    plain, theirs = stripped(kind, **OPTIONS)
    kinds = {nn.LSTM, nn.GRU, nn.Linear}
    quantized, expected = (
        torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)
        for model in (plain, theirs)
    )
    names = [type(part).__module__ for part in (quantized.rnn, quantized.read)]
    assert all("quantized.dynamic" in name for name in names)
    assert_bit_equal(quantized(IDS), expected(IDS))
    assert not torch.equal(quantized(IDS), theirs(IDS))
    saved = io.BytesIO()
    torch.save(quantized.state_dict(), saved)
    saved.seek(0)
    expected.load_state_dict(torch.load(saved, weights_only=False))
    assert_bit_equal(expected(IDS), quantized(IDS))


@quantization_warns
def test_quantization_looks_at_exact_types():
    """Which is why it goes through strip: a layer of ours would be left as it is."""
    model = regularize(Tagger(), NOISE.partition(" & between")[0]).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, dtype=torch.qint8)
    assert type(quantized.rnn) is type(model.rnn)


def seen(model):
    return model.words(IDS).detach()


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_is_torchs(kind, tmp_path):
    plain, theirs = stripped(kind, **OPTIONS)
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    layer = make(kind, 3, 5, package=nn, **OPTIONS)
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    own = {k.removeprefix("rnn."): v for k, v in state.items() if k.startswith("rnn.")}
    layer.load_state_dict(own)
    assert_bit_equal(layer(seen(plain)), theirs.rnn(seen(theirs)))
