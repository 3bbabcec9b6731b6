"""Looking into models: which noise acts in which layer, by which path."""

import pytest
from torch import nn

from noisin import GRU, LSTM, RNN, explain


def paths(model):
    return [(line.module, line.layer, line.path) for line in explain(model)]


@pytest.mark.parametrize("site", ["input", "between", "output"])
def test_torchs_kernel_runs_where_nothing_acts_inside(site):
    lines = explain(LSTM(3, 5, 2, noise=f"{site} * Gaussian(0.5)"))
    assert [line.path for line in lines] == ["torch", "torch"]
    terms = [(place, term) for line in lines for place, term in line.terms.items()]
    place = "between_l0" if site == "between" else site
    assert terms == [(place, f"{site} * Gaussian(0.5)")]


@pytest.mark.parametrize("site", ["hidden", "recurrent"])
def test_the_reference_runs_in_the_layers_where_a_term_acts_inside(site):
    lines = explain(GRU(3, 5, 3, bidirectional=True, noise=f"{site}[1] + Gaussian(0.5)"))
    assert [line.layer for line in lines] == [0, 1, 2]
    assert [line.path for line in lines] == ["torch", "reference", "torch"]
    term = f"{site}[1] + Gaussian(0.5)"
    assert lines[1].terms == {f"{site}_l1": term, f"{site}_l1_reverse": term}
    assert lines[0].terms == lines[2].terms == {}
    assert [line.values for line in lines] == [0, 10, 0]
    assert site in lines[1].why


def test_the_sigmoid_has_no_kernel():
    (line,) = explain(RNN(3, 5, nonlinearity="sigmoid"))
    assert line.path == "reference"
    assert "sigmoid" in line.why.lower()


def test_without_noise_it_is_torch():
    (line,) = explain(LSTM(3, 5))
    assert (line.path, line.terms, line.values) == ("torch", {}, 0)
    assert line.why


def test_layers_are_named_as_in_the_model_and_torchs_own_are_left_out():
    model = nn.Sequential(
        nn.Linear(2, 3),
        nn.ModuleDict({"a": LSTM(3, 5, 2, noise="hidden * Gaussian(1)"), "b": nn.LSTM(3, 5)}),
        GRU(3, 5),
    )
    expected = [("1.a", 0, "reference"), ("1.a", 1, "reference"), ("2", 0, "torch")]
    assert paths(model) == expected
    assert explain(nn.LSTM(3, 5)) == []


def test_an_explanation_is_printed_in_words():
    noise = "hidden * Gaussian(0.5) & hidden + Gaussian(0.1)"
    model = nn.ModuleDict({"decoder": LSTM(3, 5, noise=noise)})
    (line,) = explain(model)
    assert line.values == 10
    for word in ("decoder", "hidden * Gaussian(0.5)", "hidden + Gaussian(0.1)", "reference"):
        assert word in str(line)


def test_it_says_what_evaluation_would_not():
    """The noise is that of training, whatever the mode the model is in."""
    layer = LSTM(3, 5, noise="hidden * Gaussian(1)")
    assert explain(layer.eval()) == explain(layer.train())


def test_torchs_dropout_is_among_the_terms():
    first, second = explain(LSTM(3, 5, 2, dropout=0.25, noise="input * Gaussian(1)"))
    terms = first.terms | second.terms
    assert set(terms) == {"input", "between_l0"}
    assert "0.75" in terms["between_l0"]
