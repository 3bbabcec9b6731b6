"""rmsprop with Nesterov momentum, as the fast-dropout paper trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class NesterovRMSprop(Optimizer):
    """rmsprop whose step is taken after a look ahead along the momentum.

    With g the gradient at the look-ahead point θ̃ = θ - μ v:

        r ← decay · r + (1 - decay) · g²
        v ← μ v + lr · g / √(r + eps)
        θ ← θ - v

    Args:
        params: parameters, or groups of them.
        lr: step rate, > 0.
        momentum: μ, 0 <= μ < 1.
        decay: of the mean square r, 0 <= decay < 1.
        eps: added to r inside the root, > 0.

    Raises:
        ValueError: a number out of range.
        RuntimeError: in a step, a gradient is sparse.

    Note:
        As in ``torch.optim.SGD(nesterov=True)`` the parameters hold θ̃, where the next gradient is
        taken. The mean square starts at 1. ``torch.optim.RMSprop`` has neither: its momentum is
        classical, its mean square starts at 0 and its eps stands outside the root.

    Examples:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = NesterovRMSprop(layer.parameters(), lr=1e-3, momentum=0.99)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    References:
        Bayer et al.: On fast dropout and its applicability to recurrent networks, section 2.3.
        Sutskever et al. (2013): On the importance of initialization and momentum.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.9,
        decay: float = 0.9,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take up a group of parameters, whose numbers may be its own."""
        group = {**self.defaults, **param_group}
        for name, good in (
            ("lr", 0 < group["lr"] < math.inf),
            ("eps", 0 < group["eps"] < math.inf),
            ("momentum", 0 <= group["momentum"] < 1),
            ("decay", 0 <= group["decay"] < 1),
        ):
            if not good:
                rule = "finite and > 0" if name in ("lr", "eps") else "in [0, 1)"
                raise ValueError(f"NesterovRMSprop: {name} must be {rule}, got {group[name]}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; ``closure`` as in every torch optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)
        return loss

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.is_sparse:
            raise RuntimeError("NesterovRMSprop takes no sparse gradients")
        state = self.state[p]
        if not state:
            state["mean_square"] = torch.ones_like(p)
            state["velocity"] = torch.zeros_like(p)
        mean_square, velocity = state["mean_square"], state["velocity"]
        mean_square.mul_(group["decay"]).addcmul_(grad, grad, value=1 - group["decay"])
        move = group["lr"] * grad / torch.sqrt(mean_square + group["eps"])
        velocity.mul_(group["momentum"]).add_(move)
        p.sub_(move).sub_(velocity, alpha=group["momentum"])
