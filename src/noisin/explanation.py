"""Looking into models: which noise acts where, how it is drawn, and by which path."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from noisin.draws import entry_size, is_seeded
from noisin.functional import path_of
from noisin.layers import NoisyRNNBase
from noisin.noise import Noise, Term
from noisin.noisy import Noisy, Simple
from noisin.recurrence import Recurrence
from noisin.stack import Places, Stack, feeding, places


@dataclass(frozen=True)
class Explanation:
    """One term at one place of a model, or a layer without any.

    Args:
        module: name of the module in the model; "" is the model itself.
        layer: index of the layer in a stack.
        place: where the term acts, such as ``hidden_l0_reverse``; "" without noise.
        term: the term, or "".
        hold: how long one draw is kept, or "".
        estimate: how the expectation over the noise is taken, or "".
        path: what runs the layer: ``torch``, ``cpu``, ``cuda``, ``reference`` or ``moments``.
        why: why that path.
        memory: bytes of what is drawn for one call and kept.
    """

    module: str
    layer: int
    place: str
    term: str
    hold: str
    estimate: str
    path: str
    why: str
    memory: int

    def __str__(self) -> str:
        noise = f"{self.place}: {self.term}" if self.term else "no noise"
        name = self.module or "model"
        return f"{name}, layer {self.layer}: {noise}. Path {self.path}: {self.why}."


class Table(tuple[Explanation, ...]):
    """Explanations, printed as a table."""

    def __str__(self) -> str:
        heads = ("module", "layer", "place", "term", "hold", "estimate", "memory", "path", "why")
        rows = [
            [
                one.module or "(model)",
                str(one.layer),
                one.place or "-",
                one.term or "no noise",
                one.hold or "-",
                one.estimate or "-",
                _bytes(one.memory),
                one.path,
                one.why,
            ]
            for one in self
        ]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (heads, *rows)
        ]
        return "\n".join(lines)


def explain(model: nn.Module, *, time: int = 35, batch: int = 20) -> Table:
    """Say which noise acts where in a model in training, how it is drawn, and which path runs.

    Args:
        model: any module; our layers in it are explained.
        time: T, steps of the call whose memory is stated.
        batch: B, its sequences.

    Returns:
        One explanation for each term at each place, and for each layer without noise; printed, a
        table. The memory is that of the draws, in the default floating type.

    Raises:
        ValueError: T or B below 1.

    Examples:
        >>> import noisin
        >>> layer = noisin.LSTM(4, 8, noise="input * Uniform(1)")
        >>> (line,) = explain(layer)
        >>> line.place, line.term, line.path
        ('input', 'input * Uniform(1.0)', 'torch')
    """
    for name, value in (("time", time), ("batch", batch)):
        if value < 1:
            raise ValueError(f"explain: {name} must be >= 1, got {value}")
    rows: list[Explanation] = []
    for name, module in model.named_modules():
        if isinstance(module, NoisyRNNBase):
            rows += _of_stack(name, module, time, batch)
        elif isinstance(module, Simple):
            rows += _of_simple(name, module, time, batch)
    return Table(rows)


def _of_stack(name: str, module: NoisyRNNBase, time: int, batch: int) -> list[Explanation]:
    stack, weight = module.stack, module.all_weights[0][0]
    found = places(stack, module.acting())
    rows = []
    for layer in range(stack.num_layers):
        path, why = path_of(stack, found, layer, module._dtype(weight), _device(weight))
        if found and module.drops_by_itself:
            path, why = "torch", "torch's own layers, dropout= between them included"
        here = _places_of_layer(stack, found, layer)
        pairs = [(place, term) for place in here for term in found[place]]
        for place, term in pairs:
            size = entry_size(stack, place, term, time, batch)
            if _accumulates(term):
                size = (*size, prod(stack.matrix(place)))
            rows.append(_row(name, layer, place, term, path, why, size))
        if not pairs:
            rows.append(_row(name, layer, "", None, path, why, (0,)))
    return rows


def _device(weight: Tensor) -> torch.device:
    """Return where a layer would run: one that has no memory yet, on the CPU."""
    return torch.device("cpu") if weight.is_meta else weight.device


def _places_of_layer(stack: Stack, found: Places, layer: int) -> list[str]:
    """Return the places that concern a layer: its own, what it reads and, of the last, `output`."""
    own = [p for p in found if p.removesuffix("_reverse").endswith(f"_l{layer}")]
    reads = [feeding(layer)] if feeding(layer) in found else []
    last = ["output"] if layer == stack.num_layers - 1 and "output" in found else []
    return reads + [p for p in own if not p.startswith("between")] + last


def _of_simple(name: str, module: Simple, time: int, batch: int) -> list[Explanation]:
    if isinstance(module, Recurrence):
        path, why = "reference", "a cell of the user's own runs step by step"
    else:
        path, why = "torch", "no recurrence"
    pairs = [(p, t) for p, terms in module.resolve(module.acting()).items() for t in terms]
    if any(getattr(term, "estimate", "") == "moments" for _, term in pairs):
        path, why = "moments", "mean and variance are propagated"
    if any(isinstance(term, Noise) and is_seeded(term) for _, term in pairs):
        path, why = "reference", "a weight matrix is drawn for each step"
    rows = []
    for place, term in pairs:
        assert isinstance(term, Noise)
        size = module.entry_size(term, _example(module, time, batch))
        if _accumulates(term):
            size = (*size, prod(module.weight.shape))  # pyright: ignore
        rows.append(_row(name, 0, place, term, path, why, size))
    return rows or [_row(name, 0, "", None, path, why, (0,))]


def _example(module: Noisy, time: int, batch: int) -> Tensor:
    """Return an input of a layer without memory for its numbers."""
    features = getattr(module, "in_features", getattr(module, "input_size", None))
    behind = [] if features is None else [features]
    at: int = getattr(module, "time_dim", 0)
    size = [1] * max(2, at + 1, -at - len(behind))
    place = at if at >= 0 else at + len(size) + len(behind)
    size[place], size[1 if place == 0 else 0] = time, batch
    return torch.empty([*size, *behind], device="meta")


def _row(
    module: str, layer: int, place: str, term: Term | None, path: str, why: str, size
) -> Explanation:
    seeds = isinstance(term, Noise) and is_seeded(term) and not _accumulates(term)
    bytes_each = 8 if seeds else torch.get_default_dtype().itemsize
    return Explanation(
        module,
        layer,
        place,
        "" if term is None else str(term),
        getattr(term, "hold", "" if term is None else "step"),
        getattr(term, "estimate", "" if term is None else "sample"),
        path,
        why,
        prod(size) * bytes_each,
    )


def _accumulates(term: Term) -> bool:
    """Return whether a matrix is kept for every step."""
    return isinstance(term, Noise) and is_seeded(term) and term.hold == "cumulative"


def _bytes(count: int) -> str:
    """Return a number of bytes in a readable unit."""
    value, units = float(count), ("B", "KiB", "MiB", "GiB")
    for unit in units[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {units[-1]}"
