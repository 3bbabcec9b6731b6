"""CSV and Parquet files: what is read out of them, and what is refused."""

import datetime
import decimal
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lab_cases import table
from noisin.lab import LabError, observations, tabular
from noisin.lab.config import SeriesConfig


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(found):
    return {name: values.tolist() for name, values in found.numbers.items()}


READ = {
    "header": "a,b\n1,2\n3,4.5\n",
    "quotes": '"a","b"\n"1","2"\n3,4.5\n',
    "semicolons": "a;b\n1;2\n3;4.5\n",
    "tabs": "a\tb\r\n1\t2\r\n3\t4.5\r\n",
    "mark": "\ufeffa, b \n 1 , 2\n3,4.5\n\n\n",
}


@pytest.mark.parametrize("name", READ)
def test_csv_is_read(tmp_path, name):
    found = tabular.read(written(tmp_path / "own.csv", READ[name]))
    assert listed(found) == {"a": [1, 3], "b": [2, 4.5]}
    assert found.left_out == {}


def test_first_row_of_numbers_is_no_header(tmp_path):
    found = tabular.read(written(tmp_path / "own.csv", "1,2e3\n-3,.5\n"))
    assert listed(found) == {"1": [1, -3], "2": [2000, 0.5]}


def test_a_first_row_with_dates_is_no_header(tmp_path):
    text = "2026-01-01,1.5\n2026-01-02 23:00,2.5\n"
    found = tabular.read(written(tmp_path / "own.csv", text))
    assert listed(found) == {"2": [1.5, 2.5]}
    named = tabular.read(written(tmp_path / "own.csv", f"day,2026\n{text}"))
    assert listed(named) == {"2026": [1.5, 2.5]}


def test_columns_that_are_not_numbers_are_left_out_and_named(tmp_path):
    text = ",day,x,n\n0,2026-01-01,1.5,1_000\n1,2026-01-02,2.5,2\n"
    found = tabular.read(written(tmp_path / "own.csv", text))
    assert listed(found) == {"x": [1.5, 2.5]}
    assert found.left_out == {
        "": "it has no name",
        "day": "a cell must be a number, row 1 has '2026-01-01'",
        "n": "a cell must be a number, row 1 has '1_000'",
    }


@pytest.mark.parametrize("cell", ["", "NA", "n/a", "NaN", "null", "None"])
def test_missing_cells_are_no_text(tmp_path, cell):
    found = tabular.read(written(tmp_path / "own.csv", f"a,b\n1,2\n3,{cell}\n"))
    np.testing.assert_array_equal(found.numbers["b"], [2, np.nan])


def test_parquet_is_read_by_type(tmp_path):
    columns = {
        "whole": pa.array([1, 2], pa.int16()),
        "half": pa.array([0.5, None], pa.float32()),
        "price": pa.array([decimal.Decimal("1.25"), decimal.Decimal("2.50")]),
        "day": pa.array([datetime.date(2026, 1, 1)] * 2),
        "flag": pa.array([True, False]),
        "shop": pa.array(["b", "a"]).dictionary_encode(),
        "__index_level_0__": pa.array([7, 8]),
    }
    path = tmp_path / "own.data"  # known by its first bytes
    parquet.write_table(pa.table(columns), path)
    found = tabular.read(path, "shop")
    expected = {"whole": [1, 2], "half": [0.5, np.nan], "price": [1.25, 2.5]}
    assert set(found.numbers) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found.numbers[name], values)
        assert found.numbers[name].dtype == np.float64
    assert found.groups == ("b", "a")
    assert found.left_out["day"] == "a column must be of numbers, it is of date32[day]"
    assert set(found.left_out) == {"day", "flag", "__index_level_0__"}


def test_csv_and_parquet_of_the_same_rows_are_one_corpus(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"x": rng.standard_normal(20), "y": rng.standard_normal(20)}
    table(tmp_path / "own.csv", columns)
    parquet.write_table(pa.table(columns), tmp_path / "own.parquet")
    digests = [
        observations.load(SeriesConfig(data=str(tmp_path / name))).digest()
        for name in ("own.csv", "own.parquet")
    ]
    assert digests[0] == digests[1]


def test_groups_are_series_in_the_order_of_their_rows(tmp_path):
    rows = [(("b", "a")[i % 3 == 0], i, i % 5) for i in range(30)]
    path = table(
        tmp_path / "own.csv", dict(zip(("shop", "x", "y"), zip(*rows, strict=True), strict=True))
    )
    corpus = observations.load(SeriesConfig(data=str(path), group="shop", columns=["x"]))
    assert list(corpus.series) == ["a", "b"]
    assert corpus.series["a"][:, 0].tolist() == [i for i in range(30) if i % 3 == 0]
    assert corpus.series["b"][:, 0].tolist() == [i for i in range(30) if i % 3]
    assert corpus.cuts == {"a": (6, 2, 2), "b": (12, 4, 4)}
    assert corpus.sizes()["train"] == {"series": 2, "steps": 18}
    trained = [0, 3, 6, 9, 12, 15, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17]
    assert sorted(trained) == list(range(18))  # of both series, their first rows
    assert (corpus.mean.tolist(), corpus.std.tolist()) == ([8.5], [np.std(range(18))])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("time,\tx,\ty\n1,\t2,\t3\n2,\t3,\t4\n", ["time", "x", "y"]),
        ('1,2,"a;b"\n2,3,"c;d"\n', ["1", "2"]),
        ('id,"tag;kind",x\n1,a;b,2\n2,c;d,5\n', ["id", "x"]),
        ("a;b\n1;2\n3;4\n", ["a", "b"]),
        ("a\tb, c\n1\t2\n3\t4\n", ["a", "b, c"]),
        ("a,b;c,d\n1,5;2,5\n3,1;4,2\n", []),
    ],
)
def test_the_delimiter_that_leaves_numbers_cuts(tmp_path, text, names):
    assert list(tabular.read(written(tmp_path / "own.csv", text), None).numbers) == names


def rows_of(line, count=20):
    """Return a table of a good column and one with some line in the middle."""
    return "x,y\n" + "".join(f"{i},{i % 7}\n" for i in range(count)) + line


BAD = {
    "nothing": ("", {}, "must have rows, got none"),
    "header alone": ("x,y\n", {}, "training needs horizon \\+ 1 = 2 rows.*got 0, 0, 0 of 0"),
    "short": ("x\n1\n2\n3\n", {}, "got 1, 1, 1 of 3"),
    "far": (rows_of(""), {"horizon": 12}, "horizon \\+ 1 = 13 rows.*got 12, 4, 4 of 20"),
    "text alone": ("x,y\na,b\nc,d\n", {}, "must have a column of numbers; got none. 'x': a cell"),
    "one short": ("x,y\n0,0,0\n", {}, "every row must have 2 cells.*line 2 has 3"),
    "ragged": (rows_of("1,2,3\n"), {}, "every row must have 2 cells.*line 22 has 3"),
    "hole": (rows_of("\n1,2\n"), {}, "line 22 is empty"),
    "open quote": (rows_of('"1,2\n'), {}, "must be CSV; behind line 21"),
    "latin-1": ("x,naïve\n1,2\n".encode("latin-1"), {}, "must be Parquet, or CSV in UTF-8"),
    "same names": ("x,x\n1,2\n", {}, "must have different names; got 'x' twice"),
    "missing": (rows_of("4,\n"), {}, "'y' must have a finite number.*row 21 is missing \\(1 of 21"),
    "infinite": (rows_of("4,inf\n"), {}, "row 21 has inf"),
    "constant": ("x,y\n" + "1,2\n2,2\n" * 9 + "1,3\n" * 9, {}, "'y' must vary in the training"),
    "constant 0.1": ("x,y\n" + "1,0.1\n2,0.1\n" * 9 + "1,3\n" * 9, {}, "'y' must vary"),
    "huge": ("x\n" + "1e300\n-1e300\n" * 9, {}, "'x' must vary.*got standard deviation inf"),
    "negative": (rows_of("-1,2\n"), {"head": "poisson"}, "needs counts.*'x'; row 21 has -1"),
    "half": (rows_of("1,2.5\n"), {"head": "poisson"}, "needs counts.*'y'; row 21 has 2.5"),
    "no column": (rows_of(""), {"columns": ["z"]}, "columns must be among x, y; got 'z'"),
    "text": (rows_of("a,1\n"), {"columns": ["x"]}, "columns must be numeric; 'x'.*has 'a'"),
    "no target": (rows_of(""), {"columns": ["x"], "targets": ["y"]}, "among x; got 'y'"),
    "no group": (rows_of(""), {"group": "z"}, "group must be one of x, y; got 'z'"),
    "group hole": (rows_of("1,\n"), {"group": "y"}, "group 'y' must be in every row; row 21 has"),
    "no rows in groups": ("x,y\n", {"group": "y"}, "must have rows, got none"),
    "commas in numbers": (
        "Datum;Preis, EUR;Menge, kg\n" + "2020-01-1;1,1;3,2\n2020-01-2;1,4;3,9\n" * 9,
        {},
        "'Preis, EUR': a cell must be a number, row 1 has '1,1'",
    ),
    "small group": (rows_of("1,9\n"), {"group": "y"}, "series '0'.*got 1, 1, 1 of 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_corpus_is_refused(tmp_path, name):
    text, settings, rule = BAD[name]
    path = written(tmp_path / "own.csv", text)
    with np.errstate(over="ignore"), pytest.raises(LabError, match=rule):
        observations.load(SeriesConfig(data=str(path), **settings))


def test_poisson_does_not_ask_inputs_to_be_counts(tmp_path):
    path = table(tmp_path / "own.csv", {"x": [i - 4.5 for i in range(20)], "n": range(20)})
    corpus = observations.load(SeriesConfig(data=str(path), head="poisson", targets=["n"]))
    assert (corpus.center.tolist(), corpus.scale.tolist()) == ([0], [1])
    assert corpus.target_names == ("n",)


@pytest.mark.parametrize("damage", ["cut", "text", "folder", "nothing"])
def test_parquet_that_is_none_is_refused(tmp_path, damage):
    path = tmp_path / "own.parquet"
    if damage == "folder":
        path.mkdir()
    elif damage != "nothing":
        parquet.write_table(pa.table({"x": range(99)}), path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"x\n1\n2\n")
    rule = "a CSV or Parquet file; got" if damage in ("folder", "nothing") else "be a Parquet file"
    with pytest.raises(LabError, match=rule):
        observations.load(SeriesConfig(data=str(path)))


class Trap:
    """What runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["own.csv", "own.parquet"])
def test_nothing_is_unpickled(tmp_path, name):
    path = written(tmp_path / name, pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(LabError):
        observations.load(SeriesConfig(data=str(path)))
    assert [p.name for p in tmp_path.iterdir()] == [name]
