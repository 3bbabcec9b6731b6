"""Columns of numbers out of CSV and Parquet files, which are read and never run.

CSV is read by Python's own ``csv``: UTF-8, cells apart by comma, semicolon or tab, numbers with a
point. The first row is a header if some cell of it is neither a number nor a date (ISO 8601, as
2024-12-31 23:00); without one the columns are named 1, 2, …. Parquet is read by ``pyarrow``, the
format's reference reader, which needs nothing else.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from noisin.lab import LabError

MISSING = ("", "na", "n/a", "nan", "null", "none")
DELIMITERS = (",", ";", "\t")
EUROPEAN = re.compile(r"[-+]?\d+,\d+")
PARQUET = b"PAR1"  # a Parquet file begins and ends so
INDEX = "__index_level_"  # how pandas names the index of a data frame
SHOWN = 40  # characters of a cell in a message


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Args:
        numbers: of each numeric column, a row each; NaN where a cell is missing.
        left_out: why another column is not among them.
        groups: cells of the group column as text; empty without one.
    """

    numbers: Mapping[str, NDArray[np.float64]]
    left_out: Mapping[str, str]
    groups: tuple[str, ...] = ()


def read(path: Path, group: str | None = None) -> Columns:
    """Read a file.

    Args:
        path: a CSV or Parquet file.
        group: the column that is kept as text.

    Raises:
        LabError: no table, columns of one name, or no such group column.
    """
    try:
        with path.open("rb") as file:
            parquet = file.read(len(PARQUET)) == PARQUET
        if parquet or path.suffix.lower() in (".parquet", ".pq"):
            return _parquet(path, group)
        return _csv(path, group)
    except OSError as error:
        raise LabError(f"{path} must be a file that can be read; {error}") from None


def _csv(path: Path, group: str | None) -> Columns:
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise LabError(f"{path} must have rows, got none")
    header = not all(_number(cell) is not None or _is_date(cell) for cell in first)
    names = [c.strip() for c in first] if header else [str(n + 1) for n in range(len(first))]
    _check_names(path, names, group)
    left_out = {index: "it has no name" for index, name in enumerate(names) if not name}
    kept = [array("d") for _ in names]
    groups = []
    for number, row in enumerate(itertools.chain([] if header else [first], rows), 1):
        for index, cell in enumerate(row):
            if names[index] == group:
                groups.append("" if cell.strip().lower() in MISSING else cell.strip())
            elif index not in left_out:
                value = _number(cell)
                if value is None:
                    shown = cell if len(cell) <= SHOWN else cell[:SHOWN] + "…"
                    left_out[index] = f"a cell must be a number, row {number} has {shown!r}"
                else:
                    kept[index].append(value)
    return Columns(
        {
            name: np.array(kept[index])
            for index, name in enumerate(names)
            if index not in left_out and name != group
        },
        {names[index]: why for index, why in left_out.items()},
        tuple(groups),
    )


def _rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, the first one among them.

    Raises:
        LabError: text that is not UTF-8, an empty line between rows, rows of other lengths.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = 0
        try:
            found = max(DELIMITERS, key=partial(_fit, file))
            file.seek(0)
            reader = csv.reader(file, delimiter=found, strict=True)
            width = empty = 0
            for row in reader:
                line = reader.line_num
                if not row:
                    empty = empty or line
                    continue
                width = width or len(row)
                if empty or len(row) != width:
                    got = f"{empty} is empty" if empty else f"{line} has {len(row)}"
                    raise LabError(
                        f"{path}: every row must have {width} cells, as the first; line {got}"
                    )
                yield row
        except UnicodeDecodeError as error:
            raise LabError(f"{path} must be Parquet, or CSV in UTF-8; {error}") from None
        except csv.Error as error:
            raise LabError(f"{path} must be CSV; behind line {line}: {error}") from None


def _fit(file: TextIO, delimiter: str) -> tuple[bool, float, int]:
    """Return how well a delimiter fits, to compare.

    Returns:
        Whether it cuts the first two rows into as many cells, and if so what share of the second
        row's are numbers, some of them with a comma for a point; how many cells.
    """
    file.seek(0)
    try:
        rows = itertools.islice(csv.reader(file, delimiter=delimiter, strict=True), 2)
        found = list(rows)
    except csv.Error:
        return False, 0, 0
    most = max(map(len, found), default=0)
    if most < 2 or len({len(row) for row in found}) > 1:
        return False, 0, most
    numbers = [_number(cell) is not None or EUROPEAN.fullmatch(cell.strip()) for cell in found[-1]]
    return True, sum(map(bool, numbers)) / most, most


def _number(cell: str) -> float | None:
    """Return the number of a cell, NaN of a missing one, or None."""
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _is_date(cell: str) -> bool:
    """Return whether a cell is a date, perhaps with a time of the day."""
    try:
        datetime.fromisoformat(cell.strip())
    except ValueError:
        return False
    return True


def _parquet(path: Path, group: str | None) -> Columns:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise LabError(f"{path} must be a Parquet file; {error}") from None
    _check_names(path, table.column_names, group)
    numbers, left_out, groups = {}, {}, ()
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
        if name == group:
            groups = tuple("" if cell is None else str(cell) for cell in column.to_pylist())
        elif name.startswith(INDEX):
            left_out[name] = "it is the index of a data frame"
        elif any(is_of(kind) for is_of in numeric):
            numbers[name] = np.array(column.cast(pa.float64(), safe=False), np.float64)
        else:
            left_out[name] = f"a column must be of numbers, it is of {kind}"
    return Columns(numbers, left_out, groups)


def _check_names(path: Path, names: list[str], group: str | None) -> None:
    for name in names:
        if name and names.count(name) > 1:
            raise LabError(f"{path}: columns must have different names; got {name!r} twice")
    if group is not None and group not in names:
        raise LabError(f"{path}: group must be one of {', '.join(names)}; got {group!r}")
