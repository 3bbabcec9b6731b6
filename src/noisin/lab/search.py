"""The search space of a recipe: its table ``[search]``.

[search]
row = "noisin"                          # what trials start from

[search.space]
hidden_size = [200, 400]                # one of these
lr = { low = 1e-4, high = 1e-2, log = true }
std = { low = 0.1, high = 2.0 }         # no setting: a name for what follows

[search.settings]
noise = "hidden * Gaussian({std})"      # text with values in it
spectral_radius = "{std} * 1.2"         # of a number: factors

Without ``row`` it is what searches of several rows share, each of which has a table of its own:

[rows.noisin.search]
space = { std = { low = 0.1, high = 2.0 } }
settings = { noise = "hidden * Gaussian({std})" }
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from string import Formatter
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, model_validator

PARTS = ("space", "settings")  # of a search
WIDEST = 1e15  # of a range: beyond, whole numbers are no longer told apart
Scalar = StrictInt | StrictFloat | bool | str
Choices = Annotated[tuple[Scalar, ...], Field(min_length=1)]


class Range(BaseModel):
    """Numbers from low to high, whole ones where both ends are whole.

    Args:
        low: the smallest.
        high: the largest.
        log: uniform in the logarithm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: StrictInt | StrictFloat
    high: StrictInt | StrictFloat
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            rule = "0 < low < high" if self.log else "low < high"
            raise ValueError(f"a range needs {rule}, got low {self.low} and high {self.high}")
        if max(abs(self.low), abs(self.high)) > WIDEST:
            raise ValueError(f"a range must lie within ±{WIDEST:g}, got {self.low} … {self.high}")
        return self


class Search(BaseModel):
    """What a sweep tries.

    Args:
        row: whose settings hold where the space says nothing.
        space: what is drawn, by name: a setting, or a name that ``settings`` use.
        settings: what follows from it: text with ``{name}`` in it. Of a setting that is a number
            a product of numbers, of the others the text itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    space: Annotated[dict[str, Range | Choices], Field(min_length=1)]
    settings: dict[str, str] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if both := sorted(set(self.space) & set(self.settings)):
            raise ValueError(f"{both[0]} must be drawn or follow from what is drawn, not both")
        for setting, text in self.settings.items():
            for name in _names(setting, text):
                if name not in self.space:
                    raise ValueError(
                        f"{setting} uses {{{name}}}, which must be in the space, "
                        f"one of {', '.join(self.space)}"
                    )
        return self

    def check(self, fields: Sequence[str], fixed: Collection[str]) -> None:
        """Refuse names that neither are settings nor are used by one.

        Args:
            fields: settings that may be searched.
            fixed: settings that may not, for they decide the corpus.

        Raises:
            ValueError: such a name.
        """
        for name in (*self.space, *self.settings):
            if name in fixed:
                raise ValueError(f"{name} decides the corpus and is not searched")
        used = {name for key, text in self.settings.items() for name in _names(key, text)}
        for name in (*self.space, *self.settings):
            if name not in fields and (name in self.settings or name not in used):
                raise ValueError(f"{name} must be a setting, or be used by one as {{{name}}}")

    def without(self, fixed: Collection[str], fields: Sequence[str]) -> Self | None:
        """Return the search with some settings fixed, and what only they needed left out.

        Returns:
            None where nothing is left to draw.
        """
        settings = {key: text for key, text in self.settings.items() if key not in fixed}
        used = {name for key, text in settings.items() for name in _names(key, text)}
        space = {
            name: one
            for name, one in self.space.items()
            if name in used or (name in fields and name not in fixed)
        }
        return self.model_copy(update={"space": space, "settings": settings}) if space else None

    def decided(self, fields: Collection[str]) -> list[str]:
        """Return the settings that a trial decides.

        Args:
            fields: names of all settings.
        """
        return [name for name in (*self.space, *self.settings) if name in fields]

    def changed(
        self, drawn: Mapping[str, Scalar], fields: Sequence[str], texts: Sequence[str]
    ) -> dict[str, Any]:
        """Return the settings of a trial.

        Args:
            drawn: a value for each name of the space.
            fields: names of all settings.
            texts: of those that are text.
        """
        settings = {name: value for name, value in drawn.items() if name in fields}
        for name, text in self.settings.items():
            filled = text.format_map(drawn)
            settings[name] = filled if name in texts else _product(name, filled)
        return {k: None if v == "none" and k not in texts else v for k, v in settings.items()}


def _names(setting: str, text: str) -> list[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{setting} must be text with {{name}} in it; {error}") from None
    names = [name for _, name, _, _ in parts if name is not None]
    if any(spec or turned for _, _, spec, turned in parts) or not all(
        name.isidentifier() for name in names
    ):
        raise ValueError(f"{setting} must name what is drawn as {{name}}, got {text!r}")
    return names


def _product(name: str, text: str) -> float:
    try:
        return math.prod(float(part) for part in text.split("*"))
    except ValueError:
        raise ValueError(f"{name} must be a product of numbers, got {text!r}") from None


def searches_of(shared: Any, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the searches as they stand, by row: what rows share and what each adds.

    Raises:
        ValueError: one that is no table, or is shared by no row.
    """
    own = {
        row: said["search"]
        for row, said in rows.items()
        if isinstance(said, dict) and "search" in said
    }
    for table in (*own.values(), *([] if shared is None else [shared])):
        if not isinstance(table, dict) or any(
            not isinstance(table.get(part, {}), dict) for part in PARTS
        ):
            raise ValueError(f"search, its space and settings must be tables, got {table!r}")
    if shared is not None and "row" in shared:
        if own:
            raise ValueError("either [search] names a row, or rows have searches of their own")
        if not isinstance(rows.get(shared["row"]), dict):
            raise ValueError(f"row must be one of {list(rows)}, got {shared['row']!r}")
        return {shared["row"]: shared}
    if shared is not None and not own:
        raise ValueError("row must be named, or some row must have a search of its own")
    common = shared or {}
    return {
        row: {
            **common,
            **table,
            "row": row,
            **{part: {**common.get(part, {}), **table.get(part, {})} for part in PARTS},
        }
        for row, table in own.items()
    }
