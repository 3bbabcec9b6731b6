"""Series by the command: from the user's own file to a report, intervals and forecasts."""

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lab_cases import table, walk
from noisin.lab import config, data, dynamics, recipe, records
from test_cli import call as call  # a fixture
from test_cli import sets

TINY = ["task=series", "hidden_size=5", "epochs=2", "seeds=[1,2]", "test_samples=[1,2]"]
TINY += ["batch_size=2", "window=9"]


def test_main_job_then_everything_on_its_runs(call, tmp_path):
    """Train, report, evaluate, measure intervals, forecast: on the user's CSV file."""
    own = walk(tmp_path / "own.csv")
    result = call("run", *sets(f"data={own}", *TINY))
    assert result.exit_code == 0, result.output
    assert "6 runs, 6 to do" in result.output
    assert re.search(r"^the last value, \d steps before, no network: train ", result.output, re.M)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"series-\w{6}", folder.name)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 + 2  # curves, radius, forecasts of two rows
    assert "Nats a step, of the numbers in their own units; lower is better" in page
    assert "<td>the mean</td>" in page
    assert "<audio" not in page
    samples = sorted(p.name for p in (folder / "samples").iterdir())
    assert [p.split(".")[1] for p in samples] == ["csv", "png"] * 2
    assert "6 runs, 0 to do" in call("run", *sets(f"data={own}", *TINY)).output

    noisy = next(r for r in records.read([folder]) if (r.row, r.seed) == ("noisin", 1))
    run = folder / f"noisin-1-{noisy.hash}"
    scores = json.loads(call("evaluate", run, "--samples", 2, "--json").output)
    assert scores["0"] == noisy.scores["test"]
    assert set(scores["2"]) == {"nll", "rmse x", "rmse y"}
    told = call("evaluate", run, "--intervals")
    assert told.exit_code == 0, told.output
    assert len(re.findall(r"average of 2 draws +[xy] +0\.\d+ +\d\.\d{3} +\d", told.output)) == 6
    words = ["--intervals", "--json", "--level", 0.9, "--samples", 4, "--split", "valid"]
    found = json.loads(call("evaluate", run, *words).output)
    assert list(found) == ["0", "4"]
    assert [set(one) for one in found["4"]["y"]] == [{"level", "coverage", "width", "count"}]
    assert (found["0"]["x"][0]["level"], found["0"]["x"][0]["count"]) == (0.9, 18)

    page = call("report", tmp_path / "runs", "--out", "page.html", "--markdown", "tables.md")
    assert page.exit_code == 0, page.output
    assert "the last value" in (tmp_path / "page.html").read_text()
    assert "| the mean |  | " in (tmp_path / "tables.md").read_text()


def test_names_of_columns_are_no_markup(call, tmp_path):
    """Neither of the terminal's nor of mathematics."""
    text = walk(tmp_path / "own.csv").read_text()
    names = ["cost_$ [m/s]", "rate_$ [/h]"]
    (tmp_path / "own.csv").write_text(",".join(names) + text[text.index("\n") :])
    result = call("run", *sets(f"data={tmp_path / 'own.csv'}", *TINY[:-2], "seeds=[1]"))
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "runs").rglob("noisin-1-*")
    told = call("evaluate", run)
    assert told.exit_code == 0, told.output
    assert all(f"rmse {name}" in " ".join(told.output.split()) for name in names)


def test_forecasts_are_written_with_the_truth_and_their_intervals(call, tmp_path):
    own = walk(tmp_path / "own.csv")
    assert call("run", "--only", "noisin", *sets(f"data={own}", *TINY, "seeds=[1]")).exit_code == 0
    run = next((tmp_path / "runs").glob("series-*/noisin-1-*"))
    drawn = call("sample", run, "--out", tmp_path / "f", "--length", 10)
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["target"]) for row in rows[:3]] == [
        ("73", "x"),
        ("73", "y"),
        ("74", "x"),
    ]
    assert len(rows) == 2 * 18  # rows 73 to 90
    values = np.loadtxt(own, delimiter=",", skiprows=1)[72:]
    truth = [float(row["truth"]) for row in rows]
    assert [f"{one:.6g}" for one in truth] == [f"{one:.6g}" for one in values.flatten()]
    ends = ["low 95%", "low 80%", "low 50%", "high 50%", "high 80%", "high 95%"]
    for row in rows:
        numbers = [float(row[end]) for end in ends]
        assert numbers == sorted(numbers)
    again = call("sample", run, "--out", tmp_path / "g")
    assert again.exit_code == 0
    assert (tmp_path / "f.csv").read_bytes() == (tmp_path / "g.csv").read_bytes()
    for option, rule in (
        (("--prompt", "a"), "for words; this run is of series"),
        (("--temperature", 0.5), "for music and words; got 0.5"),
    ):
        bad = call("sample", run, *option)
        assert (bad.exit_code, rule in " ".join(bad.stderr.split())) == (2, True)


def test_counts_in_groups_from_parquet(call, tmp_path):
    rng = np.random.default_rng(0)
    columns = {"shop": ["a", "b", "c"] * 30, "sold": rng.poisson(4, 90), "price": rng.random(90)}
    parquet.write_table(pa.table(columns), tmp_path / "own.parquet")
    changes = [*TINY, f"data={tmp_path / 'own.parquet'}", "head=poisson", "group=shop"]
    changes += ["targets=sold", "columns=sold,price", "horizon=2", "seeds=[1]"]
    result = call("run", "--only", "noisin", *sets(*changes), "--replicas", 2)
    assert result.exit_code == 0, result.output
    (record,) = records.read([tmp_path / "runs"])
    assert record.sizes["test"] == {"series": 3, "steps": 18}
    assert record.config.columns == ("sold", "price")
    run = next((tmp_path / "runs").glob("series-*/noisin-1-*"))
    told = call("evaluate", run, "--intervals", "--json")
    assert told.exit_code == 0, told.output
    assert [one["count"] for one in json.loads(told.output)["0"]["sold"]] == [18] * 3
    with next((run.parent / "samples").glob("*.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["series"] for row in rows] == ["a"] * 6 + ["b"] * 6 + ["c"] * 6


def test_left_out_columns_are_told(call, tmp_path):
    rows = "".join(f"2026-01-{i},{i % 7}\n" for i in range(10, 60))
    (tmp_path / "own.csv").write_text("day,x\n" + rows)
    result = call(
        "run", "--only", "plain", *sets(*TINY, f"data={tmp_path / 'own.csv'}", "seeds=[1]")
    )
    assert result.exit_code == 0, result.output
    assert "skipped column 'day': a cell must be a number, row 1 has '2026-01-10'" in result.stderr
    (page,) = (tmp_path / "runs").rglob("report.html")
    assert str(tmp_path) not in page.read_text()  # a page may be shown to others


BAD = [
    (sets("data=nowhere.csv"), "one of lorenz, mackey-glass, or a CSV .*; got 'nowhere.csv'"),
    (sets("data=own.csv", "columns=z"), "columns must be among x, y; got 'z'"),
    (sets("data=own.csv", "columns=x,x"), "columns: names must differ, got x, x"),
    (sets("data=own.csv", "targets=[]"), "targets: .*at least 1 item"),
    (sets("data=own.csv", "head=poisson"), "head poisson needs counts"),
    (sets("data=own.csv", "head=laplace"), "head: .*'gaussian' or 'poisson'"),
    (sets("data=own.csv", "horizon=0"), "horizon: .*greater than or equal to 1"),
    (sets("data=own.csv", "horizon=60"), "training needs horizon \\+ 1 = 61 rows"),
    (sets("data=own.csv", "valid_share=0.5", "test_share=0.5"), "must be below 1"),
    (sets("data=lorenz", "group=shop"), "lorenz is one series without a group"),
    (sets("data=own.csv", "chunk=3"), "unknown key 'chunk'"),
]


@pytest.mark.parametrize(("words", "rule"), BAD, ids=[" ".join(words)[6:] for words, _ in BAD])
def test_bad_input_ends_with_2_and_writes_nothing(call, tmp_path, words, rule):
    walk(tmp_path / "own.csv")
    result = call("run", *sets(*TINY), *words)
    assert result.exit_code == 2, result.output
    message = " ".join(result.stderr.split())
    assert re.search(rule, message), message
    assert [p.name for p in tmp_path.iterdir()] == ["own.csv"]


def test_baselines_are_those_of_a_run_of_the_same_settings(call, tmp_path):
    days = range(90)
    columns = {"shop": [day // 30 for day in days], "day": days, "note": ["-" for _ in days]}
    own = table(tmp_path / "own.csv", columns | {"sold": [day**2 % 7 for day in days]})
    of_series = ["columns=day,sold", "targets=sold", "head=poisson", "group=shop", "horizon=2"]
    told = call("data", "baselines", own, *sets(*of_series), "--out", "x.baselines.json")
    assert told.exit_code == 0, told.output
    assert "skipped" not in told.stderr  # the columns were named
    assert "own.csv, the last value, 2 steps before: train " in told.output
    run = call("run", "--only", "plain", *sets(f"data={own}", *TINY, *of_series, "seeds=[1]"))
    assert run.exit_code == 0, run.output
    (left,) = (tmp_path / "runs").rglob("*.baselines.json")
    assert (tmp_path / "x.baselines.json").read_text() == left.read_text()
    again = call("data", "baselines", own, *sets("columns=sold"))
    assert ", the last value, 4 steps before: " in again.output  # as the recipe says


NO_BASELINE = [
    (sets("lr=3"), "--set takes columns, targets, .* of series here; got 'lr=3'"),
    (sets("horizon=0"), "horizon: .*greater than or equal to 1, got 0"),
    (sets("columns=z"), "columns must be among x, y; got 'z'"),
    (sets("head=poisson"), "head poisson needs counts"),
    (sets("horizon=53"), "own.csv: training must leave a baseline a spread; got none"),
]


@pytest.mark.parametrize(("words", "rule"), NO_BASELINE, ids=[w[1] for w, _ in NO_BASELINE])
def test_what_has_no_baseline_is_refused(call, tmp_path, words, rule):
    own = walk(tmp_path / "own.csv")
    told = call("data", "baselines", own, *words)
    assert told.exit_code == 2, told.output
    assert re.search(rule, " ".join(told.stderr.split())), told.stderr


def test_intervals_are_of_series_and_levels_within_0_and_1(call, tmp_path):
    own = walk(tmp_path / "own.csv")
    assert call("run", "--only", "plain", *sets(f"data={own}", *TINY, "seeds=[1]")).exit_code == 0
    run = next((tmp_path / "runs").glob("series-*/plain-1-*"))
    told = call("evaluate", run, "--intervals")
    assert "noise off" in told.output
    assert "draws" not in told.output
    for words, rule in (
        (["--level", "1"], "--level must be within (0, 1), got [1.0]"),
        (["--plain"], "--intervals, --plain and --log-probs stand without each other"),
        (["--samples", "2"], "draws need noise, and plain has none"),
    ):
        bad = call("evaluate", run, "--intervals", *words)
        assert (bad.exit_code, rule in " ".join(bad.stderr.split())) == (2, True), bad.stderr
    for words, rule in (
        (["--level", "0.7"], "--level is of --intervals, which is not there; got [0.7]"),
        (["--plain"], "--plain is for runs trained by moments, got noise none"),
    ):
        bad = call("evaluate", run, *words)
        assert (bad.exit_code, rule in " ".join(bad.stderr.split())) == (2, True), bad.stderr


def test_runs_that_read_the_corpus_in_other_ways_are_not_averaged(call, tmp_path):
    own = walk(tmp_path / "own.csv")
    for warmup in (0, 5):
        words = sets(f"data={own}", *TINY, "seeds=[1]", "epochs=1", f"warmup={warmup}")
        assert call("run", "--only", "plain", *words).exit_code == 0
    runs = sorted((tmp_path / "runs").glob("series-*/plain-1-*"))
    for order in (runs, runs[::-1]):
        bad = call("evaluate", *order)
        assert bad.exit_code == 2
        assert "runs that are averaged must have one warmup, got [" in bad.stderr


def test_examples_are_the_same_everywhere(call):
    """The first clean values are exact in every arithmetic that rounds as IEEE 754 says."""
    listed = call("data", "list")
    assert listed.output.count("computed at each use") == len(dynamics.EXAMPLES) == 2
    verified = call("data", "verify", "lorenz", "mackey-glass")
    assert re.search(r"lorenz: \d+ steps of x, y, z; sha256 \w{64}", verified.output)
    assert "mackey-glass: computed at each use" in call("data", "fetch", "mackey-glass").output
    x, y, z = (float(one) for one in dynamics.lorenz(1)[0])
    assert abs(x) + abs(y) < 60
    assert 0 < z < 60
    glass = dynamics.mackey_glass(2000)[:, 0]
    assert 0.2 < glass.min() < 0.5
    assert 1.2 < glass.max() < 1.5
    for name in dynamics.EXAMPLES:
        first, again = dynamics.observed(name), dynamics.observed(name)
        assert first.tobytes() == again.tobytes()
        assert name in data.NAMES


def test_equations_hold_along_the_examples():
    """Central differences of finely sampled solutions are the right-hand sides."""
    x, y, z = dynamics.lorenz(2000, spacing=1e-3, substeps=1).T
    slopes = np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])[:, 1:-1]
    differences = np.stack([(one[2:] - one[:-2]) / 2e-3 for one in (x, y, z)])
    assert abs(differences - slopes).max() < 1e-3 * abs(slopes).max()
    glass = dynamics.mackey_glass(4000)[:, 0]
    before, now = glass[:-34], glass[17:-17]
    rates = 0.2 * before / (1 + before**10) - 0.1 * now
    change = glass[18:-16] - glass[16:-18]
    assert np.corrcoef(change / 2, rates)[0, 1] > 0.99


def test_settings_that_decide_the_corpus_are_not_searched(tmp_path):
    assert recipe.default(["task=series"]) == "series"
    text = '[base]\ntask = "series"\ndata = "lorenz"\n[rows.plain]\n[search]\nrow = "plain"\n'
    (tmp_path / "own.toml").write_text(text + "[search.space]\nhorizon = [1, 2]\n")
    with pytest.raises(recipe.LabError, match="horizon decides the corpus and is not searched"):
        recipe.load(str(tmp_path / "own.toml"))
    keys = {
        config.corpus_key(config.SeriesConfig(data="lorenz", **changes))
        for changes in ({}, {"horizon": 2}, {"columns": "x"}, {"lr": 0.1}, {"head": "gaussian"})
    }
    assert len(keys) == 3


def test_explain_counts_the_words_and_steps_of_the_run(call, tmp_path):
    (tmp_path / "own.txt").write_text("a a a b b c\n" * 60)
    few = call("explain", *sets("task=words", "data=own.txt", "min_count=61"))
    assert "4 outputs" in few.output, few.output  # a, b, <eos>, <unk>
    ours, more = (
        call("explain", *sets("task=series", "data=lorenz", f"window={w}", f"warmup={u}"))
        for w, u in ((50, 30), (80, 0))
    )
    assert ours.output.splitlines()[-1] == more.output.splitlines()[-1]
