"""Records and reports: tables come from records alone, and say what the records say."""

import json
import math
import re
import statistics

import pytest

from lab_cases import config, corpus, rolls
from noisin.lab import LabError, panels, records, report, train
from noisin.lab.config import MusicConfig
from noisin.lab.report import Estimate, Piece
from noisin.lab.rows import Published, Row
from noisin.lab.train import Job


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Six runs: two rows, three seeds; and their folder."""
    folder = tmp_path_factory.mktemp("runs")
    published = Published(test=8.58, source="a paper")
    rows = {
        "plain": Row(
            config=config(noise="none"), label="plain", baseline="plain", published=published
        ),
        "noisy": Row(config=config(), label="<noisy>", baseline="plain", note="Chosen <so>."),
    }
    for seed in (1, 2, 3):
        for name, row in rows.items():
            train.run(Job("tiny", "A title", name, row, seed, corpus().digest(), folder), corpus())
    return folder


def test_record_comes_back_as_it_was_written(done):
    found = records.read([done])
    assert len(found) == 6
    for record in found:
        path = done / f"{record.row}-{record.seed}-{record.hash}" / "record.json"
        assert path.read_text().count("\n") == 1
        assert records.Record.model_validate_json(path.read_text()) == record
        assert record.environment.threads == 1
        assert record.sizes["test"] == {"pieces": 4, "steps": 29}


def test_a_record_of_what_is_not_finite_can_be_read(done, tmp_path):
    """Draws may be so strong that a network diverges under them; a label has any characters."""
    record = records.read([done])[0]
    scores = {1: {"unscored": math.nan, "scored": math.inf}}
    odd = record.model_copy(update={"monte_carlo": scores, "label": "a\u2028b\x0cc"})
    records.write(odd, tmp_path / "record.json")
    (again,) = records.read([tmp_path])
    assert again.label == odd.label
    assert math.isnan(again.monte_carlo[1]["unscored"])
    assert again.monte_carlo[1]["scored"] == math.inf
    json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)
    report.write([again], tmp_path / "r.html")
    assert "nan" in (tmp_path / "r.html").read_text()


def test_lines_of_many_runs_are_read_and_one_run_once(done, tmp_path):
    text = "".join(p.read_text() for p in sorted(done.rglob("record.json")))
    (tmp_path / "all.jsonl").write_text(text)
    assert len(records.read([tmp_path / "all.jsonl"])) == 6
    assert len(records.read([tmp_path, done])) == 6
    (tmp_path / "all.jsonl").write_text("\n" + text.replace("\n", "\n \r\n\n"))
    assert len(records.read([tmp_path / "all.jsonl"])) == 6


@pytest.mark.parametrize("damage", ["{}", '{"schema_version": 2}', "not json"])
def test_what_is_no_record_is_refused(tmp_path, damage):
    (tmp_path / "bad.jsonl").write_text(damage + "\n")
    with pytest.raises(LabError, match=r"bad\.jsonl, line 1: no record"):
        records.read([tmp_path / "bad.jsonl"])


def test_no_records_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(LabError, match="needs records"):
        records.read([tmp_path])
    with pytest.raises(LabError, match="must be a file of records"):
        records.read([tmp_path / "nothing"])


def test_table_is_the_mean_and_the_paired_difference(done):
    rows = report.by_row(records.read([done]))
    lines = {line.name: line for line in report.summary(rows)}
    assert len(lines) == 2
    plain = [r.test for r in rows["plain"]]
    noisy = [r.test for r in rows["noisy"]]
    apart = [n - p for n, p in zip(noisy, plain, strict=True)]
    expected = Estimate(statistics.fmean(apart), statistics.stdev(apart), 3)
    assert lines["noisy"].difference == expected
    assert lines["plain"].difference is None
    assert lines["plain"].scores["test"] == Estimate.of(plain)
    assert lines["plain"].monte_carlo == {}
    assert list(lines["noisy"].monte_carlo) == [1, 2, 4]


def test_runs_of_another_layout_are_a_row_of_their_own(done):
    found = records.read([done])
    together = found[0].environment.model_copy(update={"processes": 2, "precision": "bf16-mixed"})
    other = found[0].model_copy(update={"environment": together, "hash": "another"})
    rows = report.by_row([*found, other])
    name = f"{other.row} (2 processes, bf16-mixed)"
    assert set(rows) == {"plain", "noisy", name}
    assert rows[name] == [other]
    assert len(rows[other.row]) == 3


def test_settings_say_how_a_row_was_computed(done):
    """Also where all rows were computed so, for whoever runs one of them again."""
    low = {"precision": "bf16-mixed"}
    found = [
        record.model_copy(update={"environment": record.environment.model_copy(update=low)})
        for record in records.read([done])
    ]
    lines = report.summary(report.by_row(found))
    assert {line.name for line in lines} == {"plain", "noisy"}
    assert all(line.settings.split(", ")[-1] == "bf16-mixed" for line in lines)


def test_difference_is_over_the_seeds_both_have(done):
    rows = report.by_row(records.read([done]))
    rows["plain"] = [r for r in rows["plain"] if r.seed != 2]
    (line,) = [line for line in report.summary(rows) if line.name == "noisy"]
    assert line.difference is not None
    assert line.difference.count == 2
    assert line.paired == f"{line.difference} (2)"
    whole = report.summary(report.by_row(records.read([done])))
    assert [line.paired for line in whole] == [str(line.difference or "") for line in whole]


def test_estimate_of_one_run_has_no_spread():
    assert str(Estimate.of([1.25])) == "1.250"
    assert str(Estimate.of([1.0, 2.0])) == "1.500±0.707"
    assert Estimate.of([]) is None


def test_diverged_runs_are_told_and_left_out(done, tmp_path):
    found = records.read([done])
    broken = found[0].model_copy(
        update={"status": "diverged", "reason": "the loss is nan at update 3", "scores": {}}
    )
    found = [broken, *found[1:]]
    line = report.summary(report.by_row(found))
    (diverged,) = [one for one in line if one.diverged]
    assert diverged.scores["test"] is not None
    assert diverged.scores["test"].count == 2
    report.write(found, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "diverged, seed 1: the loss is nan at update 3." in page


def test_page_holds_everything_and_every_number(done, tmp_path):
    found = records.read([done])
    heard = {"plain & simple": rolls([12])[0], "noisy": rolls([12], 1)[0]}
    pieces = [Piece(n, drawing=panels.rolls(n, {"sample": r}), roll=r) for n, r in heard.items()]
    report.write(found, tmp_path / "r.html", pieces=pieces)
    page = (tmp_path / "r.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)[^"#]*"', page) == []  # nothing outside the file
    assert page.count("<svg") == 2 + 2  # curves, radius, two rolls
    assert page.count("data:audio/wav;base64,UklGR") == 2
    assert "A title" in page
    assert "&lt;noisy&gt;" in page  # labels are text, not markup
    assert "<noisy>" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    assert "8.58 (a paper)" in page
    assert "&lt;noisy&gt;: Chosen &lt;so&gt;." in page
    rows = report.by_row(found)
    numbers = 0
    for line in report.summary(rows):
        for estimate in (*line.scores.values(), line.scored, *line.monte_carlo.values()):
            numbers += 1
            assert str(estimate) in page
        assert line.difference is None or str(line.difference) in page
    assert numbers == 4 + 7
    for record in found:
        assert record.hash in page
        assert f"{record.test:.4f}" in page


def test_same_records_give_the_same_page(done, tmp_path):
    found = records.read([done])
    for name in ("a.html", "b.html"):
        report.write(found, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_runs_under_other_settings_are_rows_of_their_own(done):
    """Two settings of one row are never averaged as if they were seeds."""
    found = records.read([done])
    other = [
        record.model_copy(update={"config": record.config.model_copy(update={"lr": 0.5})})
        for record in found
        if record.row == "noisy"
    ]
    rows = report.by_row([*found, *other])
    assert sorted(rows) == ["noisy (lr=0.02)", "noisy (lr=0.5)", "plain"]
    assert [len(runs) for runs in rows.values()] == [3, 3, 3]
    settings = {line.name: line.settings for line in report.summary(rows)}
    assert settings["noisy (lr=0.5)"] == "lr 0.5"


def changed(runs, shift=0.0, **settings):
    """Return runs as if under other settings, their test scores shifted."""
    found = []
    for run in runs:
        config = run.config.model_copy(update=settings)
        scores = run.scores | {"test": {run.metric: run.test + shift}}
        own = {"config": config, "hash": config.hash(run.corpus, run.seed), "scores": scores}
        found.append(run.model_copy(update=own))
    return found


def test_rows_are_compared_with_the_baseline_under_their_settings(done):
    found = records.read([done])
    before = {line.name: line for line in report.summary(report.by_row(found))}["noisy"].difference
    assert before is not None
    runs = [*found, *changed(found, shift=9.0, epochs=8)]
    lines = {line.name: line for line in report.summary(report.by_row(runs))}
    assert set(lines) == {f"{row} (epochs={n})" for row in ("plain", "noisy") for n in (4, 8)}
    for epochs in (4, 8):
        noisy, plain = (lines[f"{row} (epochs={epochs})"] for row in ("noisy", "plain"))
        assert (noisy.baseline, plain.difference) == (f"plain (epochs={epochs})", None)
        assert noisy.difference is not None
        assert noisy.difference.mean == pytest.approx(before.mean)
    heard = report.worth_hearing(report.by_row([run for run in runs if run.best < 99]))
    assert [name.partition(" ")[0] for name in heard] == ["plain", "noisy"]


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ({"epochs": 8}, [{}, {"epochs": 8}], "plain (epochs=8)"),  # the only variant of its row
        ({"lr": 0.5}, [{}, {"epochs": 8}], "plain (epochs=4)"),
        ({"epochs": 9}, [{}, {"epochs": 8}], ""),
        ({"lr": 0.5}, [{"lr": 0.1}], "plain"),  # nothing to choose from
    ],
)
def test_a_baseline_of_several_settings_is_chosen_by_them(done, own, others, expected):
    found = records.read([done])
    plain, noisy = ([run for run in found if run.row == row] for row in ("plain", "noisy"))
    runs = [*changed(noisy, **own), *(run for one in others for run in changed(plain, **one))]
    (line,) = [one for one in report.summary(report.by_row(runs)) if one.name == "noisy"]
    assert line.baseline == expected
    assert (line.difference is None) == (not expected)


def test_averages_of_another_size_are_a_row_of_their_own(done):
    plain = [one for one in records.read([done]) if one.row == "plain"]
    made = [
        one.model_copy(update={"row": "avg", "models": k, "hash": f"{k} of {one.hash}"})
        for one in plain
        for k in (2, 3)
    ]
    rows = report.by_row([*plain, *made])
    assert {name: [run.seed for run in runs] for name, runs in rows.items()} == {
        "plain": [1, 2, 3],
        "avg (2 models)": [1, 2, 3],
        "avg (3 models)": [1, 2, 3],
    }


def test_a_seed_is_in_a_mean_once(done):
    """Runs of the same settings and seed are of another hash where numbers have changed since."""
    found = records.read([done])
    old, older = (
        [run.model_copy(update={"hash": version + run.hash}) for run in changed(found, shift)]
        for version, shift in (("old", 1.0), ("older", 2.0))
    )
    rows = report.by_row([*old, *older[:2], *found, *found])
    seeds = {name: [run.seed for run in runs] for name, runs in rows.items()}
    again = [run.seed for run in older[:2] if run.row == "plain"]
    assert seeds["plain"] == seeds["plain (another version)"] == [1, 2, 3]
    assert seeds.get("plain (another version, 2)", []) == again
    assert sum(map(len, rows.values())) == 14
    assert rows["plain"] == [run for run in found if run.row == "plain"]
    lines = {line.name: line for line in report.summary(rows)}
    assert lines["noisy"].baseline == "plain"
    assert lines["noisy (another version)"].baseline == "plain (another version)"


def test_the_hash_of_a_record_is_that_of_its_settings(done):
    found = records.read([done])
    assert all(run.current for run in found)
    assert all(run.current for run in changed(found, lr=0.5))
    pairs = [run.model_copy(update={"models": 2}) for run in found]
    assert not any(run.current for run in pairs)


def test_settings_are_copied_a_few_times_a_record(done, monkeypatch):
    calls, copied = [], MusicConfig.without_path
    monkeypatch.setattr(MusicConfig, "without_path", lambda c: calls.append(1) or copied(c))
    found = records.read([done])
    many = [run.model_copy(update={"seed": seed}) for run in found for seed in range(20)]
    (rows,) = report.sections(many).values()
    report.summary(rows)
    assert len(calls) < 5 * len(many)


def test_where_the_data_lies_makes_no_other_row(done):
    found = records.read([done])
    moved = [
        one.model_copy(update={"config": one.config.model_copy(update={"data": f"/{one.seed}/x"})})
        for one in found
    ]
    rows = report.by_row(moved)
    assert sorted(rows) == ["noisy", "plain"]
    lines = {line.name: line for line in report.summary(rows)}
    assert [line.seeds for line in lines.values()] == [3, 3]
    assert lines["noisy"].difference is not None


def test_runs_on_other_data_are_other_rows(done):
    found = [one for one in records.read([done]) if one.row == "plain"]
    data = {"config": found[0].config.model_copy(update={"data": "/home/me/own"})}
    other = [one.model_copy(update={**data, "corpus": "ab" * 32}) for one in found]
    same = [one.model_copy(update=data) for one in found]
    rows = report.by_row([*same, *other])
    mine = f"plain (sha256 {found[0].corpus[:8]})"
    assert {name: len(runs) for name, runs in rows.items()} == {
        mine: 3,
        "plain (sha256 abababab)": 3,
    }
    assert not any("/home" in name for name in report.by_row([*found, *same]))


def test_corpora_are_tables_of_their_own(done):
    found = records.read([done])
    other = [record.model_copy(update={"corpus": "another"}) for record in found]
    other = [
        r.model_copy(update={"config": r.config.model_copy(update={"data": "b"})}) for r in other
    ]
    tables = report.sections([*found, *other])
    assert list(tables) == ["A title (tiny)", "A title (b)"]
    assert [len(runs) for rows in tables.values() for runs in rows.values()] == [3] * 4


def test_recipes_of_one_title_are_tables_of_their_own(done):
    found = records.read([done])
    other = [record.model_copy(update={"recipe": "other"}) for record in found]
    tables = report.sections([*found, *other])
    assert list(tables) == ["A title, recipe tiny", "A title, recipe other"]
    assert [len(runs) for rows in tables.values() for runs in rows.values()] == [3] * 4
    assert list(report.sections(found)) == ["A title"]


def test_draws_are_under_their_own_heading(done, tmp_path):
    found = records.read([done])
    cut = [
        record.model_copy(update={"monte_carlo": {2: record.monte_carlo[2]}, "row": "other"})
        for record in found
        if record.row == "noisy"
    ]
    report.write([*found, *cut], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert re.findall(r"<th>K = (\d+)</th>", page) == ["1", "2", "4"]
    (line,) = [x for x in report.summary(report.by_row(cut)) if x.name == "other"]
    cells = f"<td>—</td><td>{line.monte_carlo[2]}</td><td>—</td>"
    assert cells in page


def test_rows_that_were_cut_short_are_marked(done, tmp_path):
    found = records.read([done])
    assert all(line.limited == 3 for line in report.summary(report.by_row(found)))
    report.write(found, tmp_path / "r.html")
    assert "<td>4*</td>" in (tmp_path / "r.html").read_text()
