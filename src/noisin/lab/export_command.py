"""``noisin export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noisin.lab import hub
from noisin.lab.terminal import AsJson, DataDir, dump, refusing, say


@refusing
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    folder: Annotated[Path, typer.Argument(help="Empty, or not there yet.")],
    license: Annotated[
        str | None, typer.Option(help="Of the model, as the Hub names it.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write the model of a run as a folder for the Hugging Face Hub."""
    files = hub.save_pretrained(run, folder, data_dir, license)
    if as_json:
        dump({"folder": str(folder), "files": files})
        return
    say(f"{folder}: {', '.join(files)}")
