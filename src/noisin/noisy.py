"""What all noisy layers share: their terms, learned spreads, and when noise is on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisin import mapped
from noisin.draws import Draws, Like, Scaled, act, draw_term, outside_checkpoints
from noisin.laws import Learned
from noisin.noise import Noise, Term, joined, terms_of
from noisin.product import Acting
from noisin.propagation import mean_of
from noisin.stack import Places, check_estimates, supported, together
from noisin.strength import scaled
from noisin.text import parse
from noisin.tracing import autocasting
from noisin.zoneout import Zoneout

Drawn = TypeVar("Drawn")


class Noisy(nn.Module):
    """Stands in front of one of torch's layers and gives it terms of noise.

    Attributes:
        noise: the terms, or None. Setting it (to terms or to their text) checks that every term
            can act here, and starts learned spreads anew.
        sampling: keep the noise on in evaluation, and draw what is otherwise propagated; see
            ``noisin.sampling``.
        silent: switch all noise off; see ``noisin.plain``.
        strength: multiplies every standard deviation that is not learned, and the probabilities
            of ``Zoneout``; a finite number >= 0, and 1 unless set. At 0 these terms are off. See
            ``noisin.StrengthSchedule``.
    """

    sampling: bool = False
    silent: bool = False
    _noise: Term | None = None
    _strength: float = 1.0
    _replicas: Sequence[tuple[Noisy, Callable[[], AbstractContextManager[Any]]]] = ()

    @property
    def noise(self) -> Term | None:
        """The terms of noise, or None."""
        return self._noise

    @noise.setter
    def noise(self, noise: Term | str | None) -> None:
        term = parse(noise) if isinstance(noise, str) else noise
        self.resolve(term)
        scaled(term, self._strength)  # or raise
        for name in self._spreads():
            delattr(self, name)
        self._noise = term
        for name, (learned, size) in self._spreads().items():
            setattr(self, name, _started(learned, size, self._weight(torch.empty(0))))

    @property
    def strength(self) -> float:
        """What every fixed standard deviation is multiplied by."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        scaled(self._noise, strength)  # or raise
        self._strength = float(strength)

    @property
    def is_noisy(self) -> bool:
        """Whether any noise acts in training, torch's ``dropout=`` included."""
        return self.acting() is not None

    def acting(self) -> Term | None:
        """Return the noise at its strength."""
        return self._noise if self._strength == 1 else scaled(self._noise, self._strength)

    def on(self, noise: Term | None, given: bool = False) -> Term | None:
        """Return what of some noise acts in this call.

        In training and while sampling all of it does; in evaluation what draws nothing, which is
        the network that was trained: ``@ moments``, and ``Zoneout`` by its expectation.

        Args:
            noise: the terms.
            given: whether draws are handed in, which are applied whatever the mode.
        """
        if self.silent and not given:
            return None
        if self.sampling:
            noise = joined([_drawn(term) for term in terms_of(noise)])
        if given or self.training or self.sampling:
            return noise
        return joined([term for term in terms_of(noise) if _draws_nothing(term)])

    @abstractmethod
    def resolve(self, noise: Term | None) -> Places:
        """Return where each term acts, or raise: a term cannot act here."""

    @abstractmethod
    def _spread_size(self, place: str, term: Noise) -> tuple[int, ...]:
        """Return the shape of a term's learned spread."""

    @abstractmethod
    def draw(self, input: Any, *, generator: torch.Generator | None = None) -> Draws:
        """Draw the noise of one call."""

    def _each(self, make: Callable[[Any], Drawn]) -> Drawn:
        """Return the draws that a function makes for this layer.

        Where it stands for replicas, they are those of each, drawn from its own stream.
        """
        if not self._replicas:
            return make(self)

        def drawn(layer: Noisy, stream: Callable[[], AbstractContextManager[Any]]) -> Drawn:
            with stream():
                return make(layer)

        return mapped.joined([partial(drawn, *replica) for replica in self._replicas])

    def _dtype(self, input: Tensor) -> torch.dtype:
        """Return the type to compute in: that of the input, or autocast's, which leaves float64.

        Everything is cast to it before, and autocast is off below (see ``computing``): a backward
        pass runs without it.
        """
        if autocasting(input.device) and input.dtype != torch.float64:
            return torch.get_autocast_dtype(input.device.type)
        return input.dtype

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set learned spreads to their start."""
        super().reset_parameters()  # pyright: ignore[reportAttributeAccessIssue]
        self._reset_spreads()

    def _reset_spreads(self) -> None:
        for name, (learned, _) in self._spreads().items():
            nn.init.constant_(getattr(self, name), learned.initial())

    def extra_repr(self) -> str:
        """Torch's line, and the noise."""
        noise = "" if self._noise is None else f", noise={self._noise}"
        strength = "" if self._strength == 1 else f", strength={self._strength:g}"
        return super().extra_repr() + noise + strength

    @torch.no_grad()
    def spreads(self) -> dict[str, float]:
        """Return the learned standard deviations by parameter, the mean where there are several."""
        return {
            name: learned.std(getattr(self, name)).mean().item()
            for name, (learned, _) in self._spreads().items()
        }

    def _spreads(self) -> dict[str, tuple[Learned, tuple[int, ...]]]:
        """Return the learned spreads by the names of their parameters, with their shapes."""
        return {
            _rho(place, index): (term.law.std, self._spread_size(place, term))
            for place, terms in self.resolve(self._noise).items()
            for index, term in enumerate(terms)
            if isinstance(term, Noise) and isinstance(term.law.std, Learned)
        }

    def std_of(self, place: str, index: int, term: Noise) -> Tensor | float:
        """Return the current standard deviation of a term, learned or not."""
        std = term.law.std
        return self._spread(place, index, term) if isinstance(std, Learned) else std

    def _std(self, place: str, index: int, term: Noise) -> Tensor | None:
        """Return the current value of a term's learned spread, None of a fixed one."""
        return self._spread(place, index, term) if isinstance(term.law.std, Learned) else None

    def _spread(self, place: str, index: int, term: Noise) -> Tensor:
        """Return the current value of a learned spread."""
        assert isinstance(term.law.std, Learned)
        spread = term.law.std.std(getattr(self, _rho(place, index)))
        return spread.reshape(self._spread_size(place, term))

    def _weight(self, default: Tensor) -> Tensor:
        """Return a tensor of the layer's kind, no parameter where FSDP has flattened them."""
        for parameter in self.parameters():
            return parameter
        held = (getattr(self, name, None) for name in ("weight", "weight_hh_l0"))
        return next((one for one in held if isinstance(one, Tensor)), default)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """Load as torch does; a checkpoint of a plain layer lacks the spreads, which then stay.

        Those of a layer that is made of what is assigned to it (on the meta device) begin anew.
        """
        for name in self._spreads():
            if (rho := state_dict.get(prefix + name)) is not None and not rho.dim():
                state_dict[prefix + name] = rho.reshape(1)  # as an older version kept it
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name, (learned, size) in self._spreads().items():
            if prefix + name not in missing_keys:
                continue
            if local_metadata.get("assign_to_params_buffers") and getattr(self, name).is_meta:
                like = self._weight(torch.empty(0))  # assigned above
                setattr(self, name, _started(learned, size, like))
            missing_keys.remove(prefix + name)


@contextmanager
def standing_for(
    layers: Sequence[Sequence[Noisy]], streams: Sequence[Callable[[], AbstractContextManager[Any]]]
) -> Iterator[None]:
    """Let layers draw for their replicas within the context, inside of vmap.

    Args:
        layers: for each layer that is called its replicas, itself as the first.
        streams: for each replica a context in which its draws are made.
    """
    for first, *others in layers:
        # a copy of the first keeps its parameters, in whose place functional_call puts others
        own = type(first).__new__(type(first))  # parametrized layers refuse copy.copy
        own.__dict__.update(first.__dict__)
        own.__dict__["_parameters"] = dict(first._parameters)
        first._replicas = tuple(zip((own, *others), streams, strict=True))
    try:
        yield
    finally:
        for first, *_ in layers:
            first._replicas = ()


class Simple(Noisy):
    """A noisy layer that is no stack: its places are its sites."""

    sites: tuple[str, ...]

    @abstractmethod
    def entry_size(self, term: Noise, input: Tensor) -> Sequence[int]:
        """Return the shape of a term's entry in the draws."""

    @abstractmethod
    def _time(self, term: Noise, input: Tensor) -> int:
        """Return the dimension of time in a term's draw, along which it may accumulate."""

    def resolve(self, noise: Term | None) -> Places:
        """Return where each term acts, or raise: a term cannot act here."""
        name, found = type(self).__name__, {}
        owner = f"{'an' if name.startswith(tuple('AEIOU')) else 'a'} {name}"
        for one in terms_of(noise):
            term = supported(one, self.sites, owner)
            self._check(term)
            found[term.site.name] = (*found.get(term.site.name, ()), term)
        for place, terms in found.items():
            together(place, terms)
        check_estimates(noise)
        return found

    def _check(self, term: Noise) -> None:
        """Refuse what has no meaning in this layer alone."""
        if term.gates == "untied":
            raise ValueError(f"a {type(self).__name__} has no gates for @ untied; got {term}")
        if term.site.layer is not None:
            raise ValueError(f"a {type(self).__name__} has no layers to index; got {term}")

    def draw(
        self, input: Any, *, generator: torch.Generator | None = None
    ) -> dict[str, tuple[Tensor | Scaled, ...]]:
        """Draw the noise for one call ``layer(input, draws=…)``.

        Args:
            input: the input of that call.
            generator: source of randomness; torch's default generator without it.

        Returns:
            For each site one entry a term, in most cases the final factor or offset; see
            ``noisin.draws``.
        """
        return self._draw(input, generator, given=True)

    def _draw(
        self, input: Any, generator: torch.Generator | None = None, *, given: bool
    ) -> dict[str, tuple[Tensor | Scaled, ...]]:
        input = mean_of(input)
        source, like = outside_checkpoints(generator), self._like(input)
        kind = Like(like.dtype, like.device)

        def make(layer: Simple) -> dict[str, tuple[Tensor | Scaled, ...]]:
            drawn = {}
            for place, terms in layer.resolve(layer.on(layer.acting(), given)).items():
                entries = []
                for index, term in enumerate(terms):
                    assert isinstance(term, Noise)
                    std = layer._std(place, index, term)
                    size = layer.entry_size(term, input)
                    entries.append(
                        draw_term(term, size, layer._time(term, input), std, source, kind)
                    )
                drawn[place] = tuple(entries)
            return drawn

        return self._each(make)

    def _acting(self, input: Any, draws: Draws | None) -> dict[str, list[Acting]] | None:
        """Return what acts in this call by site, None if nothing does, or raise.

        Args:
            input: of the call.
            draws: what is handed in, or None.

        Raises:
            ValueError: the draws are not those of this layer.
        """
        noise = self.on(self.acting(), given=draws is not None)
        if noise is None and not draws:
            return None
        if draws is None:
            draws = self._draw(input, given=False)
        input, found = mean_of(input), self.resolve(noise)
        if not isinstance(draws, Mapping):
            raise ValueError(f"draws must be a dict by site, got {type(draws).__name__}")
        got = {p: len(e) if isinstance(e, tuple | list) else e for p, e in draws.items()}
        if got != {place: len(terms) for place, terms in found.items()}:
            raise ValueError(
                f"draws must hold one entry for each term of {noise}, by site; got {got}"
            )
        acting, like = {site: [] for site in self.sites}, self._like(input)
        for place, terms in found.items():
            for term, entry in zip(terms, draws[place], strict=True):
                assert isinstance(term, Noise)
                acting[place].append(act(place, term, entry, self.entry_size(term, input), like))
        return acting

    def _dtype(self, input: Tensor) -> torch.dtype:
        """Return the type to compute in; autocast lowers products only."""
        return input.dtype

    def _like(self, input: Tensor) -> Tensor:
        """Return a tensor of the kind that noise is drawn in: that of the weights."""
        like = self._weight(input).detach()
        return like.to(self._dtype(like))


def _draws_nothing(term: Term) -> bool:
    return isinstance(term, Zoneout) or (isinstance(term, Noise) and term.estimate == "moments")


def _drawn(term: Term) -> Term:
    """Return the term, drawn where it would be propagated."""
    if isinstance(term, Noise) and term.estimate == "moments":
        return replace(term, estimate="sample")
    return term


def _started(learned: Learned, size: Sequence[int], like: Tensor) -> nn.Parameter:
    """Return ρ at its start, one number as [1]: FSDP takes no scalars."""
    shape = size or (1,)
    return nn.Parameter(torch.full(shape, learned.initial(), dtype=like.dtype, device=like.device))


def _rho(place: str, index: int) -> str:
    """Return the name of a learned spread's parameter."""
    return f"rho_{place}" + (f"_{index}" if index else "")
