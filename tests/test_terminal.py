"""What the command says: help with examples, JSON, one-line errors, the version."""

import json
import re
import subprocess
import sys

import pytest

import noisin
from lab_cases import midi_folder
from noisin.lab import terminal
from processes import HANGS
from test_cli import COMMAND, TINY, sets
from test_cli import call as call  # a fixture

VERBS = ("run", "sweep", "evaluate", "sample", "report", "explain", "bench")


def test_without_arguments_it_says_what_there_is(call):
    for words in ((), ("--help",)):
        text = call(*words).output
        assert all(f" {verb} " in text for verb in (*VERBS, "data"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_examples(call, verb):
    text = call(verb, "--help").output
    assert f"noisin {verb}" in text.split("Examples:")[1]


def test_version(call):
    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"{noisin.__version__}\n")


def test_completion_is_there(call):
    assert "--install-completion" in call("--help").output


def test_json_is_json_alone(call, tmp_path):
    midi_folder(tmp_path / "music")
    run = call("run", "--only", "noisin", "--json", *sets("data=music", *TINY))
    assert run.exit_code == 0, run.output
    (row,) = json.loads(run.stdout)
    assert (row["row"], [one["seed"] for one in row["runs"]]) == ("noisin", [1, 2])
    assert {"train", "valid", "test"} == set(row["runs"][0]["scores"])
    report = call("report", "runs", "--json")
    assert json.loads(report.stdout) == [row]
    assert not (tmp_path / "report.html").exists()


def test_each_row_is_explained_on_its_own_corpus(call, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal.console, "quiet", True)  # as a run with --json before it leaves it
    (tmp_path / "own.txt").write_text("the cat sat on the mat\n" * 40)
    (tmp_path / "other.txt").write_text("a dog sat\n" * 40)
    rows = {"first": "own.txt", "second": "other.txt", "third": "ptb"}
    text = "".join(f'[rows.{row}]\ndata = "{name}"\n' for row, name in rows.items())
    (tmp_path / "mine.toml").write_text(f'title = "Mine"\n[base]\ntask = "words"\n{text}')
    result = call("explain", "mine.toml")
    assert result.exit_code == 0, result.output
    outputs = dict(re.findall(r"^(\w+): .*, (\d+) outputs$", result.output, re.M))
    assert outputs == {"first": "7", "second": "5", "third": "10000"}  # <eos> and <unk> among them


def test_an_error_is_one_line_and_its_place_is_shown_on_request(call):
    short, long = call("run", "nothing"), call("--debug", "run", "nothing")
    assert short.exit_code == long.exit_code == 2
    assert len(short.output.splitlines()) == 1
    assert "Traceback" in long.output
    assert long.output.splitlines()[-1] == short.output.splitlines()[0]


@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_foresaw_is_one_line_too(debug):
    code = f"""
import noisin.lab.cli as cli
def broken(*_, **__): raise KeyError("lost")
cli.records.read = broken
import sys; sys.argv = ["noisin", *{["--debug"] if debug else []}, "report", "."]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == debug
    if not debug:
        assert done.stderr.strip() == "noisin: KeyError: 'lost'; --debug shows where"


def test_what_is_not_finite_is_a_string_in_json(capsys):
    terminal.dump({0: {"nll": float("nan"), "rmse": float("inf"), "more": 0.5}})
    scores = {"nll": "NaN", "rmse": "Infinity", "more": 0.5}
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"0": scores}


def test_names_between_colons_are_no_pictures(capsys, monkeypatch):
    monkeypatch.setattr(terminal.console, "quiet", False)
    terminal.say(":cat: :smile:")
    assert capsys.readouterr().out == ":cat: :smile:\n"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_closed_output_is_no_error(closed):
    command = ["sh", "-c", f'"$@" {closed}', "sh", *COMMAND, "data", "list"]
    assert subprocess.run(command, check=False, timeout=HANGS).returncode == 0


def test_a_network_larger_than_any_memory_is_refused(call, tmp_path):
    midi_folder(tmp_path / "music")
    result = call("run", *sets("data=music", *TINY, "hidden_size=100000000000"))
    assert (result.exit_code, "there must be memory for it" in result.stderr) == (2, True)
