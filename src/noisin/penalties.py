"""Penalties that are added to a loss: on the weights, and on the activations over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real

import torch
from torch import Tensor, nn

from noisin.laws import Gaussian
from noisin.noise import Noise
from noisin.noisy import Noisy
from noisin.shapes import Float
from noisin.strength import is_learned


def l1(
    model: nn.Module, *, input: float = 0.0, recurrent: float = 0.0, output: float = 0.0
) -> Float[Tensor, ""]:
    """Return Σ λ_k Σ |w| over the weight matrices of a model.

    Args:
        model: any module; its recurrent layers (torch's or ours, no single cells) and its
            ``Linear`` layers are penalized, their biases are not. A shared matrix counts once.
        input: λ of the input-to-hidden matrices W_ih, of every layer.
        recurrent: λ of the recurrent matrices W_hh.
        output: λ of the ``Linear`` layers.

    Raises:
        ValueError: λ below 0 or not finite, no λ above 0, or no matrix of the kind it penalizes.

    Examples:
        >>> layer = torch.nn.RNN(4, 8)
        >>> l1(layer, recurrent=1e-3).shape
        torch.Size([])

    References:
        Ognawala, Bayer: Regularizing recurrent networks, section 7 (RNN-NBR).
    """
    return _penalty(model, torch.abs, input=input, recurrent=recurrent, output=output)


def l2(
    model: nn.Module, *, input: float = 0.0, recurrent: float = 0.0, output: float = 0.0
) -> Float[Tensor, ""]:
    """Return Σ λ_k Σ w² over the weight matrices of a model; arguments as in ``l1``.

    Note:
        torch's ``weight_decay=c`` is λ = c / 2 under SGD, on all parameters, biases among them.

    Examples:
        >>> layer = torch.nn.Linear(2, 1)
        >>> _ = torch.nn.init.constant_(layer.weight, 3.0)
        >>> l2(layer, output=0.5).item()
        9.0

    References:
        Ognawala, Bayer: Regularizing recurrent networks, section 7 (RNN-NBR).
    """
    return _penalty(model, torch.square, input=input, recurrent=recurrent, output=output)


def complexity(model: nn.Module, std: float) -> Float[Tensor, ""]:
    """Return Σ KL(N(w, σ²) ‖ N(0, s²)), the complexity cost of adaptive weight noise.

    Under ``weight_hh + Gaussian(Learned(…))`` a weight is a draw from N(w, σ²), and its term is
    log(s/σ) + (w² + σ²) / (2 s²) - 1/2. With the negative log-likelihood of the whole training set
    the sum is the variational free energy: beside a mean loss a step, divide it by the number of
    steps in that set. Without it nothing holds a learned spread up.

    Args:
        model: any module; the matrices count on which some layer has added Gaussian noise of a
            learned spread, at ``weight_ih``, ``weight_hh`` or ``weight``.
        std: s of the prior, a finite number > 0.

    Raises:
        ValueError: ``std`` out of range, or no such matrix.

    Examples:
        >>> from noisin import RNN
        >>> layer = RNN(4, 8, noise='weight_hh + Gaussian(Learned(0.1, per="weight")) @ sequence')
        >>> loss = layer(torch.randn(5, 3, 4))[0].square().mean() + complexity(layer, 0.1) / 1e5

    References:
        Graves (2011): Practical variational inference for neural networks, section 4.
    """
    if not isinstance(std, Real) or isinstance(std, bool) or not 0 < std < float("inf"):
        raise ValueError(f"complexity: std must be a finite number > 0, got {std!r}")
    costs = []
    for weight, variance in _weight_noise(model):
        ratio = variance / std**2
        costs.append(0.5 * (weight.square() / std**2 + ratio - ratio.log() - 1).sum())
    if not costs:
        raise ValueError(
            "complexity: some weights must have added Gaussian noise of a learned spread, as in "
            f"weight_hh + Gaussian(Learned(0.1)); got none in {type(model).__name__}"
        )
    return torch.stack(costs).sum()


def _weight_noise(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield matrices with learned added Gaussian noise, and its variance for each weight."""
    for layer in model.modules():
        if not isinstance(layer, Noisy):
            continue
        for place, terms in layer.resolve(layer.acting()).items():
            added = [
                (index, term)
                for index, term in enumerate(terms)
                if isinstance(term, Noise) and term.operator == "+" and type(term.law) is Gaussian
            ]
            if place.startswith("weight") and any(is_learned(term) for _, term in added):
                weight = getattr(layer, place)
                variance = torch.zeros_like(weight)
                for index, term in added:
                    std = layer.std_of(place, index, term)
                    variance = variance + std * std
                yield weight, variance


def activation(output: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return the mean of h², the penalty on large activations.

    Args:
        output: activations, in any layout without padding. Merity, McCann and Socher take the
            last layer's after dropout.

    Examples:
        >>> activation(torch.tensor([[1.0], [3.0]])).item()
        5.0

    References:
        Merity, McCann, Socher (2017): Revisiting activation regularization for language RNNs.
    """
    return output.square().mean()


def temporal(output: Float[Tensor, "..."], time_dim: int = 0) -> Float[Tensor, ""]:
    """Return the mean of (h_{t+1} - h_t)², the penalty on fast change; 0 of a single step.

    Args:
        output: activations, in any layout without padding. Merity, McCann and Socher take the
            last layer's before dropout.
        time_dim: the dimension of time; 1 with ``batch_first``.

    Raises:
        ValueError: ``time_dim`` is no dimension of the output.

    Examples:
        >>> temporal(torch.tensor([[1.0], [3.0], [3.0]])).item()
        2.0

    References:
        Merity, McCann, Socher (2017): Revisiting activation regularization for language RNNs.
    """
    if not -output.dim() <= time_dim < output.dim():
        raise ValueError(
            f"temporal: time_dim must be a dimension of the output, got {time_dim} for "
            f"{list(output.shape)}"
        )
    change = output.diff(dim=time_dim)
    return change.square().mean() if change.numel() else change.sum()


def _penalty(
    model: nn.Module, size: Callable[[Tensor], Tensor], **strengths: float
) -> Float[Tensor, ""]:
    for name, strength in strengths.items():
        number = isinstance(strength, Real) and not isinstance(strength, bool)
        if not number or not 0 <= strength < float("inf"):
            raise ValueError(f"{name} must be a finite number >= 0, got {strength!r}")
    acting = {name: strength for name, strength in strengths.items() if strength > 0}
    if not acting:
        raise ValueError(f"one of {', '.join(strengths)} must be > 0, got {strengths}")
    terms = []
    for name, strength in acting.items():
        matrices = _matrices(model, name)
        if not matrices:
            raise ValueError(
                f"{name}={strength} needs weights to penalize; got none in {type(model).__name__}"
            )
        terms += [strength * size(matrix).sum() for matrix in matrices]
    return torch.stack(terms).sum()


def _matrices(model: nn.Module, kind: str) -> list[Tensor]:
    """Return the weight matrices of a kind, each once."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        names: list[str] = []
        if kind == "output" and isinstance(module, nn.Linear):
            names = ["weight"]
        elif kind != "output" and isinstance(module, nn.RNNBase):
            prefix = "weight_ih" if kind == "input" else "weight_hh"
            names = [name for name in module._flat_weights_names if name.startswith(prefix)]
        for matrix in (getattr(module, name) for name in names):
            found[id(matrix)] = matrix  # a parametrized one is made when it is asked for
    return list(found.values())
