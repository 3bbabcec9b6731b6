"""What importing the core brings in, which way its modules import, and that its examples run."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import noisin
from processes import HANGS

ROOT = Path(noisin.__file__).parent
HEAVY = ("pydantic", "typer", "music21", "matplotlib", "scipy", "jinja2", "rich", "noisin.lab")
# Each module may import those before it, and no other. The last row stands beside the layers.
ORDER = [
    *(
        "shapes",
        "tracing",
        "mapped",
        "spread",
        "native",
        "streams",
        "variates",
        "laws",
        "noise",
        "at",
        "zoneout",
        "strength",
        "methods",
        "text",
        "propagation",
        "product",
        "reference",
        "stack",
        "checks",
        "fused",
        "propagated_product",
        "propagated",
    ),
    *("draws", "functional", "noisy", "dense", "layers", "recurrence"),
    *("inference", "schedule", "likelihood", "variance", "diagnostics"),
    *("init", "optim", "penalties"),
    *("explanation", "surgery", "replicas"),
]
EXACT = {
    "shapes": set(),
    "spread": {"shapes"},
    "laws": {"shapes", "spread", "variates"},
    "noise": {"laws"},
    "at": {"noise"},
    "propagation": {"noise", "shapes"},
    "reference": {"product", "shapes"},
    "likelihood": {"dense", "fused", "propagation", "shapes", "tracing"},
}
CORE = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "__init__")


def python(code):
    """Run code in a fresh interpreter; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def imported(path):
    """Return the modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            inside = node.module == "noisin"
            found |= {f"noisin.{a.name}" for a in node.names} if inside else {node.module}
    return {name.split(".")[1] for name in found if name.startswith("noisin.")}


def test_import_loads_torch_and_nothing_heavy():
    code = "import sys, torch; before = set(sys.modules); import noisin\n"
    new = python(code + "print(*{name.split('.')[0] for name in set(sys.modules) - before})")
    assert "noisin" in new
    loaded = python(f"import sys, noisin; print(*[m for m in {HEAVY} if m in sys.modules], 'end')")
    assert loaded == ["end"]


def test_torch_alone_is_enough():
    """Every package that torch does not bring is made impossible to import."""
    absent = (*HEAVY[:-1], "jaxtyping", "beartype", "hypothesis", "numpy", "lightning")
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    code += "import torch, noisin\n"
    code += "layer = noisin.LSTM(2, 3, noise='hidden * Gaussian(1)')\n"
    code += "output, _ = layer(torch.ones(4, 1, 2))\n"
    code += "print(tuple(output.shape), noisin.BernoulliHead(3, 2)(output).shape[-1])"
    # torch itself warns without numpy
    assert (
        "".join(python("import warnings; warnings.simplefilter('ignore')\n" + code)) == "(4,1,3)2"
    )


def test_the_command_says_what_it_needs():
    code = "import importlib.util, noisin.lab\n"
    code += "found = importlib.util.find_spec\n"
    code += (
        "noisin.lab.find_spec = lambda name: None if name in ('typer', 'optuna') else found(name)\n"
    )
    code += "noisin.lab.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 1
    assert done.stderr == (
        'noisin: the command needs the extra `lab`, pip install "noisin[lab]"; '
        "missing: typer, optuna\n"
    )


def test_the_core_is_known():
    assert len(CORE) >= 15
    assert [name for name in CORE if name not in ORDER] == []
    assert set(EXACT) <= set(CORE)


@pytest.mark.parametrize("name", CORE)
def test_imports_go_one_way(name):
    found = imported(ROOT / f"{name}.py")
    assert [other for other in found if other not in ORDER[: ORDER.index(name)]] == []
    if name in EXACT:
        assert found <= EXACT[name]


def test_nothing_in_the_core_knows_the_laboratory():
    files = [path for path in ROOT.rglob("*.py") if "lab" not in path.relative_to(ROOT).parts]
    assert len(files) >= 16
    for path in files:
        assert "lab" not in imported(path), path
        assert "noisin.lab" not in path.read_text(encoding="utf-8").replace("``noisin.lab``", "")


def test_public_names_are_exported_once_and_exist():
    assert len(noisin.__all__) == len(set(noisin.__all__)) >= 38
    assert all(hasattr(noisin, name) for name in noisin.__all__)
    named = {"LSTM", "GRU", "RNN", "at", "parse", "explain", "sequence", "moments", "Learned"}
    assert named <= set(noisin.__all__)


@pytest.mark.parametrize(
    "name", [name for name in CORE if ">>>" in (ROOT / f"{name}.py").read_text()]
)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"noisin.{name}")
    result = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_class_and_function_has_an_example():
    named = {name: getattr(noisin, name) for name in noisin.__all__}
    bases = {noisin.Term, noisin.Law}
    shown = {n: one for n, one in named.items() if inspect.isroutine(one) or inspect.isclass(one)}
    shown = {name: one for name, one in shown.items() if one not in bases}
    assert len(shown) >= 37
    assert [name for name, one in shown.items() if ">>>" not in (one.__doc__ or "")] == []


def test_a_first_call_does_not_import_the_compiler():
    code = "import sys, torch, noisin\n"
    code += "layer = noisin.LSTM(2, 3, noise='weight_hh + Gaussian(1)')\n"
    code += "layer(torch.ones(4, 1, 2)); print('torch._dynamo' in sys.modules)"
    assert python(code) == ["False"]


def test_the_command_loads_no_more_than_it_needs_to_explain():
    """Neither the compiler, for weights without memory, nor distributions of baselines."""
    code = "import sys, noisin.lab.cli\nfrom noisin.lab import recipe, tasks\n"
    code += "for name in ('jsb-chorales', 'ptb', 'series', 'ognawala-bayer'):\n"
    code += "    for row in recipe.load(name).rows.values():\n"
    code += "        assert all(p.is_meta for p in tasks.outline(row.config).parameters())\n"
    code += "print(*[m for m in ('torch._dynamo', 'scipy.stats') if m in sys.modules], 'end')"
    assert python(code) == ["end"]


def test_shapes_are_checked_in_these_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="weight"):
        noisin.init.sparse_(torch.ones(2, 3, 4), 1, 1.0)
