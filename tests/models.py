"""Whole models for the tests: torch's own layers, as users write them."""

import torch
from torch import nn

from cases import make

WORDS, FEATURES, HIDDEN = 7, 3, 5
IDS = torch.tensor([[1, 2, 1], [2, 5, 0], [6, 1, 1], [0, 2, 5]])  # [T, B]


class Tagger(nn.Module):
    """Words in, scores of words out: what a user writes around a recurrent layer."""

    def __init__(self, kind="LSTM", package=nn, tied=False, **options):
        super().__init__()
        torch.manual_seed(4)
        features = HIDDEN if tied else FEATURES
        self.words = nn.Embedding(WORDS, features)
        self.rnn = make(kind, features, HIDDEN, package=package, **options)
        self.read = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), WORDS)
        if tied:
            self.read.weight = self.words.weight

    def forward(self, ids):
        return self.read(self.rnn(self.words(ids))[0])


class Scaled(nn.LSTM):
    """A layer of the user's own, with an attribute, which calls torch's."""

    def __init__(self, *args, scale=2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return self.scale * output, state


class Shifted(Scaled):
    """One more on top of it."""

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output + 1, state


class Renamed(nn.LSTM):
    """A layer whose ``forward`` is torch's own."""

    def size(self):
        return self.hidden_size


class Deaf(nn.LSTM):
    """A layer that never calls torch's ``forward``."""

    def forward(self, input, hx=None):
        return input @ self.weight_ih_l0.T, hx


def kept(model):
    """Return what surgery may not change: each parameter and buffer, by identity, and modes."""
    tensors = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    tensors |= {name: id(b) for name, b in model.named_buffers(remove_duplicate=False)}
    modules = dict(model.named_modules(remove_duplicate=False))
    return tensors, {name: (id(module), module.training) for name, module in modules.items()}


def kinds(model):
    """Return the exact class of each module, by name."""
    return {name: type(module) for name, module in model.named_modules(remove_duplicate=False)}


def state(model):
    """Return everything that a refusal may not change."""
    noise = {name: getattr(module, "noise", "absent") for name, module in model.named_modules()}
    return kinds(model), kept(model), noise, list(model.state_dict())
