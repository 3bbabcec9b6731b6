"""The laboratory: trains, compares and reports. It uses the library, never the reverse."""

import gc
import sys
from importlib.util import find_spec

NEEDED = ("typer", "rich", "pydantic", "optuna", "lightning_fabric")  # some of the extra `lab`


class LabError(Exception):
    """Bad input to the laboratory: the rule, then what was got. The command exits with 2."""


def main() -> None:
    """Run the command `noisin`, or say that the packages it needs are missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f'noisin: the command needs the extra `lab`, pip install "noisin[lab]"; '
            f"missing: {', '.join(missing)}",
            file=sys.stderr,
        )
        raise SystemExit(1)
    gc.disable()  # modules stay: to look for garbage among them takes a third of the start
    from noisin.lab.cli import main

    gc.freeze()  # nor is it looked for there later, at the end least of all
    gc.enable()
    main()
