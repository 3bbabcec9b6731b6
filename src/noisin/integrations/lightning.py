"""For Lightning: callbacks that bring noise in, log what it does, and set its strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from noisin.diagnostics import learned_spreads, spectral_radius
from noisin.noise import Term
from noisin.noisy import Noisy
from noisin.schedule import StrengthSchedule
from noisin.surgery import layers_of, regularize
from noisin.text import parse


class Regularize(Callback):
    """Make layers of a module noisy before its optimizer is made, as ``noisin.regularize`` does.

    For packages that build their network inside of ``fit`` and take callbacks for the trainer, and
    for modules that build it in ``setup`` or ``configure_model``, after which it acts again. Where
    all chosen layers have this noise already they are left, so that a second ``fit`` goes on.

    Args:
        noise: the terms, or their text.
        where: names of modules, or patterns; without it, all recurrent layers.
        time_dim: dimension of time in the input of ``Linear`` and ``Embedding`` layers.

    Raises:
        ValueError: a text that is no noise; in ``fit``: what ``noisin.regularize`` refuses.

    Examples:
        >>> callback = Regularize("hidden * Gaussian(1.0)")
        >>> # darts.models.RNNModel(…, pl_trainer_kwargs={"callbacks": [callback]})
    """

    def __init__(
        self,
        noise: Term | str,
        where: str | Sequence[str] | None = None,
        *,
        time_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.noise = parse(noise) if isinstance(noise, str) else noise
        self.where = where
        self.time_dim = time_dim

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change the layers that there are, and all once the module is built."""
        with suppress(ValueError):  # told below, if they are still not there
            self._regularize(pl_module)
        configure_model = pl_module.configure_model

        def configured() -> None:
            vars(pl_module).pop("configure_model", None)  # this function, before the class's
            configure_model()
            self._regularize(pl_module)

        pl_module.configure_model = configured

    def _regularize(self, module: LightningModule) -> None:
        layers = layers_of(module, self.where).values()
        if not all(isinstance(layer, Noisy) and layer.noise == self.noise for layer in layers):
            regularize(module, self.noise, self.where, time_dim=self.time_dim)


class NoiseMonitor(Callback):
    """Log spectral radii, learned spreads and gradient norms of recurrent layers, and set strength.

    The trainer's loggers and its ``callback_metrics`` get, by the name of each layer:

    - ``radius/NAME``: max |λ| of ``weight_hh``, the largest over layers, gates and directions (not
      where ``proj_size`` makes it no square);
    - ``spread/NAME.rho_…``: learned standard deviations, the mean where there are several;
    - ``gradient/NAME``: the 2-norm of the loss's gradient over all parameters of the layer, as the
      optimizer gets it: with ``precision="16-mixed"`` after unscaling, and before clipping;
    - ``strength``: what all fixed standard deviations are multiplied by, where it is scheduled.

    Args:
        every: steps of the optimizer between two logs, >= 1.
        strength: s, from the number of optimizer steps done to a number >= 0, as
            ``StrengthSchedule`` takes it; None leaves the strength alone. A checkpoint holds the
            step, so that training goes on at the strength it had.

    Raises:
        ValueError: ``every`` out of range; in ``fit``: a strength without noise to set it in.

    Examples:
        >>> from noisin.schedule import linear
        >>> monitor = NoiseMonitor(every=10, strength=linear(0.0, 1.0, 1000))
        >>> # trainer = lightning.Trainer(callbacks=[monitor])
    """

    def __init__(self, *, every: int = 50, strength: Callable[[int], float] | None = None) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"NoiseMonitor: every must be >= 1, got {every}")
        self.every = every
        self._strength = strength
        self._schedule: StrengthSchedule | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the strength of the step that training begins at."""
        if self._strength is not None:
            self._schedule = StrengthSchedule(pl_module, self._strength)
            self._set(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the strength of this step."""
        self._set(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the strength that follows, for what is evaluated or kept now."""
        self._set(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log what there is at this step."""
        if trainer.global_step % self.every:
            return
        layers = _recurrent_layers(pl_module)
        square = {name: layer for name, layer in layers.items() if not layer.proj_size}
        found = {f"radius/{name}": _radius(layer) for name, layer in square.items()}
        found |= {f"spread/{name}": std for name, std in learned_spreads(pl_module).items()}
        for name, layer in layers.items():
            grads = [p.grad for p in layer.parameters() if p.grad is not None]
            if grads:
                found[f"gradient/{name}"] = nn.utils.get_total_norm(grads).item()
        if self._schedule is not None:
            found["strength"] = self._schedule.strength
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(x) for name, x in found.items()})

    def _set(self, trainer: Trainer) -> None:
        if self._schedule is not None:
            self._schedule.load_state_dict({"steps": trainer.global_step})


def _recurrent_layers(model: nn.Module) -> dict[str, nn.RNNBase]:
    """Return the recurrent layers of a model by name, torch's among them."""
    return {
        name or type(module).__name__: module
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase)
    }


def _radius(layer: nn.RNNBase) -> float:
    names = [name for name in layer._flat_weights_names if name.startswith("weight_hh")]
    weights = [getattr(layer, name) for name in names]  # as they act, parametrized or not
    return max(spectral_radius(weight.detach()).max().item() for weight in weights)
