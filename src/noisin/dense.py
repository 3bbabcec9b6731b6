"""Drop-in ``Linear`` and ``Embedding`` with ``noise=``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noisin.draws import Draws, Places, draw_term, supported
from noisin.noise import Noise, Term, terms_of
from noisin.noisy import Noisy
from noisin.reference import Perturbation, perturb


class Dense(Noisy):
    """What the layers that see all steps at once share: one site, and a dimension of time."""

    site: str
    time_dim: int

    def _resolve(self, noise: Term | None) -> Places:
        name = f"a {type(self).__name__}"
        terms = tuple(supported(term, (self.site,), name) for term in terms_of(noise))
        return {self.site: terms} if terms else {}

    def _size(self, term: Noise, input: Tensor) -> list[int]:
        """Return the shape of a term's draw."""
        raise NotImplementedError

    def draw(
        self, input: Tensor, *, generator: torch.Generator | None = None
    ) -> dict[str, tuple[Tensor, ...]]:
        """Draw the noise for one call ``layer(input, draws=…)``.

        Args:
            input: the input of that call.
            generator: source of randomness; torch's default generator without it.

        Returns:
            For the site one tensor a term, the final factor or offset.
        """
        weight = next(self.parameters())
        return {
            place: tuple(
                draw_term(
                    term,
                    self._size(term, input),
                    self._time(term),
                    self._std(place, index, term),
                    generator,
                    weight.dtype,
                    weight.device,
                )
                for index, term in enumerate(terms)
            )
            for place, terms in self._resolve(self._noise).items()
        }

    def _time(self, term: Noise) -> int:
        """Return the dimension of time in a term's draw."""
        return self.time_dim

    def _perturbations(self, input: Tensor, draws: Draws) -> list[Perturbation]:
        """Pair the draws with their operators, or raise: they are not those of this layer."""
        terms = self._resolve(self._noise).get(self.site, ())
        values = draws.get(self.site, ())
        if set(draws) - {self.site} or len(values) != len(terms):
            raise ValueError(
                f"draws must hold {len(terms)} tensors at {self.site!r}, got "
                f"{ {place: len(parts) for place, parts in draws.items()} }"
            )
        for term, value in zip(terms, values, strict=True):
            size = self._size(term, input)
            if not isinstance(value, Tensor) or list(value.shape) != size:
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"draws[{self.site!r}] of {term} must be {size}, got {got}")
        return [Perturbation(t.operator, v) for t, v in zip(terms, values, strict=True)]


class Linear(Dense, nn.Linear):
    """``torch.nn.Linear`` with noise at its ``input``, independent for each number of it.

    Args:
        in_features: as ``torch.nn.Linear``.
        out_features: as ``torch.nn.Linear``.
        bias: as ``torch.nn.Linear``.
        device: as ``torch.nn.Linear``.
        dtype: as ``torch.nn.Linear``.
        noise: terms such as ``at.input * Bernoulli(keep=0.5)``, their text, or None.
        time_dim: the dimension of time in the input, for ``@ sequence`` and ``@ cumulative``.

    Raises:
        ValueError: a term that cannot act here.

    Example:
        >>> layer = Linear(8, 3, noise="input * Bernoulli(keep=0.5) @ sequence")
        >>> layer(torch.randn(5, 2, 8)).shape
        torch.Size([5, 2, 3])
    """

    site = "input"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        noise: Term | str | None = None,
        time_dim: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.time_dim = time_dim
        self.noise = noise

    def _features(self, place: str) -> int:
        return self.in_features

    def _size(self, term: Noise, input: Tensor) -> list[int]:
        size = list(input.shape)
        if term.hold == "sequence":
            size[self.time_dim] = 1
        return size

    def forward(self, input: Tensor, *, draws: Draws | None = None) -> Tensor:
        """Return W (perturbed input) + b.

        Args:
            input: [..., in_features].
            draws: noise from ``draw``, applied whatever the mode.

        Raises:
            ValueError: draws that do not fit.
        """
        draws = self._given_or_drawn(input, draws)
        if draws is not None:
            input = perturb(input, self._perturbations(input, draws))
        return super().forward(input)


class Embedding(Dense, nn.Embedding):
    """``torch.nn.Embedding`` with noise on its rows: one draw for a word type.

    ``row * Bernoulli(keep=p) @ sequence`` drops whole word types for one call: wherever the word
    stands, its vector is 0. Held for a step, a word is dropped at one step and kept at another.
    The batch shares the draw.

    Args:
        *args: as ``torch.nn.Embedding``.
        noise: terms at ``row``, their text, or None.
        time_dim: the dimension of time in the input.
        **kwargs: as ``torch.nn.Embedding``.

    Raises:
        ValueError: a term that cannot act here.

    Example:
        >>> layer = Embedding(10, 4, noise="row * Bernoulli(keep=0.9) @ sequence")
        >>> layer(torch.tensor([[1, 2], [2, 7]])).shape
        torch.Size([2, 2, 4])

    References:
        Gal, Ghahramani (2016): A theoretically grounded application of dropout, section 4.2.
    """

    site = "row"

    def __init__(
        self, *args: Any, noise: Term | str | None = None, time_dim: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.time_dim = time_dim
        self.noise = noise

    def _features(self, place: str) -> int:
        return 1

    def _size(self, term: Noise, input: Tensor) -> list[int]:
        time = 1 if term.hold == "sequence" else input.shape[self.time_dim]
        return [time, self.num_embeddings, 1]

    def _time(self, term: Noise) -> int:
        return 0

    def forward(self, input: Tensor, *, draws: Draws | None = None) -> Tensor:
        """Return the perturbed vectors of the words.

        Args:
            input: word numbers, [...].
            draws: noise from ``draw``, applied whatever the mode.

        Raises:
            ValueError: draws that do not fit.
        """
        draws = self._given_or_drawn(input, draws)
        vectors = super().forward(input)
        if draws is None:
            return vectors
        shape = [1] * input.dim()
        shape[self.time_dim] = -1
        steps = torch.arange(input.shape[self.time_dim], device=input.device).view(shape)
        return perturb(
            vectors,
            [
                Perturbation(op, value[steps if len(value) > 1 else 0, input])
                for op, value in self._perturbations(input, draws)
            ],
        )
