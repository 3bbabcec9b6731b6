"""Noise as data: where the terms of a layer stack act, and the draws that are handed in.

A *place* is one site in one layer and direction, named like torch's weights: ``input``,
``hidden_l0``, ``hidden_l0_reverse``, ``recurrent_l1``, ``between_l0``, ``output``. Draws are a
plain dict from each place to one tensor a term: the final factor 1 + ε or the final offset ε.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisin.laws import Learned
from noisin.noise import Noise, Term, terms_of
from noisin.reference import Perturbation
from noisin.shapes import Float

Draws = Mapping[str, tuple[Tensor, ...]]
Places = dict[str, tuple[Noise, ...]]

SITES = ("input", "between", "hidden", "recurrent", "output")


@dataclass(frozen=True)
class Stack:
    """The shape of a stack of recurrent layers.

    Args:
        mode: ``LSTM``, ``GRU``, ``RNN_TANH``, ``RNN_RELU`` or ``RNN_SIGMOID``.
        input_size: I.
        hidden_size: H.
        num_layers: L.
        bidirectional: whether each layer runs in both directions.
        proj_size: P, the size that an LSTM projects h to, or 0.
    """

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0

    @property
    def directions(self) -> tuple[str, ...]:
        """The suffixes of places and weights, one a direction."""
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def state_size(self) -> int:
        """Size of h: P with a projection, else H."""
        return self.proj_size or self.hidden_size

    def state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        """Return the shapes of h_0, and for an LSTM of c_0."""
        rows = self.num_layers * len(self.directions)
        shapes = [(rows, batch, self.state_size)]
        return [*shapes, (rows, batch, self.hidden_size)] if self.mode == "LSTM" else shapes

    def features(self, place: str) -> int:
        """Return F, the last dimension of the tensor that a place stands for."""
        if place == "input":
            return self.input_size
        both = len(self.directions) if place.startswith(("between", "output")) else 1
        return self.state_size * both


def places(stack: Stack, noise: Term | None) -> Places:
    """Return where each term acts, each place with its terms from left to right.

    Raises:
        ValueError: a term cannot act in this stack.
    """
    found: Places = {}
    for term in terms_of(noise):
        for place in _places_of(stack, supported(term, SITES, "a recurrent layer")):
            found[place] = (*found.get(place, ()), term)  # pyright: ignore[reportArgumentType]
    return found


def supported(term: Term, sites: Sequence[str], owner: str) -> Noise:
    """Return the term, or refuse what a layer cannot do.

    Args:
        term: the term.
        sites: where noise can act in the layer.
        owner: the layer, for the message.

    Raises:
        ValueError: the term cannot act there.
    """
    if not isinstance(term, Noise):
        raise ValueError(f"{owner} does not support {type(term).__name__} yet; got {term}")
    if term.site.name not in sites:
        raise ValueError(
            f"noise in {owner} acts at {', '.join(sites)}; {term.site.name} is not supported "
            f"there (yet), got {term}"
        )
    if term.gates != "tied" or term.estimate != "sample":
        word = term.gates if term.gates != "tied" else term.estimate
        raise ValueError(f"{owner} does not support @ {word} yet; got {term}")
    if isinstance(term.law.std, Learned) and term.law.std.per == "weight":
        raise ValueError(f'a spread per="weight" needs a site that is a weight; got {term}')
    return term


def _places_of(stack: Stack, term: Noise) -> list[str]:
    site, last = term.site.name, stack.num_layers - 1
    if site in ("input", "output"):
        return [site]
    available = range(last if site == "between" else stack.num_layers)
    if not available:
        raise ValueError(
            f"between is h of a layer on its way to the next: it needs num_layers >= 2, "
            f"got num_layers=1 with {term} (for one layer, zaremba takes num_layers=1)"
        )
    layers = available
    if term.site.layer is not None:
        if not -len(available) <= term.site.layer < len(available):
            raise ValueError(
                f"{site}[layer] must be within 0 … {len(available) - 1} or count from the end, "
                f"got {term} for {stack.num_layers} layers"
            )
        layers = [available[term.site.layer]]
    directions = ("",) if site == "between" else stack.directions
    return [f"{site}_l{layer}{d}" for layer in layers for d in directions]


def draw(
    stack: Stack,
    noise: Term | None,
    time: int,
    batch: int,
    *,
    spread: Callable[[str, int], Tensor] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, tuple[Float[Tensor, "_ B _"], ...]]:
    """Draw all noise for one call.

    ε_t belongs to real time: the draws stand in padded layout and in the batch's original order,
    whatever the lengths and the direction.

    Args:
        stack: shape of the layers.
        noise: the terms.
        time: T, the longest sequence.
        batch: B.
        spread: for learned spreads, std of (place, index of the term there).
        generator: source of randomness; torch's default generator without it.
        dtype: floating type of the draws.
        device: where to draw.

    Returns:
        For each place one tensor a term: [T, B, F], or [1, B, F] if held for the sequence.

    Raises:
        ValueError: a term cannot act in this stack, or a learned spread is missing.
    """
    drawn = {}
    for place, terms in places(stack, noise).items():
        values = []
        for index, term in enumerate(terms):
            size = (1 if term.hold == "sequence" else time, batch, stack.features(place))
            learned = isinstance(term.law.std, Learned)
            std = spread(place, index) if spread is not None and learned else None
            values.append(draw_term(term, size, 0, std, generator, dtype, device))
        drawn[place] = tuple(values)
    return drawn


def draw_term(
    term: Noise,
    size: Sequence[int],
    time_dim: int,
    std: Tensor | None,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """Draw the final factor or offset of one term; ``cumulative`` adds up along ``time_dim``."""
    sample = term.law.factor if term.operator == "*" else term.law.sample
    value = sample(size, std=std, generator=generator, dtype=dtype, device=device)
    if term.hold != "cumulative":
        return value
    return value.cumprod(time_dim) if term.operator == "*" else value.cumsum(time_dim)


def perturbations(
    places: Places, draws: Draws, stack: Stack, x: Float[Tensor, "T B I"]
) -> dict[str, list[Perturbation]]:
    """Pair the draws with their operators.

    Raises:
        ValueError: the draws are not those of these places, or a shape, dtype or device does not
            fit the input.
    """
    if set(draws) != set(places):
        raise ValueError(
            f"draws must have exactly the places {sorted(places)}, got {sorted(draws)}"
        )
    time, batch, _ = x.shape
    paired: dict[str, list[Perturbation]] = {}
    for place, terms in places.items():
        if len(draws[place]) != len(terms):
            raise ValueError(
                f"draws[{place!r}] must hold a tensor for each of the {len(terms)} terms there, "
                f"got {len(draws[place])}"
            )
        paired[place] = []
        for term, value in zip(terms, draws[place], strict=True):
            size = (1 if term.hold == "sequence" else time, batch, stack.features(place))
            if not isinstance(value, Tensor):
                raise ValueError(f"draws[{place!r}] must hold tensors, got {type(value).__name__}")
            if value.shape != size or value.dtype != x.dtype or value.device != x.device:
                raise ValueError(
                    f"draws[{place!r}] of {term} must be {list(size)} in {x.dtype} on {x.device}, "
                    f"got {list(value.shape)} in {value.dtype} on {value.device}"
                )
            paired[place].append(Perturbation(term.operator, value))
    return paired
