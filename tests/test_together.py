"""Runs on two processes: started by the command, by torchrun, by SLURM; killed, and gone on."""

import dataclasses
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from conftest import assert_close_curves
from lab_cases import config, corpus
from noisin.lab import LabError, checkpoint, records, train
from noisin.lab.cli import app
from noisin.lab.config import WordsConfig
from noisin.lab.music import MusicTask
from noisin.lab.ranks import FabricRanks, Layout, Ranks, check_cut
from noisin.lab.task import columns
from noisin.lab.tokens import load
from noisin.lab.words import WordTask
from processes import HANGS, output_of, start
from test_train import job, told

SCRIPT = str(Path(__file__).with_name("together.py"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "127.0.0.1",
    "SLURM_JOB_NODELIST": "127.0.0.1",
}
RECIPE = """
title = "Together"
seeds = [1]
baseline = "words"

[base]
task = "words"
hidden_size = 6
batch_size = 5
window = 7
epochs = 3
lr = 0.5

[rows.words]

[rows.noisy]
noise = "hidden * Bernoulli(keep=0.8) & weight_hh + Gaussian(0.1) @ sequence"
train_samples = 2

[rows.unused]
noise = "output * Gaussian(Learned(0.1)) @ moments"
epochs = 1
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Write a recipe and its text, and return the arguments of a run."""
    folder = tmp_path_factory.mktemp("together")
    rng = random.Random(0)
    words = [f"w{index}" for index in range(30)]
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(120)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(RECIPE)
    load(str(folder / "text.txt"))  # numbered once, whichever process comes first
    return ["run", str(folder / "recipe.toml"), "--set", f"data={folder / 'text.txt'}"]


def begin(recipe, out, *launcher, **more):
    """Start the command on two processes."""
    words = [sys.executable, *launcher, SCRIPT, *recipe, "--out", out, "--devices", "2"]
    return start(words, env={"GLOO_SOCKET_IFNAME": "lo"} | more)


def heard(process):
    """Wait for the end, and return what was said, but for what torch 2.8 says of connections."""
    lines = output_of(process).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[Gloo] "))


def finish(*processes):
    """Wait for the end, and return what was said."""
    try:
        said = [heard(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def by_row(folder):
    return {record.row: record for record in records.read([folder])}


@pytest.fixture(scope="module")
def ran(recipe, tmp_path_factory):
    """Return the records of the command on two processes."""
    folder = tmp_path_factory.mktemp("command")
    (said,) = finish(begin(recipe, folder))
    assert said.count("3 runs, 3 to do") == 1, "only the first process talks"
    assert said.count("report: ") == 1
    assert "rank" not in said.lower()
    return by_row(folder)


def test_two_processes_take_the_steps_of_one(recipe, ran, tmp_path):
    """With noise off the curves of one process and of two are the same but for rounding."""
    result = CliRunner().invoke(app, [*recipe, "--only", "words", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    one, two = by_row(tmp_path)["words"], ran["words"]
    assert (one.environment.processes, two.environment.processes) == (1, 2)
    assert one.hash != two.hash
    assert one.updates == two.updates
    for curve in (lambda epoch: epoch.train, lambda epoch: epoch.valid["nll"]):
        assert_close_curves([curve(e) for e in two.history], [curve(e) for e in one.history])


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_others_start_the_processes(launcher, recipe, ran, tmp_path):
    """However the processes were started, the run is the same, noise and all."""
    if launcher == "torchrun":
        finish(begin(recipe, tmp_path, *TORCHRUN))
    else:
        recipe = [*recipe, "--only", "noisy"]
        own = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
        finish(*(begin(recipe, tmp_path, **SLURM, **one) for one in own))
    found = by_row(tmp_path)
    assert "noisy" in found
    for row, record in found.items():
        assert told(record) == told(ran[row])


@pytest.mark.parametrize("text", ["another text", "no text"])
def test_processes_with_other_data_are_refused(text, recipe, tmp_path):
    """Every process ends, and the one that differs says why."""
    own = tmp_path / "text.txt"
    if text == "another text":
        own.write_text(Path(recipe[-1].removeprefix("data=")).read_text()[::-1])
    others = ["--set", f"data={own}"]
    first = begin(recipe, tmp_path / "out", **SLURM, SLURM_PROCID="0", SLURM_LOCALID="0")
    second = begin([*recipe, *others], tmp_path, **SLURM, SLURM_PROCID="1", SLURM_LOCALID="1")
    said = [heard(process) for process in (first, second)]
    assert [first.returncode, second.returncode] == [2, 2], said
    assert said[0] == ""
    rule = "must be the same for all processes; rank 1" if own.exists() else "data must be one of"
    assert rule in " ".join(said[1].split())
    assert not (tmp_path / "out").exists()


def children(process):
    """Return the processes that a process has started."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in listed.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to find processes in")
def test_runs_go_on_when_a_process_was_killed(recipe, ran, tmp_path):
    """Whichever process is killed, the other ends soon, and the run goes on to the same end."""
    noisy = [*recipe, "--only", "noisy"]
    for victim in ("second", "first", "both, kindly"):
        checkpoints = [*tmp_path.rglob("noisy*/checkpoint.safetensors")]
        before = [path.stat().st_mtime_ns for path in checkpoints]
        process = begin(noisy, tmp_path)
        deadline = time.monotonic() + HANGS
        while True:  # until the noisy run has gone on by some updates
            assert process.poll() is None, output_of(process)
            assert time.monotonic() < deadline
            found = [*tmp_path.rglob("noisy*/checkpoint.safetensors")]
            if found and [path.stat().st_mtime_ns for path in found] != before:
                break
            time.sleep(0.01)
        (second,) = children(process)
        begun = time.monotonic()
        if victim == "second":
            os.kill(second, signal.SIGKILL)
        elif victim == "first":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)
        said = output_of(process)
        while Path(f"/proc/{second}").exists() and time.monotonic() - begun < HANGS:
            time.sleep(0.01)
        assert not Path(f"/proc/{second}").exists()
        assert process.returncode not in (0, None)
        if victim != "first":
            assert "the same command goes on" in said
        for path in tmp_path.rglob("*.safetensors"):
            if not path.name.startswith("."):
                checkpoint.load(path)
        assert not list(tmp_path.rglob("noisy*/record.json"))
    finish(begin(noisy, tmp_path))
    assert told(by_row(tmp_path)["noisy"]) == told(ran["noisy"])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_add_up_to_the_batch(size):
    """Losses, steps and scales of the shares are those of the batch, whatever divides it."""
    music = MusicTask(config(noise="none", batch_size=3), corpus())
    for batch in music.batches(0, 1):
        parts = [music.loss(music.part(batch, rank, size)) for rank in range(size)]
        whole = music.loss(batch)
        assert sum(part.steps for part in parts) == whole.steps
        assert sum(part.scale for part in parts) == whole.scale
        torch.testing.assert_close(sum(part.total for part in parts), whole.total)


def test_columns_take_every_sequence_once():
    for count in range(9):
        for size in range(1, 6):
            taken = [list(range(count))[columns(count, rank, size)] for rank in range(size)]
            assert [*itertools.chain(*taken)] == list(range(count))
            sizes = [len(part) for part in taken]
            assert max(sizes) - min(sizes) <= 1


def test_streams_of_words_are_shared(recipe):
    text = load(recipe[-1].removeprefix("data="))
    settings = WordsConfig(data="text", hidden_size=4, batch_size=5, window=6)
    task = WordTask(settings, text)
    batch = next(task.batches(0, 1))
    parts = [task.part(batch, rank, 3) for rank in range(3)]
    assert [part.targets.shape[1] for part in parts] == [1, 2, 2]
    assert torch.equal(torch.cat([part.inputs for part in parts], 1), batch.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts], 1), batch.targets)


def test_ranks_draw_noise_of_their_own():
    """The first one goes on with the generator of the run, and each other has its own."""
    drawn = []
    for rank in (0, 1, 2, 0, 1, 2):
        ranks = Ranks()
        ranks.rank = rank
        torch.manual_seed(3)
        ranks.reseed(3)
        drawn.append(torch.randn(5).tolist())
    torch.manual_seed(3)
    assert drawn[0] == torch.randn(5).tolist()
    assert drawn[:3] == drawn[3:]
    assert len({tuple(one) for one in drawn}) == 3


def test_products_in_bfloat16(tmp_path):
    """Weights stay in float32, and the run is another one than in float32."""
    ranks = FabricRanks(Layout(precision="bf16-mixed"))
    at = dataclasses.replace(job(tmp_path), decides=ranks.decides)
    low, full = train.run(at, corpus(), ranks=ranks), train.run(job(tmp_path), corpus())
    assert low.environment.precision == "bf16-mixed"
    assert low.hash != full.hash
    assert low.weights != full.weights
    assert low.history[-1].train == pytest.approx(full.history[-1].train, rel=0.05)
    weights, _ = checkpoint.load(at.path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "16-mixed"], "--precision must be one of 32-true, bf16-mixed"),
        (["--strategy", "fsdp"], "--strategy must be one of ddp"),
        (["--accelerator", "tpu"], "--accelerator must be one of cpu, cuda, auto"),
    ],
)
def test_refused(arguments, said, recipe, tmp_path):
    result = CliRunner().invoke(app, [*recipe, "--out", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_a_batch_is_not_cut_into_more_than_its_sequences():
    check_cut(config(batch_size=3), 3)
    with pytest.raises(LabError, match="at least the 4 processes that share a batch, got 3"):
        check_cut(config(batch_size=3), 4)


def test_torchrun_is_taken_at_its_word(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("WORLD_SIZE", "4")
    Layout(devices=2, nodes=2).check_started()
    with pytest.raises(LabError, match="the 4 processes that torchrun started, got 2 times 1"):
        Layout(devices=2).check_started()


def test_missing_accelerator_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(LabError, match="1 × 1 processes on cuda cannot be had here"):
        FabricRanks(Layout(accelerator="cuda"))
