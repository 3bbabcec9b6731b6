"""The README says what is true: its code runs, its command is the one that is checked."""

import re
from pathlib import Path

import torch

import noisin
from noisin.lab import records, report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # later ones use the first one's names
    assert names["output"].shape == (35, 20, 650)
    assert type(names["plain"][1]) is torch.nn.GRU


def test_expressions_of_the_methods_table_act():
    table = README.split("### Every method in one expression")[1].split("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == 17
    found = [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|", 2)[2])]
    whole = [t for t in found if "…" not in t and "penalties" not in t and t != "untied=True"]
    terms = [t for t in whole if t.split("(")[0] not in ("Linear", "Embedding")]
    terms = [t for t in terms if t not in ("input", "between", "output", "Linear")]
    assert len(terms) >= 15
    for text in terms:
        if text.startswith("weight + "):
            noisin.Linear(3, 4, noise=text)(torch.zeros(2, 1, 3))
        else:
            noisin.LSTM(3, 4, num_layers=2, noise=text)(torch.zeros(2, 1, 3))


def test_first_lines_show_the_swap():
    first = "\n".join(README.splitlines()[:15])
    assert "LSTM(650, 650, num_layers=2, noise=at.hidden * Bernoulli(keep=0.41))" in first
    assert "torch.nn.LSTM(650, 650, num_layers=2)" in first


def test_the_first_table_is_that_of_the_records():
    found = records.read([ROOT / "results" / "bach.jsonl"])
    rows = {
        row: [one for one in found if one.row == row] for row in ("plain", "noisin", "variational")
    }
    for line in report.summary(rows):
        scores = [line.scores[split] for split in ("train", "valid", "test")]
        (shown,) = re.findall(rf"^{line.label} +(.*±.*)$", README, re.M)
        assert shown.split() == [
            *map(str, scores),
            str(line.difference or "-"),
            str(line.seeds),
            f"{line.epochs.mean:.0f}{'*' if line.limited else ''}",
        ]
    draws = [one.monte_carlo[25] for one in rows["noisin"]]
    mixture, keys = (
        f"{sum(one[name] for one in draws) / len(draws):.3f}" for name in ("unscored", "factorised")
    )
    text = " ".join(README.split())
    assert f"on to {mixture}, as a mixture; averaged key by key they score {keys}." in text


def test_check_script_reads_the_test_line_from_here():
    lines = re.findall(r"^ *pip install .* && pytest$", README, re.M)
    assert lines == ['pip install -c constraints.txt -e ".[lab,test]" && pytest']
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_commands_that_are_named_exist():
    from noisin.lab.cli import app

    named = set(re.findall(r"^noisin (\w+)", README, re.M))
    known = {c.name or c.callback.__name__ for c in app.registered_commands} | {"data"}
    assert named == known


def test_recipes_that_are_named_ship():
    from noisin.lab import recipe

    assert all(f"`{name}`" in README for name in recipe.names())
