"""The recurrent part of every model, from a recipe's settings."""

from __future__ import annotations

from noisin import init
from noisin.lab.recipe import Config
from noisin.layers import GRU, LSTM, RNN
from noisin.noise import Term


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
    for layer in range(config.num_layers):
        weight = getattr(layers, f"weight_hh_l{layer}")
        if config.nonzeros is not None:
            init.sparse_(weight, config.nonzeros, std=config.hidden_size**-0.5)
        if config.spectral_radius is not None:
            init.spectral_radius_(weight, config.spectral_radius)
    return layers
