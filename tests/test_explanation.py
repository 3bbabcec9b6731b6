"""Looking into models: which noise acts where, how it is drawn, by which path, at what cost."""

import pytest
import torch
from torch import nn

from cases import ROWS, kinds_of, make
from models import Tagger
from noisin import (
    GRU,
    LSTM,
    RNN,
    Embedding,
    Linear,
    Recurrence,
    explain,
    predict,
    regularize,
    sampling,
)
from noisin.draws import Scaled
from noisin.fused import compiled

T, B, F, H = 4, 3, 3, 5
HEADS = ["module", "layer", "place", "term", "hold", "estimate", "memory", "path", "why"]


def shown(model):
    return [(row.module, row.layer, row.place, row.path) for row in explain(model)]


@pytest.mark.parametrize("site", ["input", "between", "output"])
def test_torchs_kernel_runs_where_nothing_acts_inside(site):
    """And the row stands at the layer that reads what is perturbed, or shows it."""
    rows = explain(LSTM(F, H, 2, noise=f"{site} * Gaussian(0.5)"))
    assert [row.path for row in rows] == ["torch", "torch"]
    place = "between_l0" if site == "between" else site
    found = [(row.layer, row.place, row.term) for row in rows if row.term]
    assert found == [(0 if site == "input" else 1, place, f"{site} * Gaussian(0.5)")]


INSIDE = [
    *("hidden + Gaussian(0.5)", "recurrent + Gaussian(0.5)", "candidate * Gaussian(0.5)"),
    *("weight_hh + Gaussian(0.5)", "weight_ih * Gaussian(0.5) @ cumulative", "Zoneout(hidden=0.5)"),
    *("weight_hh * Gaussian(0.5) @ preactivation", "recurrent * Gaussian(0.5) @ untied"),
]


@pytest.mark.parametrize("term", INSIDE)
def test_another_path_than_torchs_runs_in_the_layers_where_a_term_acts_inside(term):
    path = "reference" if "weight_hh" in term and "@ preactivation" in term else "cpu"
    site = "zoneout_hidden" if "Zoneout" in term else term.split()[0]
    if site != "zoneout_hidden":
        term = term.replace(site, f"{site}[1]", 1)
    rows = explain(LSTM(F, H, 3, bidirectional=True, noise=term))
    chosen = {row.layer: row.path for row in rows}
    if site == "zoneout_hidden":
        assert chosen == dict.fromkeys(range(3), path)
    else:
        assert chosen == {0: "torch", 1: path, 2: "torch"}
        assert [row.place for row in rows] == ["", f"{site}_l1", f"{site}_l1_reverse", ""]
        assert [row.term for row in rows] == ["", term, term, ""]
    assert all(site in row.why for row in rows if row.path == path)


@pytest.mark.parametrize("term", ["input * Gaussian(0.5)", "weight_hh * Gaussian(0.5) @ sequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gru_is_fused_where_that_is_faster(term, dtype):
    (row,) = explain(GRU(F, H, noise=term, dtype=dtype))
    assert row.path == ("cpu" if compiled.serves(dtype) else "torch")
    assert row.path == "torch" or "faster than torch's GRU" in row.why
    assert {row.path for row in explain(GRU(F, H, dtype=dtype))} == {"torch"}


def test_under_autocast_the_path_is_that_of_its_type():
    layer = LSTM(F, H, noise="hidden * Gaussian(0.5)")
    with torch.autocast("cpu", torch.bfloat16):
        assert [row.path for row in explain(layer)] == ["reference"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_plain_loop_runs_in_small_types(dtype):
    (row,) = explain(LSTM(F, H, noise="hidden * Gaussian(0.5)", dtype=dtype))
    assert row.path == "reference"
    assert str(dtype) in row.why


def test_noise_that_is_held_in_the_weights_leaves_torchs_kernel():
    (row,) = explain(LSTM(F, H, noise="weight_hh * Bernoulli(keep=0.5) @ sequence"))
    assert (row.path, row.hold, row.place) == ("torch", "sequence", "weight_hh_l0")


def test_how_a_term_is_drawn_is_said():
    noise = "input * Gaussian(1) @ preactivation & hidden + Gaussian(1) @ cumulative"
    first, second = explain(RNN(F, H, noise=noise))
    assert (first.place, first.hold, first.estimate) == ("input", "step", "preactivation")
    assert (second.place, second.hold, second.estimate) == ("hidden_l0", "cumulative", "sample")


def test_the_sigmoid_has_no_kernel():
    (row,) = explain(RNN(F, H, nonlinearity="sigmoid"))
    assert row.path == "cpu"
    assert "sigmoid" in row.why.lower()


def test_without_noise_it_is_torch():
    (row,) = explain(LSTM(F, H))
    assert (row.module, row.layer, row.path, row.memory) == ("", 0, "torch", 0)
    assert (row.place, row.term, row.hold, row.estimate) == ("", "", "", "")
    assert row.why


def test_layers_are_named_as_in_the_model_and_torchs_own_are_left_out():
    model = nn.Sequential(
        nn.Linear(2, F),
        nn.ModuleDict({"a": LSTM(F, H, 2, noise="hidden * Gaussian(1)"), "b": nn.LSTM(F, H)}),
        GRU(F, H),
    )
    expected = [("1.a", 0, "hidden_l0", "cpu"), ("1.a", 1, "hidden_l1", "cpu")]
    assert shown(model) == [*expected, ("2", 0, "", "torch")]
    assert explain(nn.LSTM(F, H)) == ()


def test_layers_around_the_recurrence_are_explained_too():
    model = regularize(Tagger(), "row * Bernoulli(keep=0.5) @ sequence", "words")
    regularize(model, "input * Gaussian(1)", "read")
    model.cell = Recurrence(nn.GRUCell(F, H), F, H, noise="hidden * Gaussian(1)")
    expected = [("words", 0, "row", "torch"), ("read", 0, "input", "torch")]
    assert shown(model) == [*expected, ("cell", 0, "hidden", "reference")]


@pytest.mark.parametrize("noise", ["input * Gaussian(1) & {}", "{} & input * Gaussian(1)"])
def test_one_path_runs_a_layer(noise):
    """Whatever the order in which its terms are named."""
    rows = explain(Linear(F, H, noise=noise.format("weight * Gaussian(1)")))
    assert [row.path for row in rows] == ["reference", "reference"]
    assert len({row.why for row in rows}) == 1


def size_of(drawn):
    """Return the bytes of an entry; a learned spread in it is a parameter, and no draw."""
    source = drawn.source if isinstance(drawn, Scaled) else drawn
    return source.numel() * source.element_size()


@pytest.mark.parametrize("row", ROWS)
def test_memory_is_that_of_the_draws(row):
    """Of a call of T steps and B sequences, place by place and term by term."""
    layer = make(kinds_of(row)[0], F, H, num_layers=2, bidirectional=True, noise=row)
    draws = layer.draw(torch.zeros(T, B, F))
    expected = {place: [size_of(one) for one in entries] for place, entries in draws.items()}
    if "cumulative" in row and "weight" in row:  # what adds up is kept, a matrix a step
        expected = {
            place: [T * getattr(layer, place).numel() * 4 for _ in entries]
            for place, entries in draws.items()
        }
    found = {place: [] for place in expected}
    for one in explain(layer, time=T, batch=B):
        found.setdefault(one.place, []).append(one.memory)
    assert {place: sizes for place, sizes in found.items() if place} == expected
    assert sum(map(sum, expected.values())) > 0


OTHERS = [
    (Linear(F, H, noise="weight * Gaussian(1) & input + Gaussian(1) @ sequence"), (T, B, F)),
    (Linear(F, H, noise="weight * Gaussian(1) @ preactivation", time_dim=1), (B, T, F)),
    (Linear(F, H, noise="weight * Gaussian(1)", time_dim=1), (B, T, F)),
    (Embedding(7, F, noise="row * Gaussian(1) & row * Gaussian(1) @ sequence"), (T, B)),
    (Recurrence(nn.RNNCell(F, H), F, H, noise="input * Gaussian(1) & hidden * Gaussian(1)"), None),
]


@pytest.mark.parametrize(("layer", "size"), OTHERS, ids=str)
def test_memory_of_other_layers_is_that_of_their_draws(layer, size):
    x = torch.zeros(size or (T, B, F))
    draws = layer.draw(x.long() if isinstance(layer, Embedding) else x)
    expected = [(place, size_of(one)) for place, found in draws.items() for one in found]
    found = [(row.place, row.memory) for row in explain(layer, time=T, batch=B)]
    assert sorted(found) == sorted(expected)


def test_the_example_of_memory_is_35_steps_of_20_sequences():
    (row,) = explain(LSTM(F, H, noise="hidden * Gaussian(1)"))
    assert row.memory == 35 * 20 * H * 4


@pytest.mark.parametrize("size", [{"time": 0}, {"batch": 0}, {"time": -1}])
def test_a_call_of_no_size_is_refused(size):
    ((name, value),) = size.items()
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got {value}"):
        explain(LSTM(F, H), **size)


def test_an_explanation_is_printed_in_words():
    noise = "hidden * Gaussian(0.5) & hidden + Gaussian(0.1)"
    rows = explain(nn.ModuleDict({"decoder": LSTM(F, H, noise=noise)}))
    assert [row.term for row in rows] == noise.split(" & ")
    for row in rows:
        for word in ("decoder", "layer 0", "hidden_l0", row.term, "cpu", row.why):
            assert word in str(row)


def test_explanations_are_printed_as_a_table():
    model = nn.ModuleDict({"decoder": LSTM(F, H, 2, noise="hidden[1] * Gaussian(0.5)")})
    model["other"] = GRU(F, H)
    rows = explain(model)
    head, *lines = str(rows).splitlines()
    assert head.split() == HEADS
    assert len(lines) == len(rows) == 3
    starts = [head.index(word) for word in HEADS]
    for row, line in zip(rows, lines, strict=True):
        ends = [*starts[1:], None]
        cells = [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        expected = [row.module, str(row.layer), row.place or "-", row.term or "no noise"]
        expected += [row.hold or "-", row.estimate or "-"]
        assert cells[:6] == expected
        assert cells[7:] == [row.path, row.why]
    assert [line[starts[6] :].split("  ")[0] for line in lines] == ["0 B", "13.7 KiB", "0 B"]


def test_the_model_itself_has_a_name_in_the_table():
    assert "(model)" in str(explain(LSTM(F, H)))
    assert str(explain(nn.ReLU())).split() == HEADS


def test_it_says_what_evaluation_would_not():
    """The noise is that of training, whatever the mode the model is in."""
    layer = LSTM(F, H, noise="hidden * Gaussian(1)")
    assert explain(layer.eval()) == explain(layer.train())


def test_torchs_dropout_is_among_the_terms():
    first, second = explain(LSTM(F, H, 2, dropout=0.25, noise="input * Gaussian(1)"))
    assert [first.place, second.place] == ["input", "between_l0"]
    assert second.term == "between * Bernoulli(keep=0.75)"


@pytest.mark.parametrize("kind", [GRU, RNN, LSTM])
def test_without_noise_torch_drops_out_by_itself(kind):
    layer = kind(F, H, 2, dropout=0.25)
    assert {(row.path, row.why) for row in explain(layer)} == {
        ("torch", "torch's own layers, dropout= between them included")
    }
    with sampling(layer):
        assert {row.path for row in explain(layer)} == {"torch" if kind is LSTM else "cpu"}


def test_a_layer_without_noise_may_drop_everything():
    """torch allows it, and so does a layer of ours in a call."""
    assert [row.path for row in explain(LSTM(F, H, 2, dropout=1.0))] == ["torch", "torch"]


def test_looking_draws_nothing_and_changes_nothing():
    model = regularize(Tagger(), "hidden * Gaussian(Learned(0.5)) & weight_hh + Gaussian(0.5)")
    before = torch.get_rng_state()
    keys = list(model.state_dict())
    explain(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(model.state_dict()) == keys


def test_a_strength_is_in_what_is_shown():
    """Of layers that are no stack, too."""
    half = Linear(F, H, noise="input * Gaussian(0.5)")
    half.strength = 0.5
    assert [row.term for row in explain(half)] == ["input * Gaussian(0.25)"]
    off = Linear(F, H, noise="weight * Gaussian(0.5)")
    off.strength = 0
    assert [(row.term, row.path) for row in explain(off)] == [("", "torch")]
    assert not off.is_noisy
    with pytest.raises(ValueError, match="draws need noise"):
        predict(off, torch.ones(2, F), samples=2)
    cell = Recurrence(nn.GRUCell(F, H), F, H, noise="hidden * Gaussian(0.5)")
    cell.strength = 0.5
    assert repr(cell).startswith(
        "Recurrence(\n  3, 5, noise=hidden * Gaussian(0.5), strength=0.5\n"
    )
