"""Noisy layers on a GPU: beside cuDNN without noise, the loop, and what the card can do.

    python benchmarks/gpu.py [--rounds 11] [--quick]

First the results of the fused recurrence are compared with the plain loop at real sizes; where one
is wrong, the command ends with 1. Then come an epoch of the medium language model on Penn
Treebank's number of words, and a step of 1, 4 and 16 replicas of that model. Then one forward and
backward pass is timed at each size: torch's layer (cuDNN) without noise, ours with noise, with a
launch a step and, where the card has room for it, with one launch for all steps, the loop over
torch's cell with noise, eager and compiled. float32 is float32 in all of them; LSTMs are timed with
TF32 in all of them as well. The floor is the time that the floating point operations, or the bytes,
of the work take at the rates that the card reaches on a large product and a large copy. Lines come
as they are found. It takes less than 8 minutes where the kernels are compiled already, for a run
before it or a ``--quick`` one; to compile them all takes minutes more.
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
COMPILED = Work("LSTM", 20, 35, 650)  # where the loop is compiled, which takes long
UPDATES = 1327  # of an epoch of Penn Treebank, 929,589 words in 20 streams, 35 at a time


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


def rounds_to(precision: str) -> None:
    """Let products of float32 be "ieee" or "tf32", in cuDNN as elsewhere."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.rnn.fp32_precision = precision
    else:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def launches(function: Callable[[], object]) -> int:
    """Return how many launches of our kernels a function takes."""
    from noisin.fused.triton_launch import Launch

    count, launch = 0, Launch.__call__

    def counted(self: Launch, *given: int | torch.Tensor) -> None:
        nonlocal count
        count += 1
        launch(self, *given)

    Launch.__call__ = counted
    try:
        function()
    finally:
        Launch.__call__ = launch
    return count


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


def check(kind: str, dtype: torch.dtype, batch: int = 20, steps: int = 35, size: int = 650) -> bool:
    """Return whether the fused recurrence errs as the plain loop does, from that in float64."""
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
    errors = [worst(found[name], found["exact"]) for name in ("fused", "loop")]
    good = errors[0] <= 2 * errors[1] + 8 * torch.finfo(dtype).eps  # False where one is NaN
    form = "one launch" if cuda.persistent else "a launch a step"
    print(
        f"{kind}, {dtype}, {form}: error {errors[0]:.1e}, loop's {errors[1]:.1e}: "
        f"{'good' if good else 'WRONG'}",
        flush=True,
    )
    return good


def worst(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Return the largest error beside the largest number, NaN where one is."""
    errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, exact, strict=True)]
    return torch.stack(errors).max().item()


def measure(rounds: int, works: list[Work], dtype: torch.dtype, precision: str) -> None:
    """Time all sizes in one type."""
    rounds_to(precision)
    rates = ceilings(dtype, rounds)
    name = f"{dtype}, {precision}" if dtype == torch.float32 else f"{dtype}"
    print(f"{name}: {rates[0] / 1e9:.0f} TFLOP/s, {rates[1] / 1e6:.0f} GB/s")
    for work in works:
        functions = passes(work, {NOISY: NOISE}, device="cuda", dtype=dtype)
        at_once = in_one_launch(functions[NOISY])
        if launches(at_once) < launches(functions[NOISY]):
            functions[f"{NOISY}, one launch"] = at_once
        if work == COMPILED and precision == "ieee":
            cell = torch.nn.LSTMCell(work.size, work.size, device="cuda", dtype=dtype)
            x = torch.randn(work.time, work.batch, work.size, device="cuda", dtype=dtype)
            x.requires_grad_()
            run = torch.compile(loop)
            functions[f"{LOOP}, compiled"] = lambda run=run, cell=cell, x=x: (
                run(cell, x).sum().backward()
            )
        found = times(waiting(functions), rounds)
        print(f"{work}, {name}: floor {floor(work, dtype, rates):.3f} ms")
        print(table(found, PLAIN), flush=True)
    rounds_to("ieee")


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
        taken = time.perf_counter() - begun
        print(f"an epoch of {UPDATES} updates, {name}: {taken:.2f} s", flush=True)


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
    print(table(times(waiting(steps), rounds), "1 replicas"), flush=True)


def main() -> None:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="LSTMs of 20 sequences alone")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    rounds_to("ieee")
    good = True
    for kind in ("RNN", "GRU", "LSTM"):
        for dtype in (torch.float32, torch.bfloat16):
            for persistent in (False, True):
                cuda.persistent = persistent
                good &= check(kind, dtype)
    cuda.persistent = False
    epoch()
    replicas(given.rounds)
    kinds, batches = (("LSTM",), (20,)) if given.quick else (("LSTM", "GRU", "RNN"), (20, 64))
    works = [
        Work(kind, batch, steps, size)
        for kind in kinds
        for batch in batches
        for steps in (35, 100)
        for size in SIZES
    ]
    measure(given.rounds, works, torch.float32, "ieee")
    measure(given.rounds, works, torch.bfloat16, "ieee")
    lstms = [work for work in works if work.kind == "LSTM"]
    measure(given.rounds, lstms, torch.float32, "tf32")
    if not good:
        raise SystemExit("the fused recurrence errs more than the plain loop does, see WRONG above")


if __name__ == "__main__":
    main()
