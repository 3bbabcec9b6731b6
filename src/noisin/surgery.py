"""Looking into models: which noise acts where, and by which path."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from noisin.functional import path_of
from noisin.layers import NoisyRNNBase
from noisin.stack import places


@dataclass(frozen=True)
class Explanation:
    """What one layer of one module does.

    Args:
        module: name of the module in the model.
        layer: index of the layer.
        terms: the terms that act in it, by place.
        path: ``torch`` or ``reference``.
        why: why that path.
        values: numbers drawn for each step of one sequence (held terms draw them once).
    """

    module: str
    layer: int
    terms: dict[str, str]
    path: str
    why: str
    values: int

    def __str__(self) -> str:
        acting = "; ".join(f"{place}: {terms}" for place, terms in self.terms.items()) or "no noise"
        return (
            f"{self.module or 'model'}, layer {self.layer}: {acting}. Path {self.path}: {self.why}."
        )


def explain(model: nn.Module) -> list[Explanation]:
    """Say for each recurrent layer of a model which noise acts, and which path runs and why.

    Args:
        model: any module; our layers in it are explained.

    Returns:
        One explanation for each layer of each stack, to be printed.

    Example:
        >>> import noisin
        >>> layer = noisin.GRU(4, 8, noise="input * Uniform(1)")
        >>> [(line.terms, line.path) for line in explain(layer)]
        [({'input': 'input * Uniform(1.0)'}, 'torch')]
    """
    lines = []
    for name, module in model.named_modules():
        if not isinstance(module, NoisyRNNBase):
            continue
        stack = module.stack
        found = places(stack, module._acting())
        for layer in range(stack.num_layers):
            ends = [("input", 0), ("output", stack.num_layers - 1)]
            here = {
                place: terms
                for place, terms in found.items()
                if (place, layer) in ends or place.removesuffix("_reverse").endswith(f"_l{layer}")
            }
            path, why = path_of(stack, found, layer)
            values = sum(stack.features(place) * len(terms) for place, terms in here.items())
            shown = {place: " & ".join(map(str, terms)) for place, terms in here.items()}
            lines.append(Explanation(name, layer, shown, path, why, values))
    return lines
