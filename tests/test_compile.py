"""torch.compile: layers break the graph where torch's do, the functional entry does not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compiled.py")


@pytest.mark.parametrize(
    ("checks", "count"),
    [
        (["breaks", "stripped"], 13 + 5),
        (["results", "lengths", "dense"], 11 + 4 + 10),
        (["functional"], 19),
    ],
    ids=["breaks", "results", "functional"],
)
def test_compiled(checks, count):
    """The checks of compiled.py find nothing wrong in any of their cases."""
    command = [sys.executable, str(SCRIPT), *checks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == count
    wrong = [f"{case}: {what}" for case, what in found.items() if what is not None]
    assert not wrong, "\n".join(wrong)
