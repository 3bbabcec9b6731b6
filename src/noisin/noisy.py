"""What all noisy layers share: their terms, learned spreads, and when noise is on."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from noisin.draws import Draws, Places
from noisin.laws import Learned
from noisin.noise import Noise, Term
from noisin.text import parse


class Noisy(nn.Module):
    """Stands in front of one of torch's layers and gives it terms of noise.

    Attributes:
        noise: the terms, or None. Setting it (to terms or to their text) checks that every term
            can act here, and starts learned spreads anew.
        sampling: keep the noise on in evaluation; see ``noisin.sampling``.
    """

    sampling: bool = False
    _noise: Term | None = None

    @property
    def noise(self) -> Term | None:
        """The terms of noise, or None."""
        return self._noise

    @noise.setter
    def noise(self, noise: Term | str | None) -> None:
        term = parse(noise) if isinstance(noise, str) else noise
        self._resolve(term)
        for name in self._spreads():
            delattr(self, name)
        self._noise = term
        like = next(self.parameters())
        for name, (learned, features) in self._spreads().items():
            size = () if learned.per == "layer" else (features,)
            rho = torch.full(size, learned.initial(), dtype=like.dtype, device=like.device)
            setattr(self, name, nn.Parameter(rho))

    @abstractmethod
    def _resolve(self, noise: Term | None) -> Places:
        """Return where each term acts, or raise: a term cannot act here."""

    @abstractmethod
    def _features(self, place: str) -> int:
        """Return the last dimension of what is drawn at a place."""

    @abstractmethod
    def draw(self, input: Any, *, generator: torch.Generator | None = None) -> Draws:
        """Draw the noise of one call."""

    def _given_or_drawn(self, input: Any, draws: Draws | None) -> Draws | None:
        """Return the noise of this call: what is given, what is drawn, or None while it is off."""
        if draws is None and (self.training or self.sampling):
            return self.draw(input)
        return draws

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set learned spreads to their start."""
        super().reset_parameters()  # pyright: ignore[reportAttributeAccessIssue]
        for name, (learned, _) in self._spreads().items():
            nn.init.constant_(getattr(self, name), learned.initial())

    def extra_repr(self) -> str:
        """Torch's line, and the noise."""
        return super().extra_repr() + ("" if self._noise is None else f", noise={self._noise}")

    @torch.no_grad()
    def spreads(self) -> dict[str, float]:
        """Return the learned standard deviations by parameter, the mean where there are several."""
        return {
            name: learned.std(getattr(self, name)).mean().item()
            for name, (learned, _) in self._spreads().items()
        }

    def _spreads(self) -> dict[str, tuple[Learned, int]]:
        """Return the learned spreads by the names of their parameters, with F of their places."""
        return {
            _rho(place, index): (term.law.std, self._features(place))
            for place, terms in self._resolve(self._noise).items()
            for index, term in enumerate(terms)
            if isinstance(term.law.std, Learned)
        }

    def _std(self, place: str, index: int, term: Noise) -> Tensor | None:
        """Return the current value of a term's learned spread, None of a fixed one."""
        return self._spread(place, index) if isinstance(term.law.std, Learned) else None

    def _spread(self, place: str, index: int) -> Tensor:
        name = _rho(place, index)
        return self._spreads()[name][0].std(getattr(self, name))

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """Load as torch does; a checkpoint of a plain layer lacks the spreads, which then stay."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in self._spreads():
            if prefix + name in missing_keys:
                missing_keys.remove(prefix + name)


def _rho(place: str, index: int) -> str:
    """Return the name of a learned spread's parameter."""
    return f"rho_{place}" + (f"_{index}" if index else "")
