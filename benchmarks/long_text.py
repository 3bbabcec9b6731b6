"""A text that is larger than memory: numbered once, then trained on; time and memory of both.

    python benchmarks/long_text.py FOLDER [--gigabytes 10] [--types 50000] [--updates 2000]

Writes a text of random words, frequent and rare ones as in Zipf's law, into FOLDER (which then also
holds its token numbers), and removes neither. Memory is that of all processes together: what is
their own, and with the pages of mapped files that the system may take back. To see that it is
enough, run it where no more is to be had, for example under ``systemd-run -p MemoryMax=1G``.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from noisin.lab import tokens, trainer
from noisin.lab.config import WordsConfig
from noisin.lab.words import WordTask

LINE = 25  # words


def write_text(folder: Path, size: int, types: int) -> None:
    """Write a training text of about so many bytes, and a short one for the other splits."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = np.array([f"{word:x}" for word in range(types)])
    chances = 1 / np.arange(1, types + 1)
    chances /= chances.sum()
    block = "\n".join(
        " ".join(line) for line in words[rng.choice(types, (40_000, LINE), p=chances)]
    )
    data = block.encode() + b"\n"
    for split, count in (("train", max(1, size // len(data))), ("valid", 1), ("test", 1)):
        path = folder / f"{split}.txt"
        if path.exists() and path.stat().st_size == count * len(data):
            continue
        with path.open("wb") as file:
            for _ in range(count):
                file.write(data)


def memory() -> tuple[int, int]:
    """Return the bytes that this process and those below it hold: their own, and all."""
    own, every, queue = 0, 0, [os.getpid()]
    while queue:
        process = Path(f"/proc/{queue.pop()}")
        try:
            status = dict(
                line.split(":", 1) for line in (process / "status").read_text().splitlines()
            )
            children = (process / "task" / process.name / "children").read_text()
        except (OSError, ValueError):
            continue
        queue += map(int, children.split())
        own += int(status.get("RssAnon", "0 kB").split()[0]) * 1024
        every += int(status.get("VmRSS", "0 kB").split()[0]) * 1024
    return own, every


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print the time of a block, and the most memory held in it."""
    peak, done = [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[:] = map(max, peak, memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    done.set()
    watcher.join()
    own, every = (size / 2**20 for size in peak)
    print(f"{what}: {seconds:.0f} s, {own:.0f} MiB, {every:.0f} MiB with mapped files", flush=True)


def main() -> None:
    """Number a long text and train on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--types", type=int, default=50_000)
    parser.add_argument("--updates", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("NOISIN_CACHE", str(given.folder / "cache"))
    write_text(given.folder, int(given.gigabytes * 1e9), given.types)
    text = given.folder / "train.txt"
    with measured(f"numbering {text.stat().st_size / 1e9:.2f} GB"):
        corpus = tokens.load(str(given.folder), min_count=2)
    print(f"{len(corpus.splits['train']):,} tokens, {len(corpus.vocabulary):,} word types")
    with measured("opening it again"):
        corpus = tokens.load(str(given.folder), min_count=2)
    config = WordsConfig(data=str(given.folder), hidden_size=64, noise="hidden * Gaussian(0.5)")
    torch.manual_seed(0)
    task = WordTask(config, corpus)
    optimizer = trainer.optimizer_of(config, task.model)
    # all over the text, as an epoch would go
    skips = np.linspace(0, task.updates - 1, given.updates).astype(int)
    with measured(f"{given.updates} updates"):
        for skip in skips:
            batch = next(task.batches(0, 1, int(skip)))
            loss = task.loss(batch)
            optimizer.zero_grad()
            (loss.total / loss.scale).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
