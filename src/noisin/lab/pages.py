"""HTML pages: one file each, with everything inside; what they show is text, never markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from noisin.lab.files import write_aside


def write(template: str, path: Path, **shown: Any) -> None:
    """Write a page.

    Args:
        template: file beside this one.
        path: HTML file to write.
        **shown: what the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("noisin.lab", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(template).render(shown)
    with write_aside(path) as file:
        file.write(page.encode())
