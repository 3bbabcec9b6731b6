"""The notebooks run, say what a run says, and carry nothing of the machine that ran them."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import v4

from processes import HANGS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
LARGEST = 150_000  # bytes of a notebook
SCRIPT = runpy.run_path(str(ROOT / "docs" / "execute.py"))


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell):
    """Return what a cell gave, without its numbers, which differ by machine, and its pictures."""
    found = []
    for output in cell.outputs:
        text = output.get("text") or output.data["text/plain"]
        text = " ".join(re.sub(r"-?\d+(\.\d+)?", "#", text).split())
        found.append((output.output_type, text, sorted(output.get("data", {}))))
    return found


def test_there_are_three():
    assert NAMES == ["fast-dropout", "forecasting", "overfitting"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_stands_in_it_is_what_a_run_gives(path, bach, tmp_path):
    stored = nbformat.read(path, as_version=4)
    run = SCRIPT["execute"](path, tmp_path)
    assert [said(cell) for cell in code_of(run)] == [said(cell) for cell in code_of(stored)]


def test_a_claim_that_does_not_hold_is_an_error(tmp_path):
    path = tmp_path / "wrong.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("assert 1 > 2, 'not so'")]), path)
    with pytest.raises(CellExecutionError, match="not so"):
        SCRIPT["execute"](path, tmp_path)


def test_numbers_may_differ_and_words_may_not():
    first, number, word = (
        said(v4.new_code_cell(outputs=[v4.new_output("stream", text=text)]))
        for text in ("test   9.50\n", "test -19.5\n", "train 9.50\n")
    )
    assert first == number != word


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_are_those_of_one_run_from_the_first_cell(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(cell.source.count("assert ") for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_is_small_and_says_nothing_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= LARGEST
    assert notebook.metadata == SCRIPT["METADATA"]
    assert not any(cell.metadata for cell in notebook.cells)
    text = "".join(output.get("text", "") for cell in code_of(notebook) for output in cell.outputs)
    assert not re.search(r"/\w+/|\\\\|site-packages|Warning", text)


def test_code_is_formatted():
    for command in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *command, *map(str, NOTEBOOKS)]
        done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
        assert done.returncode == 0, done.stdout + done.stderr
