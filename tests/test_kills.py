"""Runs that are killed at any moment, or whose disk is full: they end as if nothing had happened.

NOISIN_KILLS sets how often; 200 take some minutes.
"""

import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch

from lab_cases import corpus
from noisin.lab import LabError, checkpoint, records, train, trainer
from noisin.lab.files import ASIDE
from processes import context
from test_train import job, told

KILLS = int(os.environ.get("NOISIN_KILLS", "20"))
SETTINGS = {
    "noise": "hidden * Gaussian(Learned(0.5, floor=0.1)) & recurrent * Bernoulli(keep=0.8)",
    "epochs": 12,
    "patience": 12,
    "optimizer": "nesterov-rmsprop",
    "momentum": 0.5,
    "lr": 0.005,
}
FULL = 3  # exit code


def be_run(folder, size):
    """Train with a checkpoint after each update, and files of at most so many bytes."""
    torch.set_num_threads(1)
    trainer.SAVE_EVERY = trainer.SAVE_SHARE = 0.0
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        train.run(job(folder, **SETTINGS), corpus())
    except LabError as error:
        said = any(words in str(error) for words in ("could not be written", "can be written"))
        raise SystemExit(FULL if said else 1) from None


def check_files(folder):
    """What bears its final name is whole."""
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors" and not path.name.startswith("."):
            checkpoint.load(path)
        if path.name == "record.json":
            records.read([path])


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of its own, and what sets its size; skip where none can be mounted."""
    path = tmp_path / "disk"
    path.mkdir()

    def sized(kib, *options):
        mount = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={kib}k"]), "none", path]
        return subprocess.run(mount, capture_output=True).returncode

    if shutil.which("mount") is None or sized(64):
        pytest.skip("no file system can be mounted here")
    yield path, sized
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_loses_nothing(small_disk):
    """Runs on a disk that is full after so many KiB go on once there is room."""
    disk, sized = small_disk
    processes = context()

    def end(folder):
        process = processes.Process(target=be_run, args=(folder, None))
        process.start()
        process.join()
        return process.exitcode

    sized(10_000, "remount")
    assert end(disk / "whole") == 0
    (expected,) = records.read([disk / "whole"])
    shutil.rmtree(disk / "whole")
    assert not list(disk.iterdir())
    codes = []
    for kib in range(4, 56, 8):
        sized(kib, "remount")
        codes.append(end(disk / "run"))
        check_files(disk)
        sized(10_000, "remount")
        assert end(disk / "run") == 0
        (found,) = records.read([disk / "run"])
        assert told(found) == told(expected)
        assert not list(disk.rglob(f"*{ASIDE}"))
        shutil.rmtree(disk / "run")
    assert codes.count(FULL) >= 4, codes
    assert set(codes) <= {0, FULL}


@pytest.fixture
def folder_in_memory():
    """Return a folder where flushing to disk takes no time, if there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def test_killed_runs_end_as_an_undisturbed_one(folder_in_memory):
    top = folder_in_memory
    processes = context()
    rng = random.Random(0)

    def begin(folder, size=None):
        process = processes.Process(target=be_run, args=(folder, size))
        process.start()
        return process

    begun = time.monotonic()
    whole = begin(top / "whole")
    whole.join()
    assert whole.exitcode == 0
    takes = time.monotonic() - begun
    (expected,) = records.read([top / "whole"])
    largest = max(path.stat().st_size for path in (top / "whole").rglob("*"))

    kills, runs, full = 0, 0, 0
    while kills < KILLS:
        folder = top / f"run-{runs}"
        while True:
            by_disk = rng.random() < 0.5
            process = begin(folder, rng.randrange(1, 3 * largest // 2) if by_disk else None)
            process.join(None if by_disk else rng.uniform(0, takes / 2))
            alive = process.exitcode is None
            if alive:
                process.kill()
                process.join()
            check_files(folder)
            if process.exitcode == 0:
                break
            assert alive or process.exitcode == FULL
            kills, full = kills + 1, full + (not alive)
        last = begin(folder)
        last.join()
        assert last.exitcode == 0
        (found,) = records.read([folder])
        assert told(found) == told(expected)
        assert not list(folder.rglob(f"*{ASIDE}"))
        runs += 1
    assert full > KILLS / 10
    assert kills - full > KILLS / 10
    print(f"{kills} kills, {full} of them by a full disk, in {runs} runs")
