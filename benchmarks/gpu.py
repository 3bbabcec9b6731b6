"""Noisy layers on a GPU: beside cuDNN without noise, the loop, and what the card can do.

    python benchmarks/gpu.py [--rounds 11] [--quick]

First the results of the fused recurrence are compared with the plain loop at real sizes. Then one
forward and backward pass is timed at each size in float32 and bfloat16: torch's layer (cuDNN)
without noise, ours with noise, with a launch a step and with one launch for all steps, the loop
over torch's cell with noise, eager and compiled. The floor is the time that the floating point
operations, or the bytes, of the work take at the rates that the card reaches on a large product and
a large copy. At the end stands an epoch of the medium language model on Penn Treebank's number of
words, and a step of 1, 4 and 16 replicas of that model. It takes less than 8 minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import torch

import noisin
from noisin.functional import recur
from noisin.fused import cuda
from noisin.lab.bench import (
    LOOP,
    NOISE,
    NOISY,
    PLAIN,
    LanguageModel,
    Work,
    language_model_steps,
    loop,
    passes,
    table,
    times,
)
from noisin.likelihood import CategoricalHead
from noisin.stack import GATES

SIZES = (200, 650, 1500)
UPDATES = 1327  # of an epoch of Penn Treebank, 929,589 words in 20 streams, 35 at a time
DTYPES = (torch.float32, torch.bfloat16)


def waiting(functions: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Return functions that end when the card has done its work."""

    def timed(function: Callable[[], object]) -> None:
        function()
        torch.cuda.synchronize()

    return {name: lambda function=function: timed(function) for name, function in functions.items()}


def in_one_launch(function: Callable[[], object]) -> Callable[[], object]:
    """Return a function whose layers take all steps in one launch, where a GPU has room for it."""

    def run() -> None:
        cuda.persistent = True
        try:
            function()
        finally:
            cuda.persistent = False

    return run


def ceilings(dtype: torch.dtype, rounds: int) -> tuple[float, float]:
    """Return what the card reaches: operations and bytes a millisecond."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
    large = torch.empty(2**28, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(large)
    found = times(waiting({"product": lambda: a @ b, "copy": lambda: other.copy_(large)}), rounds)
    return 2 * 8192**3 / found["product"], 2 * large.numel() / found["copy"]


def floor(work: Work, dtype: torch.dtype, rates: tuple[float, float]) -> float:
    """Return the time in milliseconds that operations or bytes of a pass need at the least."""
    bytes_each = torch.empty(0, dtype=dtype).element_size()
    gates = GATES.get(work.kind, 1)
    weights = gates * work.size * 2 * work.size
    numbers = work.time * work.batch * work.size
    # weights in each direction and their gradients; x, output, gates and their gradients
    moved = bytes_each * (3 * weights + numbers * (2 * (2 + gates) + 2))
    return max(work.operations / rates[0], moved / rates[1])


def check(kind: str, dtype: torch.dtype, batch: int = 20, steps: int = 35, size: int = 650) -> None:
    """Compare the fused recurrence with the plain loop in float64, and with its error in a type."""
    torch.manual_seed(0)
    layer = getattr(noisin, kind)(
        size, size, noise="hidden * Gaussian(0.5) & recurrent + Gaussian(0.3)"
    )
    layer = layer.to("cuda", dtype)
    x = torch.randn(steps, batch, size, device="cuda", dtype=dtype)
    drawn = layer.draw(x)
    found = {}
    for name, path, wide in (
        ("fused", "cuda", dtype),
        ("loop", "reference", dtype),
        ("exact", "reference", torch.float64),
    ):
        like = layer.to(wide)
        leaf = x.to(wide).requires_grad_()
        state = tuple(
            torch.zeros(shape, device="cuda", dtype=wide)
            for shape in layer.stack.state_shapes(batch)
        )
        draws = {place: tuple(one.to(wide) for one in entries) for place, entries in drawn.items()}
        output, _ = recur(
            *(like.stack, like.all_weights, leaf, state),
            noise=like.noise,
            draws=draws,
            path=path,  # pyright: ignore[reportArgumentType]
        )
        weights = [w for group in like.all_weights for w in group]
        grads = torch.autograd.grad(output.square().mean(), [leaf, *weights])
        found[name] = [one.double() for one in (output.detach(), *grads)]
        layer = layer.to(dtype)
    errors = [
        max(
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in zip(found[n], found["exact"], strict=True)
        )
        for n in ("fused", "loop")
    ]
    verdict = "good" if errors[0] <= 2 * errors[1] + 8 * torch.finfo(dtype).eps else "WRONG"
    form = "one launch" if cuda.persistent else "a launch a step"
    print(f"{kind}, {dtype}, {form}: error {errors[0]:.1e}, loop's {errors[1]:.1e}: {verdict}")


def measure(rounds: int, works: list[Work]) -> None:
    """Time all sizes in both types."""
    for dtype in DTYPES:
        rates = ceilings(dtype, rounds)
        print(f"{dtype}: {rates[0] / 1e9:.0f} TFLOP/s, {rates[1] / 1e6:.0f} GB/s")
        for work in works:
            functions = passes(work, {NOISY: NOISE}, device="cuda", dtype=dtype)
            functions[f"{NOISY}, one launch"] = in_one_launch(functions[NOISY])
            if work == Work("LSTM", 20, 35, 650):
                cell = torch.nn.LSTMCell(work.size, work.size, device="cuda", dtype=dtype)
                x = torch.randn(work.time, work.batch, work.size, device="cuda", dtype=dtype)
                run = torch.compile(loop)
                functions[f"{LOOP}, compiled"] = lambda run=run, cell=cell, x=x: (
                    run(cell, x).sum().backward()
                )
            found = times(waiting(functions), rounds)
            print(f"{work}, {dtype}: floor {floor(work, dtype, rates):.3f} ms")
            print(table(found, PLAIN), flush=True)


def epoch() -> None:
    """Time an epoch of the medium language model, plain and with noise."""
    steps = language_model_steps(device="cuda")
    for name, step in [*steps.items()]:
        if name != PLAIN:
            steps[f"{name}, one launch"] = in_one_launch(step)
    for name, step in steps.items():
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(UPDATES):
            step()
        torch.cuda.synchronize()
        print(f"an epoch of {UPDATES} updates, {name}: {time.perf_counter() - begun:.2f} s")


class Scored(LanguageModel):
    """The medium language model, and the loss of its words."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean negative log-likelihood of y behind x."""
        logits = self.head(self.recurrent(self.embedding(x))[0])
        return -self.head.log_likelihood(logits, y).mean()


def replicas_step(
    count: int, vocabulary: int = 10_000, size: int = 650, device: str = "cuda"
) -> Callable[[], object]:
    """Return a training step of several language models, each with a noise level of its own."""
    stds = [0.1 + index / count for index in range(count)]
    layers = [noisin.LSTM(size, size, 2, noise=f"hidden * Gaussian({std})") for std in stds]
    models = [Scored(one, CategoricalHead(size, vocabulary), vocabulary) for one in layers]
    replicas = noisin.Replicas(models, seeds=range(count), together=True).to(device)
    optimizer = torch.optim.SGD(replicas.parameters(), lr=1.0)
    x, y = torch.randint(vocabulary, (2, 35, 20), device=device)

    def step() -> None:
        optimizer.zero_grad()
        replicas(x, y).sum().backward()
        for one in replicas:
            torch.nn.utils.clip_grad_norm_(one.parameters(), 5.0)
        optimizer.step()

    return step


def replicas(rounds: int) -> None:
    """Time a training step of 1, 4 and 16 replicas of the medium language model."""
    steps = {f"{count} replicas": replicas_step(count) for count in (1, 4, 16)}
    print(table(times(waiting(steps), rounds), "1 replicas"))


def main() -> None:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="LSTMs of 20 sequences alone")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for kind in ("RNN", "GRU", "LSTM"):
        for dtype in DTYPES:
            check(kind, dtype)
            in_one_launch(lambda kind=kind, dtype=dtype: check(kind, dtype))()
    kinds, batches = (("LSTM",), (20,)) if given.quick else (("LSTM", "GRU", "RNN"), (20, 64))
    works = [
        Work(kind, batch, steps, size)
        for kind in kinds
        for batch in batches
        for steps in (35, 100)
        for size in SIZES
    ]
    measure(given.rounds, works)
    epoch()
    replicas(given.rounds)


if __name__ == "__main__":
    main()
