"""The README says what is true: its code runs, its command is the one that is checked."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # the second uses the first one's names
    assert names["output"].shape == (35, 20, 650)


def test_first_lines_show_the_swap():
    first = "\n".join(README.splitlines()[:15])
    assert "LSTM(650, 650, num_layers=2, noise=at.hidden * Bernoulli(keep=0.41))" in first
    assert "torch.nn.LSTM(650, 650, num_layers=2)" in first


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
