"""What the models of all tasks share: the recurrent layers, and who gets which noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisin import at, init
from noisin.inference import fold, unfold
from noisin.lab.config import Config
from noisin.lab.task import at_least_float32
from noisin.layers import GRU, LSTM, RNN
from noisin.noise import Noise, Term, joined, terms_of
from noisin.propagation import Moments, each
from noisin.text import parse


class Shares(NamedTuple):
    """The noise of a model, by the layer that it acts in.

    Args:
        embedding: terms at ``row``.
        recurrent: terms of the recurrent layers.
        head: terms at ``weight``, and those at ``output``, which is the ``input`` of the head.
        shared_by_batch: whether one draw serves a whole batch, so that K draws cannot be folded
            into it.
        propagated: whether the recurrent layers propagate some of theirs.
    """

    embedding: Term | None
    recurrent: Term | None
    head: Term | None
    shared_by_batch: bool
    propagated: bool


def share(noise: str) -> Shares:
    """Split the noise of a recipe among embedding, recurrent layers and head."""
    rows, inside, head, shared = [], [], [], False
    for term in terms_of(parse(noise)):
        site = term.site.name if isinstance(term, Noise) else ""
        weights = site in ("row", "weight", "weight_ih", "weight_hh")
        shared |= weights and getattr(term, "estimate", "") == "sample"
        if isinstance(term, Noise) and site in ("output", "weight"):
            head.append(replace(term, site=at.input) if site == "output" else term)
        else:
            (rows if site == "row" else inside).append(term)
    propagated = any(getattr(term, "estimate", "") == "moments" for term in inside)
    return Shares(joined(rows), joined(inside), joined(head), shared, propagated)


def asked(moments: bool) -> dict[str, bool]:
    """Return what asks a layer for moments, which one of torch's knows nothing of."""
    return {"return_moments": True} if moments else {}


def in_draws(
    model: Callable[[Tensor], Tensor | Moments], inputs: Tensor, samples: int, apart: bool
) -> Any:
    """Return what a model gives for K draws of the noise, [K, T, B, F], in float32 at least.

    Args:
        model: gives [T, B, F].
        inputs: [T, B, I].
        samples: K.
        apart: whether one draw serves a whole batch: K calls, in the place of one of K batches.
    """
    if apart:
        drawn = each(_stacked, *(model(inputs) for _ in range(samples)))
    else:
        drawn = each(lambda one: unfold(one, samples), model(fold(inputs, samples)))
    return each(at_least_float32, drawn)


def _stacked(*parts: Tensor) -> Tensor:
    return torch.stack(parts)


def recurrent(config: Config, input_size: int, noise: Term | str | None) -> LSTM | GRU | RNN:
    """Return the recurrent layers of a model.

    Args:
        config: cell, sizes and start.
        input_size: I.
        noise: terms that act in these layers.

    Raises:
        ValueError: a term that cannot act in them.
    """
    shape = (input_size, config.hidden_size, config.num_layers)
    if config.cell == "lstm":
        layers = LSTM(*shape, noise=noise)
    elif config.cell == "gru":
        layers = GRU(*shape, noise=noise)
    else:
        layers = RNN(*shape, nonlinearity=config.cell, noise=noise)
    std = getattr(config, "init_std", None)
    for layer in range(config.num_layers):
        weight = getattr(layers, f"weight_hh_l{layer}")
        if config.nonzeros is not None:
            init.sparse_(weight, config.nonzeros, std=std or config.hidden_size**-0.5)
        elif std is not None:
            nn.init.normal_(weight, std=std)
        if config.spectral_radius is not None:
            init.spectral_radius_(weight, config.spectral_radius)
    return layers
