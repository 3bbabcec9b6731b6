"""The site says what is true: its code runs, its commands parse, its links lead somewhere."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from noisin.lab import recipe
from noisin.lab.cli import app
from noisin.lab.config import TASKS
from processes import HANGS
from trainers import lightning_warns

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(page.relative_to(ROOT / "docs")) for page in PAGES]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))  # their code: test_notebooks.py
NOTEBOOK_NAMES = [str(path.relative_to(ROOT / "docs")) for path in NOTEBOOKS]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


def prose(page):
    """Return the text of a page, or that of a notebook between its code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def test_the_site_has_its_pages():
    assert len(NOTEBOOKS) == 3
    assert len(PAGES) >= 25
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 20
    assert sum(len(blocks(page, "bash")) for page in PAGES) >= 9


# what some blocks need beside the laboratory, by the package that they name
NEEDS = {
    "import darts": ("darts",),
    "import lightning": ("lightning",),
    "from pytorch_forecasting": ("pytorch_forecasting",),
    "from skorch": ("skorch",),
    "huggingface_hub": ("huggingface_hub",),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
}


@lightning_warns
@pytest.mark.filterwarnings(
    "ignore:The tensor attributes",  # torch.export, of torch's own LSTM
    "ignore:.isinstance.treespec, LeafSpec.",  # and of its own classes
    "ignore:_check_is_size will be removed",
)
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_runs(page, tmp_path, monkeypatch):
    """Later blocks of a page use the names of its first ones."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks(page, "python"):
        for package in (one for name, all_of in NEEDS.items() if name in block for one in all_of):
            pytest.importorskip(package, reason=f"a block of {page.name} needs it")
        exec(compile(block, page.name, "exec"), names)


def test_what_runs_on_a_device_needs_no_torch():
    pytest.importorskip("onnxruntime", reason="which runs it")
    page = ROOT / "docs" / "guides" / "deployment.md"
    (code,) = (block for block in blocks(page, "python") if "class Stream" in block)
    code = f"import sys; sys.modules['torch'] = sys.modules['noisin'] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page):
    """Every verb, option and recipe of a command exists."""
    commands = typer.main.get_command(app)
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "noisin" not in words or "pip" in words:
                continue
            words = words[words.index("noisin") + 1 :]
            command = commands
            while hasattr(command, "commands") and words:
                command = command.commands[words.pop(0)]
            assert words or command is not commands, line
            with command.make_context("noisin", words) as context:
                name = context.params.get("name")
                if context.info_name != "data" and name and command.name in ("run", "sweep"):
                    assert name.endswith(".toml") or name in recipe.names(), line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipes_are_read(page, tmp_path):
    for block in blocks(page, "toml"):
        path = tmp_path / "page.toml"
        path.write_text(block)
        assert recipe.load(str(path)).rows.keys() == tomllib.loads(block)["rows"].keys()


@pytest.mark.parametrize("page", PAGES + NOTEBOOKS, ids=NAMES + NOTEBOOK_NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose(page)):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"[\w/-]+\.(?:md|ipynb)\b", text)) == {*NAMES, *NOTEBOOK_NAMES}


def page_of(folder, name):
    return (folder / "site" / "api" / name / "index.html").read_text()


def test_the_site_is_built(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed; it comes with the extra `docs`")
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-d",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.html")}
    assert Path("methods/noisin/index.html") in made
    page = (tmp_path / "site" / "methods" / "weight-noise" / "index.html").read_text()
    assert "RNN-MNS" in page  # from the records
    assert "{{" not in page
    page = (tmp_path / "site" / "guides" / "recipes" / "index.html").read_text()
    settings = {name for config in TASKS.values() for name in config.model_fields} - {"task"}
    assert settings <= set(re.findall(r"<td><code>(\w+)</code></td>", page))
    assert "number &gt;\N{NO-BREAK SPACE}0, ≤\N{NO-BREAK SPACE}1" in page
    for path in (tmp_path / "site" / "api").rglob("*.html"):
        page = path.read_text()
        assert "<blockquote" not in page  # what an example becomes that is not taken for one
        assert '<span class="gp">' in page  # the prompt of an example
    assert {"draws", "return_moments"} <= set(re.findall(r"\w+", page_of(tmp_path, "layers")))
    for name in NOTEBOOK_NAMES:
        page = (tmp_path / "site" / name).with_suffix("").joinpath("index.html").read_text()
        assert "data:image/png;base64," in page
        links = re.findall(r'href="([^"#]*)', page)
        assert len(links) > 30
        assert not any(link.endswith((".md", ".ipynb")) for link in links)
    shutil.rmtree(tmp_path / "site")
