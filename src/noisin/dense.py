"""Drop-in ``Linear`` and ``Embedding`` with ``noise=``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisin import propagated_product
from noisin.draws import Draws
from noisin.laws import Learned
from noisin.noise import Noise, Term
from noisin.noisy import Noisy, Simple
from noisin.product import (
    Acting,
    Fresh,
    Perturbation,
    Propagated,
    multiply_all,
    perturb,
    perturb_held,
)
from noisin.propagation import Moments, checked, each, exact
from noisin.tracing import autocasting, computing


def checked_dim(time_dim: object) -> int:
    """Return the number of a dimension, or raise: it is none."""
    if not isinstance(time_dim, int) or isinstance(time_dim, bool):
        raise ValueError(f"time_dim must be the number of a dimension, got {time_dim!r}")
    return time_dim


class Dense(Simple):
    """What the layers that see all steps at once share: a dimension of time."""

    _time_dim: int = 0
    _features: int = 0  # dimensions of the input behind those of time and batch

    @property
    def time_dim(self) -> int:
        """The dimension of time in the input."""
        return self._time_dim

    @time_dim.setter
    def time_dim(self, time_dim: int) -> None:
        self._time_dim = checked_dim(time_dim)

    def _time(self, term: Noise, input: Tensor) -> int:
        return self._checked_time(input) if term.hold != "step" and input.dim() > 1 else 0

    def _checked_time(self, input: Tensor) -> int:
        """Return the dimension of time as a number >= 0, or raise: the input lacks it."""
        last = input.dim() - self._features
        if not -input.dim() <= self.time_dim < last or self.time_dim % input.dim() >= last:
            raise ValueError(
                f"{type(self).__name__}: time_dim must be a dimension of the input other than "
                f"that of the features, got {self.time_dim} for {list(input.shape)}"
            )
        return self.time_dim % input.dim()


class Linear(Dense, nn.Linear):
    """``torch.nn.Linear`` with noise at its ``input`` or its ``weight``.

    Noise at ``input`` is independent for each number of it; noise at ``weight`` is shared by the
    batch.

    Args:
        in_features: as ``torch.nn.Linear``.
        out_features: as ``torch.nn.Linear``.
        bias: as ``torch.nn.Linear``.
        device: as ``torch.nn.Linear``.
        dtype: as ``torch.nn.Linear``.
        noise: terms such as ``at.input * Bernoulli(keep=0.5)``, their text, or None.
        time_dim: the dimension of time in the input, along which weight noise is fresh at each
            step, ``@ sequence`` is held and ``@ cumulative`` adds up.

    Raises:
        ValueError: a term that cannot act here, or ``time_dim`` is no number.

    Examples:
        >>> layer = Linear(8, 3, noise="weight + Gaussian(0.1)")
        >>> layer(torch.randn(5, 2, 8)).shape
        torch.Size([5, 2, 3])

    References:
        Ognawala, Bayer: Regularizing recurrent networks, equation 14.
    """

    sites = ("input", "weight")
    _features = 1

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

    def _dtype(self, input: Tensor) -> torch.dtype:
        return Noisy._dtype(self, input)

    def _spread_size(self, place: str, term: Noise) -> tuple[int, ...]:
        assert isinstance(term.law.std, Learned)
        per = term.law.std.per
        if per == "layer":
            return ()
        if place == "input":
            return (self.in_features,)
        return (self.out_features, self.in_features if per == "weight" else 1)

    def entry_size(self, term: Noise, input: Tensor) -> list[int]:
        """Return the shape of a term's entry in the draws."""
        if term.estimate == "moments":
            learned = isinstance(term.law.std, Learned)
            return list(self._spread_size(term.site.name, term)) if learned else []
        size = list(input.shape) if input.dim() > 1 else [1, *input.shape]
        if term.site.name == "weight" and term.estimate == "sample":
            held = term.hold == "sequence"
            steps = 1 if held or input.dim() == 1 else size[self._checked_time(input)]
            return [1, self.out_features, self.in_features] if held else [steps]
        if term.estimate == "preactivation":
            size[-1] = self.out_features
        if term.hold == "sequence" and input.dim() > 1:
            size[self._checked_time(input)] = 1
        return size

    def forward(
        self, input: Any, *, draws: Draws | None = None, return_moments: bool = False
    ) -> Any:
        """Return W x + b under noise in x or W.

        Args:
            input: [..., in_features], a tensor or ``Moments``.
            draws: noise from ``draw``, applied whatever the mode.
            return_moments: return ``Moments``, as for an input of moments, also for a tensor.

        Raises:
            ValueError: draws that do not fit, or an input without the dimension of time.
        """
        acting = self._acting(input, draws)
        if isinstance(input, Moments) or return_moments:
            return self._moments(exact(input), acting or {})
        if acting is None:
            return self._plain(input)
        if any(isinstance(one, Propagated) for site in acting.values() for one in site):
            return self._moments(exact(input), acting).mean
        on_input, on_weight = acting["input"], acting["weight"]
        fresh = any(isinstance(one, Fresh) for one in on_weight)
        time = self._checked_time(input) if fresh and input.dim() > 1 else 0
        on_input = [one._replace(value=one.value.movedim(time, 0)) for one in on_input]  # pyright: ignore
        rows = (input[None] if input.dim() == 1 else input).movedim(time, 0)
        weight, bias = self.weight, self.bias
        if autocasting(rows.device):
            dtype = self._dtype(rows)
            rows, weight = rows.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with computing(rows.device):
            result = multiply_all(weight, bias, on_input, on_weight, rows)
        result = result.movedim(0, time).contiguous()
        return result[0] if input.dim() == 1 else result

    def _plain(self, input: Tensor) -> Tensor:
        return nn.Linear.forward(self, input)

    def _moments(self, input: Moments, acting: Mapping[str, Sequence[Acting]]) -> Moments:
        """Return the moments of W x + b."""
        mean = checked(input).mean
        fresh = any(isinstance(one, Fresh) for one in acting.get("weight", ()))
        time = self._checked_time(mean) if fresh and mean.dim() > 1 else 0
        on_input = [
            one._replace(value=one.value.movedim(time, 0)) if isinstance(one, Perturbation) else one
            for one in acting.get("input", ())
        ]
        rows = each(lambda x: (x[None] if x.dim() == 1 else x).movedim(time, 0), input)
        weight, on_weight = self.weight, acting.get("weight", ())
        if not fresh:
            weight = perturb_held(weight, on_weight)
            on_weight = [one for one in on_weight if not isinstance(one, Perturbation)]
        made = propagated_product.noisy_product(
            *(weight, self.bias, on_input, on_weight, len(rows.mean))
        )
        result = each(lambda x: x.movedim(0, time), propagated_product.multiply_all(made, rows))
        return each(lambda x: x[0], result) if mean.dim() == 1 else result


class Embedding(Dense, nn.Embedding):
    """``torch.nn.Embedding`` with noise on its rows: one draw for a word type.

    ``row * Bernoulli(keep=p) @ sequence`` drops whole word types for one call: wherever the word
    stands, its vector is 0. Held for a step, a word is dropped at one step and kept at another:
    T · V numbers are drawn, whatever words occur. The batch shares the draw. The row of
    ``padding_idx`` gets noise as all others do.

    Args:
        num_embeddings: as ``torch.nn.Embedding``, and so all up to ``dtype``.
        embedding_dim: size of a vector.
        padding_idx: a word whose vector stays as it is set.
        max_norm: what vectors are renormed to.
        norm_type: p of that norm.
        scale_grad_by_freq: whether gradients are divided by the frequencies of the words.
        sparse: whether the weight gets a sparse gradient.
        _weight: the weight, in place of one that is drawn.
        _freeze: whether it gets no gradient.
        device: where the weight is.
        dtype: its type.
        noise: terms at ``row``, their text, or None.
        time_dim: the dimension of time in the input.

    Raises:
        ValueError: a term that cannot act here, or ``time_dim`` is no number.

    Examples:
        >>> layer = Embedding(10, 4, noise="row * Bernoulli(keep=0.9) @ sequence")
        >>> layer(torch.tensor([[1, 2], [2, 7]])).shape
        torch.Size([2, 2, 4])

    References:
        Gal, Ghahramani (2016): A theoretically grounded application of dropout, section 4.2.
    """

    sites = ("row",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        noise: Term | str | None = None,
        time_dim: int = 0,
    ) -> None:
        super().__init__(
            *(num_embeddings, embedding_dim, padding_idx, max_norm, norm_type),
            *(scale_grad_by_freq, sparse, _weight, _freeze, device, dtype),
        )
        self.time_dim = time_dim
        self.noise = noise

    def _check(self, term: Noise) -> None:
        super()._check(term)
        if isinstance(term.law.std, Learned) and term.law.std.per != "layer":
            raise ValueError(f'the rows share one spread, per="layer"; got {term}')

    def _spread_size(self, place: str, term: Noise) -> tuple[int, ...]:
        return ()

    def entry_size(self, term: Noise, input: Tensor) -> list[int]:
        """Return the shape of a term's entry in the draws."""
        time = self._checked_time(input)
        return [1 if term.hold == "sequence" else input.shape[time], self.num_embeddings, 1]

    def _time(self, term: Noise, input: Tensor) -> int:
        return 0

    def forward(self, input: Tensor, *, draws: Draws | None = None) -> Tensor:
        """Return the perturbed vectors of the words.

        Args:
            input: word numbers, [...].
            draws: noise from ``draw``, applied whatever the mode.

        Raises:
            ValueError: draws that do not fit.
        """
        acting = self._acting(input, draws)
        vectors = super().forward(input)
        if acting is None:
            return vectors
        shape = [1] * input.dim()
        shape[self.time_dim] = -1
        steps = torch.arange(input.shape[self.time_dim], device=input.device).view(shape)
        return perturb(
            vectors,
            [
                one._replace(value=one.value[0 if len(one.value) == 1 else steps, input])
                for one in acting["row"]
                if isinstance(one, Perturbation)
            ],
        )
