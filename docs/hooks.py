"""What the site makes of its pages.

``{{ rows RECIPE: ROW ROW }}`` becomes a table of these rows, from records; links of notebooks to
pages become links to what is built of them.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError

from noisin.lab import markdown, records, spent

RESULTS = Path(__file__).parents[1] / "results"
MARK = re.compile(r"\{\{ rows ([\w-]+): ([^}]+?) \}\}")
LINK = re.compile(r'href="(?!https?:)([^"#]+\.(?:md|ipynb))(#[^"]*)?"')


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


def on_page_content(html, page, files, **_):
    """Lead a notebook's links to pages, which mkdocs does itself on a page of Markdown alone."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    folder = posixpath.dirname(page.file.src_uri)

    def built(found):
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, found[1])))
        if file is None:
            raise PluginError(f"{page.file.src_uri}: a link must lead to a page, got {found[1]}")
        return f'href="{file.url_relative_to(page.file)}{found[2] or ""}"'

    return LINK.sub(built, html)
