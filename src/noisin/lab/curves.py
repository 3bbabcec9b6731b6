"""Curves to watch while a run trains: TensorBoard's files."""

from __future__ import annotations

from pathlib import Path

from noisin.lab import LabError
from noisin.lab.records import Epoch


class Curves:
    """Writes curves over updates; a run that goes on takes up where its checkpoint is.

    Args:
        folder: where the files go; ``tensorboard --logdir`` shows it and those above it.
        update: how many are done; what an earlier process wrote beyond is not shown.

    Raises:
        LabError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, update: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise LabError(f"--tensorboard needs it: pip install tensorboard; {error}") from None
        self._writer = SummaryWriter(str(folder), purge_step=update + 1)

    def within(self, update: int, train: float, norm: float) -> None:
        """Write where a running epoch is.

        Args:
            update: how many are done.
            train: objective of the epoch so far.
            norm: of the last gradient.
        """
        self._writer.add_scalar("train/so far", train, update)
        self._writer.add_scalar("train/gradient norm", norm, update)

    def epoch(self, update: int, epoch: Epoch) -> None:
        """Write a finished epoch."""
        self._writer.add_scalar("train/epoch", epoch.train, update)
        self._writer.add_scalar("train/lr", epoch.lr, update)
        for name, value in epoch.valid.items():
            self._writer.add_scalar(f"valid/{name}", value, update)
        for name, radii in (
            ("spectral radius", epoch.spectral_radius),
            ("radius of W∘W", epoch.squared_radius),
        ):
            for layer, gates in enumerate(radii):
                self._writer.add_scalar(f"{name}/layer {layer}", gates[2 % len(gates)], update)
        for name, value in epoch.spreads.items():
            self._writer.add_scalar(f"spread/{name}", value, update)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
