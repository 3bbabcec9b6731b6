"""One run on several processes and machines, through Lightning Fabric.

The batch of the recipe is cut among the processes (*ranks*), each of which draws its own noise;
their gradients are averaged, so that with noise off the run is that of one process but for
rounding. The first rank alone reads and writes files, scores, and decides when to stop.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, distributed, nn

from noisin.lab import LabError
from noisin.lab.config import Accelerator, AnyConfig, Precision, layout_of
from noisin.lab.task import Loss, Stopped, Task

T = TypeVar("T")
MEETING = timedelta(minutes=10)  # that ranks wait for each other to begin, and in each update
PATIENCE = timedelta(hours=6)  # that they wait for the first one, which scores alone


class Elsewhere(LabError):
    """What the first rank refused, on the others; it has said so."""


@dataclass(frozen=True)
class Layout:
    """Where a run computes, and how precisely.

    Args:
        devices: processes on each machine, one for each device.
        nodes: machines.
        strategy: how processes work together: ``ddp``, gradients are averaged.
        precision: ``32-true``, or ``bf16-mixed`` (products in bfloat16, weights in float32).
        accelerator: ``cpu``, ``cuda``, or ``auto``.

    Raises:
        LabError: another value.
    """

    devices: int = 1
    nodes: int = 1
    strategy: str = "ddp"
    precision: str = "32-true"
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("strategy", ("ddp",)),
            ("precision", get_args(Precision)),
            ("accelerator", (*get_args(Accelerator), "auto")),
        ):
            if getattr(self, name) not in allowed:
                raise LabError(
                    f"--{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )

    def check_started(self) -> None:
        """Refuse another number of processes than torchrun has started.

        Raises:
            LabError: another number.
        """
        started = os.environ.get("WORLD_SIZE", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
        if started.isdigit() and int(started) != self.size:
            raise LabError(
                f"--devices times --nodes must be the {started} processes that torchrun started, "
                f"got {self.devices} times {self.nodes}"
            )

    @property
    def plain(self) -> bool:
        """Whether each run is one process, on the CPU, in float32."""
        return self == Layout()

    @property
    def size(self) -> int:
        """Processes of a run."""
        return self.devices * self.nodes

    def shared(self, replicas: int) -> Accelerator | None:
        """Return where runs compute that share a process, None for one run a process.

        Raises:
            LabError: a layout in which runs cannot share one.
        """
        if replicas == 1:
            return None
        if self != Layout(accelerator=self.accelerator):
            raise LabError(
                "--replicas are runs of one device in 32-true; leave out --devices, --nodes and "
                f"--precision, got {self}"
            )
        there = torch.cuda.is_available()
        if self.accelerator == "cuda" and not there:
            raise LabError("--accelerator cuda must find a device of CUDA; there is none")
        return "cuda" if self.accelerator != "cpu" and there else "cpu"


def check_cut(config: AnyConfig, processes: int) -> None:
    """Refuse batches that cannot be cut.

    Raises:
        LabError: fewer sequences in a batch than processes.
    """
    if config.batch_size < processes:
        raise LabError(
            f"batch_size must be at least the {processes} processes that share a batch, "
            f"got {config.batch_size}"
        )


class Ranks:
    """The processes of a run: here a single one, which talks to nobody."""

    rank, size = 0, 1
    precision: Precision = "32-true"
    accelerator: Accelerator = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the one that reads and writes."""
        return self.rank == 0

    @property
    def decides(self) -> tuple[str, ...]:
        """What of the processes decides the numbers of a run: nothing for a plain one."""
        return layout_of(self.size, self.precision, self.accelerator)

    def setup(self, task: Task) -> Callable[[Any], Loss]:
        """Bring a task's model to its device, and return what gives the loss of a batch."""
        return task.loss

    def part(self, task: Task, batch: Any) -> Any:
        """Return this rank's share of a batch."""
        return batch

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over the ranks."""
        loss.backward()

    def rest(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def sum(self, values: Sequence[float]) -> Sequence[float]:
        """Return sums over the ranks."""
        return values

    def from_first(self, function: Callable[[], T]) -> T:
        """Return what a function gives in the first rank, where alone it is called.

        Raises:
            Elsewhere: on the other ranks, if the function refused its work.
            Stopped: if it was stopped.
        """
        return function()

    def on_all(self, function: Callable[[], T]) -> T:
        """Return what a function gives in this rank, or refuse its work where any rank does.

        Raises:
            LabError: on the first rank that refused.
            Elsewhere: on all others.
        """
        return function()

    def check_same(self, own: object, what: str) -> None:
        """Refuse to go on where a rank has something else than the first one.

        Args:
            own: what this rank has.
            what: it is, in words.

        Raises:
            LabError: on the first rank that has something else.
        """
        first = self.from_first(lambda: own)

        def compare() -> None:
            if own != first:
                raise LabError(
                    f"{what} must be the same for all processes; rank {self.rank} has others"
                )

        self.on_all(compare)

    def gathered(self, own: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return what each rank has, in the first; nothing in the others."""
        return [own]

    def reseed(self, seed: int) -> None:
        """Let the noise of this rank be its own; the first keeps the generator as it is."""
        if self.rank:
            own = np.random.SeedSequence((seed, self.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(own[0]) >> 1)

    def generators(self) -> dict[str, Tensor]:
        """Return the states of the generators that draw noise."""
        found = {"generator": torch.get_rng_state()}
        if self.accelerator == "cuda":
            found["generator-cuda"] = torch.cuda.get_rng_state()
        return found

    def restore_generators(self, states: dict[str, Tensor]) -> None:
        """Take up what ``generators`` gave."""
        torch.set_rng_state(states["generator"])
        if self.accelerator == "cuda":
            torch.cuda.set_rng_state(states["generator-cuda"])


class _Objective(nn.Module):
    """The loss of a task as a module, since gradients are averaged around a forward pass."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self._loss = task.model, task.loss
        named = self.model.named_parameters()
        self._spreads = [p for name, p in named if name.rpartition(".")[2].startswith("rho_")]

    def forward(self, batch: Any) -> Loss:
        loss = self._loss(batch)
        # a spread that no output depends on has a gradient all the same, which is averaged
        none = sum(0 * spread.sum() for spread in self._spreads)
        return loss._replace(total=loss.total + none)


class FabricRanks(Ranks):
    """The processes that Lightning Fabric starts, or that torchrun or SLURM have started.

    Args:
        layout: how many, and how they compute.

    Raises:
        LabError: Fabric is missing or refuses the layout.
    """

    def __init__(self, layout: Layout) -> None:
        try:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies.ddp import DDPStrategy
        except ImportError as error:
            raise LabError(
                "several processes, other devices and precisions need Lightning Fabric: pip "
                f'install "noisin[lab]"; {error}'
            ) from None
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        several = layout.size > 1
        threads = torch.get_num_threads()
        try:
            self.fabric = Fabric(
                accelerator=layout.accelerator,
                devices=layout.devices,
                num_nodes=layout.nodes,
                precision=layout.precision,  # pyright: ignore[reportArgumentType]
                strategy=DDPStrategy(timeout=MEETING) if several else "auto",
            )
            self.fabric.launch()
        except (ValueError, RuntimeError) as error:
            which = f"{layout.devices} × {layout.nodes} processes on {layout.accelerator}"
            raise LabError(f"{which} cannot be had here; {error}") from None
        torch.set_num_threads(threads)
        self.rank, self.size = self.fabric.global_rank, self.fabric.world_size
        # what is agreed upon goes through the CPU, whatever averages gradients
        self._group: Any = (
            distributed.new_group(backend="gloo", timeout=PATIENCE) if several else None
        )
        self.precision = "bf16-mixed" if layout.precision == "bf16-mixed" else "32-true"
        self.accelerator = "cuda" if self.fabric.device.type == "cuda" else "cpu"

    def setup(self, task: Task) -> Callable[[Any], Loss]:
        """Bring a task's model to its device, and return what gives the loss of a batch."""
        task.device = self.fabric.device
        return self.fabric.setup_module(_Objective(task))

    def part(self, task: Task, batch: Any) -> Any:
        """Return this rank's share of a batch."""
        return task.part(batch, self.rank, self.size) if self.size > 1 else batch

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over the ranks."""
        self.fabric.backward(loss)

    def sum(self, values: Sequence[float]) -> Sequence[float]:
        """Return sums over the ranks."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total, group=self._group)
        return total.tolist()

    def from_first(self, function: Callable[[], T]) -> T:
        """Return what a function gives in the first rank, where alone it is called."""
        if self.size == 1:
            return function()
        result, refused = None, None
        if self.first:
            try:
                result = function()
            except (LabError, Stopped) as error:
                refused = error
        told: list[Any] = [(result, refused is not None, isinstance(refused, Stopped))]
        distributed.broadcast_object_list(told, group=self._group)
        result, failed, stopped = told[0]
        if refused is not None:
            raise refused
        if failed:
            raise Stopped if stopped else Elsewhere
        return result  # pyright: ignore[reportReturnType]

    def on_all(self, function: Callable[[], T]) -> T:
        """Return what a function gives in this rank, or refuse its work where any rank does."""
        if self.size == 1:
            return function()
        result, refused = None, None
        try:
            result = function()
        except LabError as error:
            refused = error
        every: list[bool] = [False] * self.size
        distributed.all_gather_object(every, refused is not None, group=self._group)
        if refused is not None and not any(every[: self.rank]):
            raise refused
        if any(every):
            raise Elsewhere
        return result  # pyright: ignore[reportReturnType]

    def gathered(self, own: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return what each rank has, in the first; nothing in the others."""
        if self.size == 1:
            return [own]
        every: list[Any] | None = [None] * self.size if self.first else None
        own = {name: tensor.cpu() for name, tensor in own.items()}
        distributed.gather_object(own, every, group=self._group)
        return every or []
