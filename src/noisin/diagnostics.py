"""Looking at recurrences: the spectral radius, and how far gradients reach back in time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noisin import at, functional
from noisin.laws import Gaussian
from noisin.noisy import Noisy
from noisin.reference import State
from noisin.shapes import Float
from noisin.stack import Stack
from noisin.variance import split_gradient as split_gradient
from noisin.variance import variance_field as variance_field


@torch.no_grad()
def spectral_radius(
    weight_hh: Float[Tensor, "GH H"], *, squared: bool = False
) -> Float[Tensor, " G"]:
    """Return max |λ| of each gate's square block of the recurrent weights.

    Args:
        weight_hh: [G·H, H]: one block for an Elman RNN, r, z, n for a GRU, i, f, g, o for an LSTM.
        squared: of W ∘ W, by which variances go from step to step. ρ(W ∘ W) <= ρ(W)² holds for
            weights of one sign, and not in general.

    Returns:
        One radius a gate, in float64; NaN where a block has numbers that are not finite.

    Raises:
        TypeError: something else than a tensor, as the layer itself.
        ValueError: the weights are no stack of square blocks. (Those of a layer with ``proj_size``
            never are, even where their rows could be cut so.)

    Examples:
        >>> spectral_radius(torch.tensor([[3.0, 7.0], [0.0, 2.0]])).tolist()
        [3.0]
    """
    if not isinstance(weight_hh, Tensor):
        raise TypeError(
            "spectral_radius: weight_hh must be a matrix, such as layer.weight_hh_l0; "
            f"got {type(weight_hh).__name__}"
        )
    size = list(weight_hh.shape)
    if len(size) != 2 or not all(size) or size[0] % size[1]:
        raise ValueError(
            "spectral_radius: weight_hh must be a stack of square blocks, [G·H, H]; "
            f"got a tensor of shape {size}"
        )
    blocks = weight_hh.double().unflatten(0, (-1, size[1]))
    blocks = blocks.square() if squared else blocks
    finite = blocks.isfinite().flatten(1).all(1)
    # LAPACK would leave an eigenvalue out, or not return
    radii = torch.linalg.eigvals(blocks.where(finite[:, None, None], 0)).abs().amax(-1)
    return radii.where(finite, torch.nan)


def recurrent_radii(model: nn.Module, *, squared: bool = False) -> list[list[float]]:
    """Return the spectral radius of each recurrent layer of a model, a number a gate.

    Args:
        model: any module; its recurrent layers, torch's and ours, are looked at, in the forward
            direction. Those with ``proj_size`` have no square weights, and are left out.
        squared: of W ∘ W.

    Examples:
        >>> from noisin import GRU
        >>> [len(gates) for gates in recurrent_radii(GRU(4, 8, num_layers=2))]
        [3, 3]
    """
    return [
        spectral_radius(getattr(module, f"weight_hh_l{layer}"), squared=squared).tolist()
        for module in model.modules()
        if isinstance(module, nn.RNNBase) and not module.proj_size
        for layer in range(module.num_layers)
    ]


def learned_spreads(model: nn.Module) -> dict[str, float]:
    """Return the learned standard deviations of a model; of several in one parameter, the mean.

    Args:
        model: any module; its layers of ours are looked at.

    Examples:
        >>> from noisin import RNN
        >>> spreads = learned_spreads(RNN(4, 8, noise="hidden + Gaussian(Learned(0.5))"))
        >>> {name: round(std, 4) for name, std in spreads.items()}
        {'rho_hidden_l0': 0.5}
    """
    return {
        f"{name}.{spread}".lstrip("."): value
        for name, module in model.named_modules()
        if isinstance(module, Noisy)
        for spread, value in module.spreads().items()
    }


@torch.enable_grad()
def gradient_norms(
    stack: Stack,
    weights: list[list[Tensor]],
    x: Float[Tensor, "T B I"],
    state: State,
    loss: Callable[[Tensor], Tensor] = torch.sum,
) -> Float[Tensor, "L T"]:
    """Return ‖∂ℓ/∂h_{T-1-k}‖ for each lag k, of a loss at the last step of the plain network.

    The gradient with respect to h_t is the total one: along every path from h_t to the loss. A
    zero offset added at ``hidden`` receives exactly this gradient.

    Args:
        stack: shape of the layers, in one direction.
        weights: their parameters, as ``RNNBase.all_weights`` gives them.
        x: input.
        state: initial state, as ``noisin.functional.recur`` takes it.
        loss: scalar function of the last output [B, P].

    Returns:
        The norm over batch and features for each layer, at lag 0 first.

    Raises:
        ValueError: the stack is bidirectional, where the last output is no end of time.

    Examples:
        >>> from noisin import RNN
        >>> layer = RNN(4, 8)
        >>> x, state = torch.randn(5, 3, 4), (torch.zeros(1, 3, 8),)
        >>> gradient_norms(layer.stack, layer.all_weights, x, state).shape
        torch.Size([1, 5])
    """
    if stack.bidirectional:
        raise ValueError("gradient_norms: the stack must run in one direction, got two")
    time, batch, _ = x.shape
    offsets = {
        f"hidden_l{layer}": (x.new_zeros(time, batch, stack.state_size).requires_grad_(),)
        for layer in range(stack.num_layers)
    }
    # the law of this term is never drawn from: the offsets are zeros
    noise = at.hidden + Gaussian(1.0)
    output, _ = functional.recur(stack, weights, x, state, noise=noise, draws=offsets)
    grads = torch.autograd.grad(loss(output[-1]), [offset for (offset,) in offsets.values()])
    return torch.stack([g.flatten(1).norm(dim=1).flip(0) for g in grads])
