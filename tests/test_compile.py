"""torch.compile: layers break the graph where torch's do, the functional entry does not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from processes import HANGS

SCRIPT = Path(__file__).with_name("compiled.py")


one_graph = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="an older compiler breaks into several graphs",
)


@pytest.mark.parametrize(
    ("checks", "count"),
    [
        (["breaks", "stripped"], 13 + 5),
        pytest.param(["results", "lengths", "dense"], 11 + 4 + 11, marks=one_graph),
        pytest.param(["functional"], 25, marks=one_graph),
    ],
    ids=["breaks", "results", "functional"],
)
def test_compiled(checks, count):
    """The checks of compiled.py find nothing wrong in any of their cases."""
    command = [sys.executable, str(SCRIPT), *checks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == count
    wrong = [f"{case}: {what}" for case, what in found.items() if what is not None]
    assert not wrong, "\n".join(wrong)
