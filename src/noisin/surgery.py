"""Turning layers of existing models into noisy ones, and back into torch's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from noisin.dense import Embedding, Linear, checked_dim
from noisin.layers import GRU, LSTM, RNN, NoisyRNNBase
from noisin.likelihood import GaussianHead, Head
from noisin.noise import Noise, Term, terms_of
from noisin.noisy import Noisy
from noisin.recurrence import Recurrence
from noisin.strength import scaled
from noisin.text import parse
from noisin.zoneout import Zoneout

Model = TypeVar("Model", bound=nn.Module)

OURS: dict[type[nn.Module], type[Noisy]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.Linear: Linear,
    nn.Embedding: Embedding,
}
OWN = (
    "_noise",
    "_strength",
    "sampling",
    "silent",
    "propagation",
    "_time_dim",
    "_replicas",
    "_reached",
)  # attributes that torch's layers lack


def regularize(
    model: Model,
    noise: Term | str | None,
    where: str | Sequence[str] | None = None,
    *,
    time_dim: int | None = None,
) -> Model:
    """Turn layers of a model into noisy ones, in place.

    A layer stays the object it is: parameters, buffers, hooks, the training flag, device and dtype
    are untouched, and so is what is tied or shared. In evaluation the model computes what it did,
    bit for bit (zoneout and ``@ moments`` aside). Call it before the optimizer is made if a spread
    is learned.

    Args:
        model: any module, which may be a recurrent layer itself.
        noise: the terms that each chosen layer gets, or their text; None makes the layers ours
            without noise. A layer of ours gets them in place of its own.
        where: names of modules, or patterns such as ``"decoder.*"``: the ``RNN``, ``GRU``,
            ``LSTM``, ``Linear`` and ``Embedding`` layers of such a name. Without it, all recurrent
            layers.
        time_dim: dimension of time in the input of ``Linear`` and ``Embedding`` layers; without
            it a layer keeps what it was given before, or takes 0. It must be given once where some
            layer of the model is ``batch_first`` and a term depends on where time is.

    Returns:
        The model itself.

    Raises:
        ValueError: no layer is chosen, a term cannot act in one, or it is not told where time is;
            then nothing is changed.

    Note:
        A subclass of torch's layers keeps its class as a base. If its own ``forward`` never calls
        torch's, noise could not act: the first call in training raises a RuntimeError.

    Examples:
        >>> model = nn.Sequential(nn.LSTM(4, 8, num_layers=2))
        >>> regularize(model, "hidden * Bernoulli(keep=0.8)")
        Sequential(
          (0): LSTM(4, 8, num_layers=2, noise=hidden * Bernoulli(keep=0.8))
        )
    """
    terms = parse(noise) if isinstance(noise, str) else noise
    chosen = layers_of(model, where)
    for name, module in chosen.items():
        try:
            _probe(module).resolve(terms)
            scaled(terms, getattr(module, "strength", 1.0))
        except ValueError as error:
            raise ValueError(f"{name or 'the model'}: {error}") from None
    if time_dim is None:
        _check_time(model, chosen, terms)
    else:
        checked_dim(time_dim)
    layer: Any
    for layer in chosen.values():
        layer.__class__ = _noisy(type(layer))
        if isinstance(layer, Linear | Embedding) and time_dim is not None:
            layer.time_dim = time_dim
        layer.noise = terms
    return model


def _check_time(model: nn.Module, chosen: Mapping[str, nn.Module], terms: Term | None) -> None:
    """Refuse to guess where time is in the input of a layer that sees all steps at once."""
    first = [n for n, one in model.named_modules() if getattr(one, "batch_first", False) is True]
    dense = [
        name
        for name, one in chosen.items()
        if isinstance(one, nn.Linear | nn.Embedding) and "_time_dim" not in vars(one)
    ]
    of_time = [term for term in terms_of(terms) if _depends_on_time(term)]
    if first and dense and of_time:
        raise ValueError(
            f"{dense[0]}: time_dim must say where time is in its input, for {of_time[0]} depends "
            f"on it and {first[0] or 'the model'} is batch_first (1: [B, T, F]); got none"
        )


def _depends_on_time(term: Term) -> bool:
    """Return whether the noise of a ``Linear`` or ``Embedding`` depends on where time is."""
    if not isinstance(term, Noise):
        return False
    matrix = term.site.name in ("weight", "row") and term.estimate != "preactivation"
    return term.hold != ("sequence" if matrix else "step")  # a matrix is drawn anew at each step


def strip(model: nn.Module, *, inplace: bool = False) -> Any:
    """Return the model with plain torch layers in place of ours; learned spreads are dropped.

    What comes back needs torch alone: it can be saved, exported, quantized. In evaluation it
    computes what the noisy model does, bit for bit (a wide ``CategoricalHead`` but for rounding).

    Args:
        model: any module.
        inplace: change the model itself instead of a copy (which ``copy.deepcopy`` makes, and
            refuses where a model holds results of a training step).

    Raises:
        ValueError: a layer that torch cannot express: ``RNN(nonlinearity="sigmoid")``,
            ``Zoneout`` and ``@ moments`` (their evaluation is not the plain cell), ``Recurrence``,
            ``GaussianHead``, or a subclass of a layer of ours.

    Examples:
        >>> strip(LSTM(4, 8, noise="hidden * Bernoulli(keep=0.8)"))
        LSTM(4, 8)
    """
    plain = {
        name: _plain(name or "the model", module)
        for name, module in model.named_modules()
        if isinstance(module, Noisy)
    }
    result = model if inplace else copy.deepcopy(model)
    for name, theirs in plain.items():
        module: Any = result.get_submodule(name)
        module.noise = None
        for attribute in OWN:
            module.__dict__.pop(attribute, None)
        module.__class__ = theirs
    return result


def _probe(module: nn.Module) -> Any:
    """Return what the layer would be, to ask; its parameters are shared."""
    theirs = type(module)
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ValueError(
            "noise acts when a layer is called; the parent of this one only reads its weights, "
            f"got {theirs.__name__}"
        )
    if any(map(nn.parameter.is_lazy, module.parameters(recurse=False))):
        raise ValueError(f"a lazy layer must have seen an input before, got {theirs.__name__}")
    cls = _noisy(theirs)
    taken = [] if isinstance(module, Noisy) else _names_of(cls) & set(dir(module))
    if taken:
        raise ValueError(
            f"the names of noisin must be free, for what they mean here, in {theirs.__name__}; "
            f"got {', '.join(sorted(taken))}"
        )
    probe = cls.__new__(cls)
    probe.__dict__ = dict(module.__dict__)
    return probe


@cache
def _names_of(noisy: type[Noisy]) -> set[str]:
    """Return the names that a noisy class has and torch's layers have not."""
    plain = next(kind for kind in OURS if issubclass(noisy, kind))
    return {*dir(OURS[plain]), "_reached", "theirs"} - set(dir(plain))


def layers_of(model: nn.Module, where: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the layers to change, by name."""
    kinds = (nn.RNNBase,) if where is None else tuple(OURS)
    able = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, kinds)
    }
    if where is None:
        if not able:
            raise ValueError(
                f"a model to regularize must have an RNN, GRU or LSTM (name other layers with "
                f"where=), got {type(model).__name__}"
            )
        return able
    chosen: dict[str, nn.Module] = {}
    patterns = [where] if isinstance(where, str) else list(where)
    if not patterns:
        raise ValueError(f"where must name layers, one of {', '.join(map(repr, able))}; got none")
    for pattern in patterns:
        named = {name: module for name, module in able.items() if fnmatchcase(name, pattern)}
        if not named:
            raise ValueError(
                f"where must name layers of the model, {', '.join(map(repr, able)) or 'none'}; "
                f"got {pattern!r}"
            )
        chosen |= named
    return chosen


def _noisy(theirs: type[nn.Module]) -> type[Noisy]:
    """Return the noisy class for a class of layers."""
    if issubclass(theirs, Noisy):
        return theirs
    if _is_parametrized(theirs):
        return _parametrized(theirs, _noisy(theirs.__base__))  # pyright: ignore
    plain = next((one for one in OURS if issubclass(theirs, one)), None)
    if plain is None:
        raise ValueError(f"noise acts in RNN, GRU and LSTM layers, got {theirs.__name__}")
    return OURS[plain] if theirs is plain else _joined(theirs, OURS[plain])


def _is_parametrized(kind: type) -> bool:
    """Return whether torch.nn.utils.parametrize made a class, for one layer alone."""
    saved = vars(kind).get("__getstate__")
    return getattr(saved, "__module__", None) == parametrize.__name__


def _parametrized(kind: type[nn.Module], base: type[nn.Module]) -> Any:
    """Return what torch would have made of another class: so parametrizations come off again."""
    own = dict(vars(kind))
    for name in ("__dict__", "__weakref__"):
        own.pop(name, None)
    return type(f"Parametrized{base.__name__}", (base,), own)


@cache
def _joined(theirs: type[nn.Module], ours: type[Noisy]) -> type[Noisy]:
    """Return a subclass of both: ours stands behind theirs and in front of torch's layer."""

    class Reached(ours):
        _reached: object = None  # another one each time, so that threads hide nothing

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                self._reached = object()
            return super().forward(*args, **kwargs)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self._reached
        result = super(joined, self).forward(*args, **kwargs)
        reached = torch.compiler.is_compiling() or self._reached is not before
        if not reached and self.on(self.acting()) is not None:
            raise RuntimeError(
                f"{theirs.__name__}.forward must call super().forward for noise to act; it did not"
            )
        return result

    def reduce(self: Any, protocol: Any) -> Any:
        return _rebuilt, (theirs, ours), self.__getstate__()

    members = {
        "theirs": theirs,
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": theirs.__module__,
    }
    joined: Any = type(theirs.__name__, (theirs, Reached), members)  # pyright: ignore
    return joined


def _rebuilt(theirs: type[nn.Module], ours: type[Noisy]) -> Noisy:
    joined = _joined(theirs, ours)
    return joined.__new__(joined)


def _plain(name: str, module: Noisy) -> type[nn.Module]:
    """Return torch's class for a layer of ours, or raise: there is none."""
    if isinstance(module, Recurrence):
        raise ValueError(f"{name}: torch has no layer for a Recurrence; its cell is {module.cell}")
    if any(isinstance(term, Zoneout) for term in terms_of(module.noise)):
        raise ValueError(
            f"{name}: torch cannot express zoneout, which evaluation keeps as its expectation; "
            f"got {module.noise}"
        )
    if any(getattr(term, "estimate", "") == "moments" for term in terms_of(module.noise)):
        raise ValueError(
            f"{name}: torch cannot express @ moments, which evaluation keeps; for the plain "
            f"network of the same weights set noise = None first; got {module.noise}"
        )
    if isinstance(module, NoisyRNNBase) and module.mode == "RNN_SIGMOID":
        raise ValueError(f"{name}: torch has no RNN of nonlinearity 'sigmoid', got {module}")
    if isinstance(module, GaussianHead):
        raise ValueError(f"{name}: torch's Linear has no spread of its own, got a GaussianHead")
    return _plain_class(name, type(module))


def _plain_class(name: str, kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that one of ours stands in front of."""
    if _is_parametrized(kind):
        return _parametrized(kind, _plain_class(name, kind.__base__))  # pyright: ignore
    for theirs, ours in OURS.items():
        if kind is ours:
            return theirs
    if issubclass(kind, Head):
        return nn.Linear
    theirs = getattr(kind, "theirs", None)
    if theirs is not None:
        return theirs
    raise ValueError(f"{name}: strip knows the layers of noisin, got its subclass {kind.__name__}")
