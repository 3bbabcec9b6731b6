"""What does not fit a stack is refused in words before anything is read, on every path."""

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from cases import KINDS, make, seeded, zeros
from noisin import Recurrence
from noisin.functional import recur
from noisin.fused.given import Given, checked

T, B, F, H = 3, 2, 4, 5
PATHS = {
    "torch": None,
    "reference": None,
    "cpu": "hidden * Gaussian(0.5)",
    "moments": "hidden * Gaussian(0.5) @ moments",
    None: "weight_hh + Gaussian(0.1) @ sequence",
}


def given(kind, noise):
    """Return what a call takes, in float32."""
    layer = make(kind, F, H, noise=noise)
    x = seeded(T, B, F)
    weights = [[weight.detach() for weight in group] for group in layer.all_weights]
    return layer, x, weights, list(zeros(layer, x))


def called(layer, x, weights, state, path):
    draws = layer.draw(seeded(T, B, F)) if layer.noise is not None else None
    with torch.no_grad():
        return recur(
            layer.stack, weights, x, tuple(state), noise=layer.noise, draws=draws, path=path
        )


@pytest.fixture(autouse=True)
def as_for_users(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("features", [1, F - 1, F + 1, 100_000])
def test_input_of_another_size(kind, path, features):
    layer, _, weights, state = given(kind, PATHS[path])
    with pytest.raises(ValueError, match=rf"x must be \[T, B, {F}\], got \[3, 2, {features}\]"):
        called(layer, seeded(T, B, features), weights, state, path)


def test_input_without_a_batch():
    layer, _, weights, state = given("LSTM", None)
    with pytest.raises(ValueError, match=r"x must be \[T, B, 4\], got \[3, 4\]"):
        called(layer, seeded(T, F), weights, state, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("number", range(4))
def test_weights_cut_short(kind, path, number):
    """A bias of one number would broadcast, others would be read beyond their end."""
    layer, x, weights, state = given(kind, PATHS[path])
    weights[0][number] = weights[0][number][:1]
    with pytest.raises(ValueError, match=r"the weights of l0 must have shapes .*got"):
        called(layer, x, weights, state, path)


def test_groups_of_weights():
    layer, x, weights, state = given("GRU", None)
    with pytest.raises(ValueError, match=r"weights must have 1 groups, .*got 2"):
        called(layer, x, weights * 2, state, None)
    with pytest.raises(ValueError, match="the weights of l0 must have shapes"):
        called(layer, x, [weights[0][:3]], state, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_another_dtype(kind, path):
    layer, x, weights, state = given(kind, PATHS[path])
    with pytest.raises(ValueError, match=r"the state must be in x's torch\.float32, got .*float64"):
        called(layer, x, weights, [state[0].double(), *state[1:]], path)
    weights[0][1] = weights[0][1].double()
    with pytest.raises(ValueError, match=r"weights of l0 must be in x's torch\.float32, got"):
        called(layer, x, weights, state, path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "noise", ["hidden * Gaussian(0.5)", "weight_hh + Gaussian(1) @ cumulative"]
)
def test_a_layer_passes_it_on(kind, noise):
    layer, x, _, state = given(kind, noise)
    state = [one.double() for one in state]
    with pytest.raises(ValueError, match="the state must be in"):
        layer(x, tuple(state) if kind == "LSTM" else state[0])


def test_two_layers_both_ways_and_a_projection_fit():
    layer = make("LSTM", F, H, noise="hidden * Gaussian(0.5)", num_layers=2, bidirectional=True)
    output, _ = layer(seeded(T, B, F))
    assert output.shape == (T, B, 2 * H)
    narrow = make("LSTM", F, H, noise="hidden * Gaussian(0.5)", proj_size=2, bias=False)
    assert narrow(seeded(T, B, F))[0].shape == (T, B, 2)


@pytest.mark.parametrize("path", [None, "torch", "reference"])
def test_autocast_takes_what_it_casts(path):
    layer, x, weights, state = given("LSTM", None)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = called(layer, x, weights, state, path)
        output, _ = called(layer, x, weights, list(state), path)
        called(layer, output[..., :F], weights, list(state), path)


@pytest.mark.parametrize("path", [None, "reference"])
@pytest.mark.parametrize(
    "lengths",
    [
        *(torch.tensor([4.0, 2.5]), torch.tensor([True, True]), [4, 2]),
        *(torch.tensor([4, 2, 2]), torch.tensor([4, 0]), torch.tensor([5, 2])),
    ],
    ids=["fractions", "truth", "list", "many", "none", "long"],
)
def test_lengths_are_whole_numbers_of_steps(lengths, path):
    layer = make("LSTM", 3, 5, noise="hidden * Gaussian(0.5)")
    x = seeded(4, 2, 3)
    with pytest.raises(ValueError, match="lengths must be 2 whole numbers within 1 … 4"):
        recur(
            *(layer.stack, layer.all_weights, x, zeros(layer, x)),
            noise=layer.noise,
            draws=layer.draw(x),
            lengths=lengths,
            path=path,
        )


def test_lengths_of_no_sequences():
    layer = make("LSTM", 3, 5)
    x = seeded(4, 0, 3)
    lengths = torch.zeros(0, dtype=torch.int64)
    for path in ("reference", "cpu"):
        output, _ = recur(
            *(layer.stack, layer.all_weights, x, zeros(layer, x)), lengths=lengths, path=path
        )
        assert output.shape == (4, 0, 5)


@pytest.mark.parametrize("path", [None, "reference", "cpu"])
def test_a_sequence_has_a_step(path):
    layer = make("GRU", 3, 5)
    x = seeded(0, 2, 3)
    with pytest.raises(ValueError, match="at least one step"):
        recur(layer.stack, layer.all_weights, x, zeros(layer, x), path=path)


def test_what_is_no_cell_size_or_input_is_refused():
    cell = nn.GRUCell(3, 5)
    with pytest.raises(ValueError, match=r"cell must be a module .*, got 'cell'"):
        Recurrence("cell", 3, 5)
    with pytest.raises(ValueError, match="sizes must be numbers >= 1, got -3 and 'a'"):
        Recurrence(cell, -3, "a")
    packed = pack_padded_sequence(torch.ones(4, 2, 3), [4, 2])
    with pytest.raises(ValueError, match="got PackedSequence"):
        Recurrence(cell, 3, 5)(packed, torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("GRU", "weight_hr", (5, 5)),
        ("GRU", "c0", (3, 5)),
        ("GRU", "cell_kept", (4, 3, 5)),
        ("tanh", "weight_hr", (5, 5)),
        ("tanh", "candidate_factor", (4, 3, 5)),
    ],
)
def test_what_a_cell_does_not_read_is_refused(kind, name, shape):
    """A projected GRU was read, and written, beyond its memory."""
    layer, x = make(kind, 3, 5), seeded(4, 3, 3)
    mode, first = layer.stack.mode, zeros(layer, x)[0][0]
    given = Given(x, *layer.all_weights[0], None, first, *[None] * 12, "", mode, False)
    checked(given)
    with pytest.raises(ValueError, match=f"{name} is not for {mode}"):
        checked(given._replace(**{name: torch.ones(shape)}))
