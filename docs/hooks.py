"""What the site makes of its pages.

``{{ rows RECIPE: ROW ROW }}`` becomes a table of these rows, from records; ``{{ settings TASK }}``
one of the settings of a task, ``shared`` those of all. Links of notebooks to pages become links to
what is built of them.
"""

import inspect
import posixpath
import re
from pathlib import Path

from griffe import Docstring
from mkdocs.exceptions import PluginError

from noisin.lab import markdown, records, spent
from noisin.lab.config import TASKS, Config, toml

RESULTS = Path(__file__).parents[1] / "results"
MARK = re.compile(r"\{\{ rows ([\w-]+): ([^}]+?) \}\}")
SETTINGS = re.compile(r"\{\{ settings (\w+) \}\}")
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LINK = re.compile(r'href="(?!https?:)([^"#]+\.(?:md|ipynb))(#[^"]*)?"')


def on_page_markdown(text, page, **_):
    """Put tables in the place of their marks."""
    up = "../" * page.file.src_uri.count("/")
    text = SETTINGS.sub(lambda found: settings(found[1]), text)
    return MARK.sub(lambda found: table(found[1], found[2].split(), up), text)


def settings(task):
    """Return the table of the settings that a task adds to those of all, or changes.

    Args:
        task: its name; ``shared`` for those of all.
    """
    kind = TASKS.get(task, Config)
    own = [name for name in kind.__annotations__ if name != "task"]
    meanings = {**meaning_of(Config), **meaning_of(kind)}
    schema = kind.model_json_schema()
    lines = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for name in own:
        is_needed = name in schema.get("required", ())
        default = "" if is_needed else f"`{toml(kind.model_fields[name].default)}`"
        values = values_of(schema["properties"][name])
        lines.append(f"| `{name}` | {values} | {default} | {meanings.get(name, '')} |")
    return "\n".join(lines)


def meaning_of(kind):
    """Return what the docstring of a class says of each of its settings."""
    parts = Docstring(inspect.getdoc(kind)).parse(
        "google", warn_unknown_params=False, warn_missing_types=False
    )
    listed = (part.value for part in parts if part.kind.value == "parameters")
    return {
        one.name: " ".join(one.description.split()).replace("``", "`").replace("|", "\\|")
        for part in listed
        for one in part
    }


def values_of(schema):
    """Return in words which values a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(map(values_of, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list, each {values_of(schema['items'])}"
    words = {"string": "text", "integer": "whole number", "number": "number", "null": '`"none"`'}
    bounds = [
        f"{sign}\N{NO-BREAK SPACE}{schema[key]:g}" for key, sign in BOUNDS.items() if key in schema
    ]
    word = "yes or no" if schema["type"] == "boolean" else words[schema["type"]]
    return " ".join([word, ", ".join(bounds)]).strip()


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
