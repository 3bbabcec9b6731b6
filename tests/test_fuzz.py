"""Damaged and hostile input to every reader: the documented errors, and nothing else.

NOISIN_FUZZ sets how many inputs each reader gets; 15000 take some minutes.
"""

import os
import random
import re
import resource
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from lab_cases import config, corpus, rolls
from noisin import parse
from noisin.lab import LabError, checkpoint, numbering, recipe, records, sound, tokens
from noisin.lab import rolls as music
from noisin.lab.rows import Row
from noisin.lab.train import Job, run

COUNT = int(os.environ.get("NOISIN_FUZZ", "60"))
SECONDS, MEMORY = 20, 2**30  # an input at most
WORDS = [
    *(b"nan", b"inf", b"-1", b"0", b"1e308", b"9" * 40, b"null", b"true", b"[]", b"{}", b'""'),
    *(b"../../outside", b"\x00", b"\xff\xfe", "ü∘".encode(), b"(" * 300, b"[" * 3000, b"\n", b"="),
    *(b"Gaussian(", b"Bernoulli(keep=", b" @ moments", b" & ", b"Learned(", b"hidden * ", b"{x}"),
]


def mutated(rng, seed):
    """Return bytes with a few of them changed, cut, doubled, or replaced by words."""
    data = bytearray(seed)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(data) + 1)
        until = min(len(data), at + rng.choice([1, 2, 4, 8, 64, 512]))
        match rng.randrange(7):
            case 0:
                data[at:until] = rng.randbytes(until - at)
            case 1:
                del data[at:until]
            case 2:
                data[at:at] = data[at:until] * rng.choice([1, 3, 50])
            case 3:
                data[at:until] = rng.choice(WORDS)
            case 4 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 5:
                data[at:until] = rng.choice([b"\xff", b"\x00", b"\x7f"]) * (until - at)
            case _:
                del data[at:]
    return bytes(data)


def text_of(data):
    return data.decode("utf-8", "replace")


class Readers:
    """A reader a method: what it is given first, and what it does with bytes.

    Args:
        folder: empty.
    """

    def __init__(self, folder):
        self.folder = folder
        row = Row(config=config(epochs=1), label="row", baseline="row")
        job = Job("tiny", "A title", "row", row, 1, corpus().digest(), folder / "seed")
        run(job, corpus())
        self.seeds = {
            "noise": [
                b"input * Bernoulli(keep=0.9) @ moments & hidden + Gaussian(Learned(0.5))",
                b"variational(input=0.9, recurrent=0.7, output=0.6)",
            ],
            "recipe": [
                (resources.files("noisin.lab") / "recipes" / f"{name}.toml").read_bytes()
                for name in recipe.names()
            ],
            "npz": [self._npz()],
            "midi": [self._midi(index) for index in range(3)],
            "text": ["the cat\nsat ü on\n\nthe mat\nand <unk> sat\n".encode() * 3],
            "tokens": [b"corpus.json", b"train.tokens", b"valid.tokens"],
            "checkpoint": [(job.path / "checkpoint.safetensors").read_bytes()],
            "record": [(job.path / "record.json").read_bytes()],
        }

    def _file(self, name, data):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def _npz(self):
        path = self.folder / "seed.npz"
        music.write_npz(corpus(), path)
        return path.read_bytes()

    def _midi(self, index):
        path = self.folder / "seed.mid"
        sound.write_midi(rolls([12 + index], index, 0.1)[0], path)
        return path.read_bytes()

    def noise(self, data):
        term = parse(text_of(data))
        assert term is None or parse(str(term)) == term

    def recipe(self, data):
        recipe.load(str(self._file("own.toml", data)))

    def npz(self, data):
        music.read_npz(self._file("own.npz", data), "own")

    def midi(self, data):
        for index, whole in enumerate(self.seeds["midi"]):
            self._file(f"music/{index}.mid", whole)
        found = music.load(str(self._file("music/own.mid", data).parent))
        if found.skipped:
            raise LabError(found.skipped[0])

    def text(self, data):
        tokens.load(str(self._file("own.txt", data)))

    def checkpoint(self, data):
        checkpoint.load(self._file("own.safetensors", data))

    def record(self, data):
        records.read([self._file("own.jsonl", data)])

    def tokens(self, data):
        """``data`` is a damaged name; the file of that name is damaged likewise."""
        own = self.folder / "numbered"
        if not own.exists():
            sources = numbering.split_lines(self._file("whole.txt", self.seeds["text"][0]))
            numbering.number(sources, own, 1)
            self.whole = {path.name: path.read_bytes() for path in own.iterdir()}
        rng = random.Random(data)
        for name, whole in self.whole.items():
            (own / name).write_bytes(mutated(rng, whole) if rng.random() < 0.5 else whole)
        tokens.read(own, "own")


READERS = ("noise", "recipe", "npz", "midi", "text", "tokens", "checkpoint", "record")


def attack(name, folder, count):
    """Feed a reader; whatever is not documented gets out."""
    torch.set_num_threads(1)
    os.environ["NOISIN_CACHE"] = str(folder / "cache")
    readers, rng = Readers(folder), random.Random(name)
    read, refused = getattr(readers, name), 0
    documented = ValueError if name == "noise" else LabError
    outside = {path.name for path in folder.parent.iterdir()}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(count):
        data = mutated(rng, rng.choice(readers.seeds[name]))
        signal.alarm(SECONDS)
        try:
            read(data)
        except documented:
            refused += 1
        except BaseException:
            print(f"input {number} of {name}: {data[:2000]!r}", flush=True)
            raise
    signal.alarm(0)
    assert {path.name for path in folder.parent.iterdir()} == outside
    print(f"{name}: {count} inputs, {refused} refused")
    assert refused


def test_only_documented_errors(tmp_path):
    """Of every reader, each in a process of its own that has so much time and memory."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to know the memory in use")
    found = subprocess.run(
        [sys.executable, __file__, tmp_path, str(COUNT)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{found.stdout[-3000:]}{found.stderr[-3000:]}"
    assert found.returncode == 0, f"{found.returncode}: {said}"
    assert re.findall(r"^(\w+): \d+ inputs, [1-9]\d* refused$", said, re.M) == list(READERS), said


def test_a_file_that_unpacks_to_much_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, train_notes=np.zeros((2**27, 11), np.uint8))
    assert path.stat().st_size < 2**22
    with pytest.raises(LabError, match="bytes at most"):
        music.read_npz(path, "bomb")


if __name__ == "__main__":
    for reader in READERS:  # of this process they have the imports
        own = Path(sys.argv[1]) / reader / "own"
        own.mkdir(parents=True)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            attack(reader, own, int(sys.argv[2]))
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.exit(f"{reader}: ended with {status}")
