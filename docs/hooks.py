"""Tables on the site from records: ``{{ rows RECIPE: ROW ROW }}`` becomes a table of these rows."""

import re
from pathlib import Path

from noisin.lab import markdown, records, spent

RESULTS = Path(__file__).parents[1] / "results"
MARK = re.compile(r"\{\{ rows ([\w-]+): ([^}]+?) \}\}")


def on_page_markdown(text, page, **_):
    """Put tables in the place of their marks."""
    up = "../" * page.file.src_uri.count("/")
    return MARK.sub(lambda found: table(found[1], found[2].split(), up), text)


def table(recipe, rows, up):
    """Return the table of some rows of a recipe, those that have been run.

    Args:
        recipe: its name.
        rows: names of rows.
        up: the way from the page to the results.
    """
    every = records.read([RESULTS / f"{recipe}.jsonl"])
    own = {row: [one for one in every if one.row == row] for row in rows}
    return "\n".join(
        [
            *markdown.table(
                {row: found for row, found in own.items() if found}, spent.read([RESULTS])
            ),
            "",
            f"`noisin run {recipe}`; all of it is in [the results]({up}results.md).",
        ]
    )
