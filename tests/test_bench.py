"""What measures speed and memory: that it runs, compares the right things, and counts."""

from pathlib import Path

import pytest
import torch
from torch import nn

import noisin
from noisin.lab import bench

WORK = bench.Work("LSTM", 2, 3, 5)


def test_each_way_is_called_as_often_and_reported_once():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1

    found = bench.times({name: lambda name=name: call(name) for name in calls}, 3, warm=2)
    assert calls == {"a": 5, "b": 5}
    assert list(found) == ["a", "b"]
    assert all(value >= 0 for value in found.values())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_passes_are_torchs_layer_ours_and_the_loop(kind):
    found = bench.passes(WORK._replace(kind=kind), {bench.NOISY: bench.NOISE})
    names = [bench.PLAIN, bench.NOISY, *([bench.LOOP] if kind == "LSTM" else [])]
    assert list(found) == names
    for run in found.values():
        run()


def test_the_loop_is_our_layer_without_its_noise():
    cell, layer, x = nn.LSTMCell(5, 5), noisin.LSTM(5, 5), torch.randn(3, 2, 5)
    for name, value in cell.named_parameters():
        layer.get_parameter(f"{name}_l0").data.copy_(value.data)
    torch.testing.assert_close(bench.loop(cell, x, keep=1.0), layer(x)[0])


def test_operations_are_counted():
    weights = 4 * 5 * (5 + 5)
    assert WORK.operations == 3 * 2 * 2 * 3 * weights


def test_a_training_step_of_either_model_learns():
    """The plain model and the noisy one, the same shapes."""
    steps = bench.language_model_steps(vocabulary=11, size=4, batch=2, steps=3)
    assert list(steps) == [bench.PLAIN, bench.NOISY]
    for step in steps.values():
        step()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory")
def test_peak_memory_grows_with_the_work():
    small, large = (bench.peak(bench.Work("LSTM", 20, time, 64), bench.NOISY) for time in (50, 500))
    assert large > 3 * small > 0


def test_a_table_shows_ratios():
    lines = bench.table({"a": 2.0, "bb": 3.0}, "a").splitlines()
    assert [line.split() for line in lines] == [
        ["a", "2.00", "ms", "1.00"],
        ["bb", "3.00", "ms", "1.50"],
    ]


def test_lines_name_the_parts_that_were_asked_for(monkeypatch):
    monkeypatch.setattr(bench, "WORKS", (WORK, WORK._replace(kind="GRU")))
    monkeypatch.setattr(bench, "limit", lambda: 1.0)
    monkeypatch.setattr(bench, "FACTOR", (2, 2, 2))
    text = "\n".join(bench.lines(["GRU"], 1))
    assert "GRU, B 2, T 3, H 5" in text
    assert "LSTM" not in text
    assert bench.PLAIN in text
    assert bench.NOISY in text


def test_every_law_is_drawn():
    drawn = bench.drawing((2, 3))
    assert len(drawn) == len(noisin.laws.LAWS)
    assert all(draw().shape == (2, 3) for draw in drawn.values())


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with bench.running(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
