"""The command: the main job end to end at a tiny size, bad input, and a clean stop."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab_cases import benchmark_folder, corpus, midi_folder
from noisin.lab import data, records, rolls
from noisin.lab.cli import app
from processes import HANGS, output_of, start

TINY = ["hidden_size=5", "epochs=3", "seeds=[1,2]", "test_samples=[1,2]", "chunk=8", "batch_size=2"]
COMMAND = [sys.executable, "-c", "from noisin.lab import main; main()"]


@pytest.fixture
def music(tmp_path):
    return midi_folder(tmp_path / "music")


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NOISIN_DATA", raising=False)

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120"})

    return run


def sets(*changes):
    return [word for change in changes for word in ("--set", change)]


def test_main_job_then_everything_on_its_runs(call, tmp_path, music):
    """Train, report, do nothing again, evaluate, average, sample: on the user's MIDI files."""
    result = call("run", *sets(f"data={music}", *TINY))
    assert result.exit_code == 0, result.output
    assert "6 runs, 6 to do" in result.output
    assert re.search(r"^plain +\d+\.\d+±\d", result.output, re.M)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"bach-\w{6}", folder.name)  # changed settings have their own folder
    found = records.read([folder])
    assert sorted((r.row, r.seed) for r in found) == [
        (row, seed) for row in ("noisin", "plain", "variational") for seed in (1, 2)
    ]
    page = (folder / "report.html").read_text()
    assert len(page) > 100_000
    assert page.count("a real piece, of validation</text>") == 2
    samples = sorted(p.name for p in (folder / "samples").iterdir())
    assert len(samples) == 4
    assert "plain.mid" in samples
    assert "plain.wav" in samples

    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")}
    again = call("run", *sets(f"data={music}", *TINY))
    assert again.exit_code == 0
    assert "6 runs, 0 to do" in again.output
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")} == files

    (noisy,) = [r for r in found if (r.row, r.seed) == ("noisin", 1)]
    run = folder / f"noisin-1-{noisy.hash}"
    other = next(folder.glob("plain-2-*"))
    one = call("evaluate", run, "--samples", 1, "--samples", 4, "--json")
    assert one.exit_code == 0, one.output
    scores = json.loads(one.output)
    assert f"{scores['0']['unscored']:.4f}" == f"{noisy.test:.4f}"
    assert scores["1"]["unscored"] > scores["4"]["unscored"]
    told = call("evaluate", run, "--samples", 1, "--samples", 4).output.splitlines()
    assert told[0].split()[1:] == ["unscored", "scored", "factorised"]
    assert told[2].split()[:3] == ["one", "draw", f"{scores['1']['unscored']:.4f}"]
    assert told[3].split()[-1] == f"{scores['4']['factorised']:.4f}"
    valid = call("evaluate", run, "--split", "valid")
    assert f"{noisy.scores['valid']['unscored']:.4f}" in valid.output
    both = call("evaluate", run, other, "--json")
    alone = json.loads(call("evaluate", other, "--json").output)
    mean = (scores["0"]["unscored"] + alone["0"]["unscored"]) / 2
    assert json.loads(both.output)["0"]["unscored"] < mean

    refused = call("sample", run, "--out", tmp_path)
    assert refused.exit_code == 2
    assert "must be the name of a file without its ending" in refused.output
    drawn = call("sample", run, "--length", 16, "--out", tmp_path / "piece")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "piece.mid").read_bytes()[:4] == b"MThd"
    assert (tmp_path / "piece.wav").read_bytes()[:4] == b"RIFF"
    page = call("report", tmp_path / "runs", "--out", tmp_path / "page.html")
    assert page.exit_code == 0, page.output
    assert noisy.hash in (tmp_path / "page.html").read_text()


def test_benchmark_set_from_data_dir(call, tmp_path):
    folder = benchmark_folder()
    words = ["run", "jsb-chorales", "--only", "rnn-noisin", "--data-dir", folder]
    result = call(*words, *sets("hidden_size=4", "epochs=1", "seeds=[1]", "test_samples=[1]"))
    assert result.exit_code == 0, result.output
    (record,) = records.read([tmp_path / "runs"])
    assert record.sizes["train"] == {"pieces": 229, "steps": 13807}
    assert record.config.cell == "tanh"


def test_data_verbs(call):
    folder = benchmark_folder()
    listed = call("data", "list", "--data-dir", folder)
    assert all(name in listed.output for name in data.NAMES)
    checked = call("data", "verify", "jsb-chorales", "nottingham", "--data-dir", folder)
    assert checked.exit_code == 0, checked.output
    assert "train 229 pieces 13807 steps" in checked.output


def test_explain_names_model_sites_paths_and_memory(call):
    result = call("explain", "bach")
    assert result.exit_code == 0
    lines = [line.split("  ") for line in result.output.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    noisy = ["rnn", "0", "hidden_l0", "hidden * Gaussian(1.0)", "step", "sample"]
    assert any(row[:6] == noisy and row[7] == "cpu" for row in cells)
    assert any(row[:4] == ["rnn", "0", "-", "no noise"] and "torch" in row for row in cells)
    assert "122,968 parameters" in result.output  # 4·128·(88+128+2) + 88·(128+1)


ONE = ["run", "--only", "noisin"]
BAD = [
    (["run", "nosuch"], "a recipe is one of bach, .*got 'nosuch'"),
    (["run", *sets("hiden_size=3")], "did you mean hidden_size"),
    ([*ONE, *sets("noise=hiden * Gaussian(1)")], "did you mean hidden"),
    ([*ONE, *sets("noise=hidden * Gausian(1)")], "did you mean Gaussian"),
    (
        ["run", "--only", "noisin", *sets("noise=hidden * Gaussian(0)")],
        "std must be a finite number > 0, got 0",
    ),
    (
        ["run", "--only", "noisin", *sets("noise=hidden * Gaussian(-2)")],
        "std must be a finite number > 0, got -2",
    ),
    (
        ["run", "--only", "noisin", *sets("data=MIDI", "noise=between * Gaussian(1)")],
        "it needs num_layers >= 2",
    ),
    (
        ["run", "--only", "noisin", *sets("data=MIDI", "noise=weight_hh[9] * Gaussian(1)")],
        r"weight_hh\[layer\] must be within",
    ),
    (["run", *sets("data=EMPTY")], "none of them readable"),
    (["run", *sets("data=nowhere")], "a folder of MIDI files; got 'nowhere', nothing of that name"),
    (["run", *sets("data=TEXT")], "got .*TEXT', a file. task=music reads MIDI .* task=words text"),
    (["run", *sets("task=series", "data=MIDI")], "CSV or Parquet file; got .*music', a folder"),
    (["run", "jsb-chorales", "--data-dir", "CUT"], "must be a whole .npz"),
    (["run", "jsb-chorales", "--data-dir", "WRONG"], "must have sha256 .* got"),
    (["run", "jsb-chorales", "--data-dir", "nowhere"], "--data-dir must be a folder, got nowhere"),
    (["run", *sets("data=MIDI"), "--out", "FILE/runs"], "must be a folder that can be written"),
    (["evaluate", "EMPTY"], "a run is a folder with a record.json"),
    (["evaluate", "EMPTY", "--samples", "2", "--samples", "3"], "divide the largest"),
    (["evaluate", "EMPTY", "--split", "dev"], "must be one of train, valid, test; got 'dev'"),
    (["sample", "EMPTY"], "a run is a folder"),
    (["report", "EMPTY"], "a report needs records"),
    (["explain", *sets("lr=0")], "lr: .*greater than 0"),
    (["run", *sets("seeds=[18446744073709551616]")], "seeds.* less than"),
    (["run", "--only", "plain", *sets("nonzeros=300")], "nonzeros must be at most hidden_size"),
    (["run", *sets("data=")], "data must name a corpus or a path"),
    (["run", *sets("data=" + "a" * 300)], "data must be a path that can be read"),
    (["run", *sets("task=words", "data=TEXT", "batch_size=999")], "batch_size must be at most"),
    (["evaluate", "EMPTY", "--seed", "99999999999999999999999"], "Invalid value for .--seed"),
    (["data", "fetch", "ptd"], "a corpus is one of .*got 'ptd'"),
    (["bench", "--only", "TCN"], "--only must be one of LSTM, GRU, .* laws; got TCN"),
    (["bench", "--rounds", "0"], "Invalid value for .--rounds"),
    (["data", "verify", "nothing"], "data must be one of|a corpus is one of"),
]


@pytest.mark.parametrize(("words", "rule"), BAD, ids=[" ".join(words)[:60] for words, _ in BAD])
def test_bad_input_ends_with_2_and_writes_nothing(call, tmp_path, music, words, rule):
    for name in ("EMPTY", "CUT", "WRONG"):
        (tmp_path / name).mkdir()
    (tmp_path / "EMPTY" / "bad.mid").write_bytes(b"junk")
    (tmp_path / "TEXT").write_text("a b c\n" * 9)
    (tmp_path / "FILE").write_text("a file where a folder is asked for")
    rolls.write_npz(corpus(), tmp_path / "WRONG" / "jsb_chorales.npz")
    whole = (tmp_path / "WRONG" / "jsb_chorales.npz").read_bytes()
    (tmp_path / "CUT" / "jsb_chorales.npz").write_bytes(whole[: len(whole) // 2])
    cache = tmp_path / "cache"  # a text that is whole may be numbered
    before = sorted(p for p in tmp_path.rglob("*") if cache not in (p, *p.parents))
    result = call(*[word.replace("MIDI", str(music)) for word in words])
    assert result.exit_code == 2, result.output
    message = " ".join(result.stderr.split())
    assert re.search(rule, message), message
    assert "Traceback" not in message
    assert sorted(p for p in tmp_path.rglob("*") if cache not in (p, *p.parents)) == before


def test_diverging_run_ends_with_2_and_the_others_are_kept(call, tmp_path, music):
    """An infinite step makes the loss not finite: it is told, and the plain row still reported."""
    text = f"""
    [base]
    data = "{music}"
    hidden_size = 4
    epochs = 2
    test_samples = [1]
    [rows.plain]
    [rows.wild]
    optimizer = "sgd"
    cell = "relu"
    lr = 1e38
    """
    (tmp_path / "wild.toml").write_text(text)
    result = call("run", tmp_path / "wild.toml", *sets("seeds=[1]"))
    assert result.exit_code == 2
    assert re.search(r"wild, seed 1 diverged: .* is (nan|inf) (at|after) update \d", result.stderr)
    found = {r.row: r for r in records.read([tmp_path / "runs"])}
    assert (found["plain"].status, found["wild"].status) == ("finished", "diverged")
    page = (tmp_path / "runs" / "wild" / "report.html").read_text()
    assert "wild diverged, seed 1" in page
    checkpoint = next((tmp_path / "runs" / "wild").glob("wild-*/checkpoint.safetensors"))
    assert checkpoint.stat().st_size > 0


def alive(group):
    """Return the processes that are left of a group, but for those that have ended unnoticed."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def begun(words, folder, env, runs=2):
    """Start the command, and return it in the middle of its runs."""
    process = start([*COMMAND, *words], cwd=folder, env=env)
    deadline = time.monotonic() + HANGS
    while len(list(folder.rglob("checkpoint.safetensors"))) < runs and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    assert process.poll() is None, output_of(process)
    assert time.monotonic() < deadline
    return process


def interrupt(words, folder, env, runs=2):
    """Start the command, press Ctrl-C in the middle, and return its output and exit code."""
    process = begun(words, folder, env, runs)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    return output_of(process), process.returncode


def test_it_stops_when_asked_to_while_its_workers_begin(tmp_path, music):
    changes = [*TINY[:1], "epochs=100000", "patience=100000", "seeds=[1]", "chunk=8"]
    env = {"NOISIN_CACHE": str(tmp_path / "cache")}
    process = start([*COMMAND, "run", *sets(f"data={music}", *changes)], cwd=tmp_path, env=env)
    output = process.stdout.readline()
    assert "to do" in output
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    output += output_of(process)
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find processes in")
def test_workers_end_with_a_command_that_was_killed(tmp_path, music):
    changes = [*TINY[:1], "epochs=100000", "patience=100000", "seeds=[1]", "chunk=8"]
    rows = ["--only", "variational", "--only", "noisin", "--out", "killed"]
    env = {"NOISIN_CACHE": str(tmp_path / "cache")}
    process = begun(["run", *rows, *sets(f"data={music}", *changes)], tmp_path, env)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + HANGS
    while (left := alive(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left


def test_interrupted_run_ends_as_an_undisturbed_one(call, tmp_path, music):
    changes = [*TINY[:1], "epochs=80", "patience=80", "seeds=[1]", "chunk=8", "batch_size=2"]
    rows = ["--only", "variational", "--only", "noisin"]
    words = ["run", *rows, *sets(f"data={music}", *changes, "test_samples=[1]")]
    env = {"NOISIN_CACHE": str(tmp_path / "cache")}
    output, code = interrupt([*words, "--out", "cut"], tmp_path, env)
    assert code == 130, output
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    assert list(tmp_path.rglob("record.json")) == []
    names = {p.name for p in (tmp_path / "cut").rglob("*") if p.is_file()}
    checkpoints = {"checkpoint.safetensors", "checkpoint-before.safetensors"}
    assert names == {*checkpoints, ".lock"}  # nothing half-written beside them

    for out in ("cut", "whole"):
        result = call(*words, "--out", out)
        assert result.exit_code == 0, result.output
    cut, whole = ({r.row: r for r in records.read([tmp_path / out])} for out in ("cut", "whole"))
    assert set(cut) == set(whole) == {"variational", "noisin"}
    for row, record in whole.items():
        assert cut[row].weights == record.weights
        assert cut[row].scores == record.scores
        assert cut[row].monte_carlo == record.monte_carlo
        assert [e.valid for e in cut[row].history] == [e.valid for e in record.history]


def test_an_interrupted_command_begins_no_other_run(tmp_path, music):
    changes = [*TINY[:1], "epochs=100000", "patience=100000", "seeds=[1]", "chunk=8"]
    words = ["run", *sets(f"data={music}", *changes), "--processes", "1", "--out", "cut"]
    env = {"NOISIN_CACHE": str(tmp_path / "cache")}
    output, code = interrupt(words, tmp_path, env, runs=1)
    assert code == 130, output
    (_,) = (tmp_path / "cut").rglob("checkpoint.safetensors")  # its worker held another


def test_words_from_the_users_own_text(call, tmp_path):
    """Train on a text file, then score, average and write log-probabilities and text."""
    text = "the cat sat on the mat\nthe dog sat\n\non the mat the cat sat\n" * 12
    (tmp_path / "own text.txt").write_text(text)
    changes = ["task=words", f"data={tmp_path / 'own text.txt'}", "hidden_size=6", "epochs=2"]
    changes += ["batch_size=4", "window=5", "test_samples=[1,2]", "seeds=[1,2]"]
    result = call("run", "--only", "plain", "--only", "noisin", *sets(*changes))
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("ptb-")
    assert (folder / "samples" / "noisin.txt").read_text().strip()
    assert "perplexity" in (folder / "report.html").read_text()
    runs = sorted(folder.glob("noisin-*"))
    assert len(runs) == 2
    scored = call("evaluate", *runs, "--samples", 2, "--json")
    assert scored.exit_code == 0, scored.output
    assert set(json.loads(scored.output)) == {"0", "2"}
    listed = call("evaluate", runs[0], "--log-probs", tmp_path / "p.json", "--split", "valid")
    assert listed.exit_code == 0, listed.output
    tokens = json.loads((tmp_path / "p.json").read_text())
    assert tokens[-1]["token"] == "<eos>"
    words = call("sample", runs[0], "--length", 12, "--prompt", "the cat", "--temperature", 0.5)
    assert words.exit_code == 0, words.output
    assert words.output.startswith("the cat")
    assert (runs[0] / "sample-1.txt").read_text().startswith("the cat")
    page = (runs[0] / "sample-1.html").read_text()
    assert page.count("<i>") == 2  # the prompt
    assert page.count('<span class="token" style="--p:0.') == 12 + 3  # and those of the legend
    bad = call("sample", runs[0], "--prompt", "the zebra")
    assert (bad.exit_code, "known words; got zebra" in bad.stderr) == (2, True)
    (runs[0] / "sample-1.old").touch()
    again = call("sample", runs[0], "--length", 12)
    assert again.output.split("\n")[-2] == ", ".join(
        str(runs[0] / f"sample-1.{ending}") for ending in ("txt", "html")
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own text.txt").rename(tmp_path / "elsewhere" / "own text.txt")
    gone = call("evaluate", *runs, "--json")
    assert (gone.exit_code, "--data-dir names; got no" in gone.stderr) == (2, True)
    moved = call("evaluate", *runs, "--json", "--data-dir", tmp_path / "elsewhere")
    assert json.loads(moved.output)["0"] == json.loads(scored.output)["0"]


@pytest.mark.parametrize(
    ("content", "rule"),
    [(b"", "at least 3 lines"), (b"one\n", "got 1"), (b"\xff\xfe\n" * 9, "must be UTF-8")],
)
def test_bad_text_ends_with_2_and_writes_nothing(call, tmp_path, content, rule):
    (tmp_path / "own.txt").write_bytes(content)
    result = call("run", *sets("task=words", f"data={tmp_path / 'own.txt'}"))
    assert result.exit_code == 2, result.output
    assert rule in " ".join(result.stderr.split())
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert [name for name in left if not name.endswith(".lock")] == ["own.txt"]


def test_a_folder_of_a_corpus_name_does_not_hide_the_corpus(call, tmp_path):
    for name in ("bach", "ptb"):
        (tmp_path / name).mkdir()
    result = call("explain", "ptb", "--only", "plain")
    assert result.exit_code == 0, result.output
    assert "10000 outputs" in result.output


def test_bench_says_what_a_law_costs(call):
    result = call("bench", "--only", "laws", "--rounds", "1", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert re.search(r"Bernoulli\(keep=0.5\) +\d+\.\d+ ms", result.output)
