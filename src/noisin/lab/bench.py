"""The speed and memory of this machine: noisy layers beside torch's plain ones, in one run.

What is compared is interleaved, round by round, and reported as medians: a machine that others use
slows both alike. Noise is drawn inside what is timed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import noisin
from noisin import laws
from noisin.likelihood import CategoricalHead
from noisin.stack import GATES

NOISE = "hidden * Bernoulli(keep=0.5)"
MOMENTS = "fast_dropout(input=0.9, recurrent=0.8)"
PARTS = ("LSTM", "GRU", "RNN", "moments", "step", "laws")
FACTOR = (35, 20, 650)  # steps, sequences, units of a medium language model
PLAIN, NOISY, LOOP = "torch, no noise", "noisin, noise", "loop over torch's cell, noise"


class Work(NamedTuple):
    """One forward and backward pass of a layer with as many inputs as units.

    Args:
        kind: ``LSTM``, ``GRU`` or ``RNN``.
        batch: B, sequences.
        time: T, steps.
        size: H, units.
    """

    kind: str
    batch: int
    time: int
    size: int

    def __str__(self) -> str:
        return f"{self.kind}, B {self.batch}, T {self.time}, H {self.size}"

    @property
    def operations(self) -> int:
        """Additions and multiplications of the matrix products, forward and back."""
        weights = GATES.get(self.kind, 1) * self.size * 2 * self.size
        return 3 * 2 * self.batch * self.time * weights


WORKS = (
    Work("LSTM", 20, 35, 200),
    Work("LSTM", 20, 35, 650),
    Work("LSTM", 20, 35, 1500),
    Work("LSTM", 20, 100, 400),
    Work("LSTM", 64, 100, 400),
    Work("GRU", 20, 35, 650),
    Work("RNN", 20, 100, 400),
)


def times(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm: int = 2
) -> dict[str, float]:
    """Return the median time of each function in milliseconds; each round runs all in turn."""
    for _ in range(warm):
        for function in functions.values():
            function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def table(found: Mapping[str, float], against: str) -> str:
    """Return lines of name, median and ratio to one of them."""
    width = max(map(len, found))
    return "\n".join(
        f"  {name:{width}s} {value:9.2f} ms {value / found[against]:6.2f}"
        for name, value in found.items()
    )


def limit(rounds: int = 5) -> float:
    """Return what the machine can do: billions of operations a second of a large product."""
    size = 3000
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / times({"product": lambda: a @ b}, rounds)["product"] / 1e6


def loop(cell: nn.LSTMCell, x: Tensor, keep: float = 0.5) -> Tensor:
    """Run torch's cell step by step with `hidden * Bernoulli`, as users write it."""
    h = c = x.new_zeros(x.shape[1], cell.hidden_size)
    outputs = []
    for step in x:
        h, c = cell(step, (h, c))
        h = h * (torch.rand_like(h) < keep).to(h.dtype) / keep
        outputs.append(h)
    return torch.stack(outputs)


def passes(work: Work, noises: Mapping[str, str], **place: Any) -> dict[str, Callable[[], object]]:
    """Return the passes to compare, by name: torch's, ours with each noise, and the loop.

    Args:
        work: sizes.
        noises: names and noise of our layers.
        place: ``device`` and ``dtype``, torch's defaults without them.
    """
    x = torch.randn(work.time, work.batch, work.size, requires_grad=True, **place)
    sizes = work.size, work.size
    layers: dict[str, nn.Module] = {PLAIN: getattr(nn, work.kind)(*sizes, **place)}
    for name, noise in noises.items():
        layers[name] = getattr(noisin, work.kind)(*sizes, noise=noise, **place)

    def one(module: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        x.grad = None
        module.zero_grad()
        run(x).sum().backward()

    found: dict[str, Callable[[], object]] = {
        name: lambda layer=layer: one(layer, lambda x: layer(x)[0])
        for name, layer in layers.items()
    }
    if work.kind == "LSTM":
        cell = nn.LSTMCell(*sizes, **place)
        found[LOOP] = lambda: one(cell, lambda x: loop(cell, x))
    return found


def lines(parts: Collection[str], rounds: int) -> Iterator[str]:
    """Measure and say it, line by line.

    Args:
        parts: of ``PARTS``: cells, ``step`` of a language model, ``laws``.
        rounds: medians are taken over so many.
    """
    yield f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {rounds}"
    yield f"large product: {limit():.0f} GFLOP/s"
    for work in WORKS:
        if work.kind in parts:
            found = times(passes(work, {NOISY: NOISE}), rounds)
            speed = work.operations / found[NOISY] / 1e6
            yield f"{work}: {NOISE}, {speed:.0f} GFLOP/s"
            yield table(found, PLAIN)
            yield from memory(work)
    for kind in ("RNN", "GRU", "LSTM") if "moments" in parts else ():
        work = Work(kind, 20, 100, 400)
        yield f"{work}: {MOMENTS}"
        functions = passes(work, {NOISY: MOMENTS})
        yield table(times({name: functions[name] for name in (PLAIN, NOISY)}, rounds), PLAIN)
        yield from memory(work, MOMENTS)
    if "step" in parts:
        yield f"training step, 2 LSTM layers of 650, 10,000 words: {NOISE}"
        yield table(times(language_model_steps(), rounds), PLAIN)
    if "laws" in parts:
        yield f"a factor, {' x '.join(map(str, FACTOR))}"
        yield table(times(drawing(), rounds), "Gaussian(1.0)")


def memory(work: Work, noise: str = NOISE) -> Iterator[str]:
    """Say the peak memory of a pass, torch's and ours, each in a process of its own."""
    found = [peak(work, name, noise) for name in (PLAIN, NOISY)]
    if None not in found:
        yield f"  peak memory, T {work.time}: {found[0]:.0f} and {found[1]:.0f} MiB"


@contextmanager
def running(threads: int) -> Iterator[None]:
    """Let torch run so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawing(size: tuple[int, ...] = FACTOR) -> dict[str, Callable[[], object]]:
    """Return the drawing of one factor, by law at its default shape."""
    drawn = [
        laws.Bernoulli(keep=0.5) if name == "Bernoulli" else law(1.0)
        for name, law in laws.LAWS.items()
    ]
    return {str(law): lambda law=law: law.factor(size) for law in drawn}


def peak(work: Work, name: str, noise: str = NOISE) -> float | None:
    """Return the memory that one pass adds at its peak in MiB, or None: it cannot be told here."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "noisin.lab.bench", name, noise, *map(str, work)]
    # each block is the system's own, so that what is freed leaves at once
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=exact)
    return float(done.stdout)


def _peak_here(work: Work, name: str, noise: str) -> float:
    """Run one pass and return what it added to this process's memory at its peak, in MiB."""
    small = passes(work._replace(time=1, batch=1, size=8), {NOISY: noise})
    small[name]()  # libraries come into memory, and keep what they once take
    run = passes(work, {NOISY: noise})[name]
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """Return a field of this process's memory in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


class LanguageModel(nn.Module):
    """A model of the next word: embedding, two layers, softmax.

    Args:
        recurrent: the layers between.
        head: the last product.
        vocabulary: V, words.
    """

    def __init__(self, recurrent: nn.Module, head: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, recurrent.input_size)  # pyright: ignore
        self.recurrent = recurrent
        self.head = head


def language_model_steps(
    vocabulary: int = 10_000, size: int = 650, batch: int = 20, steps: int = 35, device: str = "cpu"
) -> dict[str, Callable[[], object]]:
    """Return one training step of the medium language model: torch's, and ours with noise.

    Forward, backward, clipping of the gradient's norm, and gradient descent; the same for both.

    Args:
        vocabulary: V, words.
        size: H, units of each of two layers.
        batch: B, sequences.
        steps: T, words of each.
        device: where they run.
    """
    words = torch.randint(vocabulary, (2, steps, batch), device=device)
    models = {
        PLAIN: LanguageModel(nn.LSTM(size, size, 2), nn.Linear(size, vocabulary), vocabulary),
        NOISY: LanguageModel(
            noisin.LSTM(size, size, 2, noise=NOISE), CategoricalHead(size, vocabulary), vocabulary
        ),
    }
    return {name: _stepping(model.to(device), *words) for name, model in models.items()}


def _stepping(model: LanguageModel, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step() -> None:
        optimizer.zero_grad()
        logits = model.head(model.recurrent(model.embedding(x))[0])
        if isinstance(model.head, CategoricalHead):
            loss = -model.head.log_likelihood(logits, y).mean()
        else:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


if __name__ == "__main__":
    _name, _noise, _kind, *_sizes = sys.argv[1:]
    print(_peak_here(Work(_kind, *map(int, _sizes)), _name, _noise))
