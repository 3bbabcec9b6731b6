"""The recurrence by the Triton kernels of ``noisin.fused.kernels``.

``Steps`` is one step without its matrix products, ``Walk`` all steps with them: a launch a step and
way, or two with a projection, and one more at the end of the way back; or else one launch each way,
*persistent*, where the GPU has room for all its programs at once. A walk may take several calls of
one shape at once, *replicas*, in the same number of launches. Importing this module imports Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.language import constexpr

from noisin.fused import kernels
from noisin.fused.buffers import Buffers, Gradients
from noisin.fused.recurrent import Call
from noisin.fused.triton_launch import POINTWISE, Launch, blocks, multiprocessors, run
from noisin.fused.triton_told import Arguments, Rows, rows_of, told_of


def serves(dtype: torch.dtype) -> bool:
    """Return whether the kernels take buffers of this dtype."""
    return dtype == torch.float32


class Steps:
    """The steps of one call; methods as those of ``Eager``, which also says what they compute.

    Args:
        buffers: of the way forward.
        gradients: of the way back.
    """

    def __init__(self, buffers: Buffers, gradients: Gradients | None = None) -> None:
        arguments = Arguments(told_of([buffers], [gradients]))
        told = arguments.told
        self._forward = Launch(kernels.forward, arguments, told.hidden, POINTWISE)
        self._emit = Launch(kernels.emit_state, arguments, told.state, POINTWISE)
        self._absorb = Launch(kernels.absorb_state, arguments, told.state, POINTWISE)
        self._backward = Launch(kernels.backward, arguments, told.hidden, POINTWISE)

    def forward(self, t: int, product: Tensor) -> None:
        """From W_hh h_{t-1} to h_t before a projection."""
        self._forward(t, product.contiguous())

    def emit(self, t: int) -> None:
        """z_t: h_t under the noise of ``hidden`` and zoneout."""
        self._emit(t)

    def absorb(self, t: int) -> None:
        """The gradient of h_t before noise from what arrives at z_t."""
        self._absorb(t)

    def backward(self, t: int) -> None:
        """The gradients of both products from that of h_t before a projection."""
        self._backward(t)


class Walk:
    """All steps of one call, or of several at once.

    Args:
        calls: of one shape, with the same kinds of noise. Buffers and gradients are in float32;
            biases, noise, h0, c0 and ``out`` may be in half precision. What a matrix is multiplied
            with is rounded to its dtype.
        persistent: whether all steps are one launch where its programs can run at once.
    """

    def __init__(self, calls: Sequence[Call], persistent: bool = False) -> None:
        products = [call.product for call in calls]
        first = products[0]
        noise = [one for one in (first.factor, first.offset) if one is not None]
        draws = max([one.shape[-1] // first.weight.shape[-1] for one in noise], default=1)
        self._noises, self._replicas, self._persistent = draws * len(noise), len(calls), persistent
        self._steps = calls[0].buffers.steps
        told = told_of([call.buffers for call in calls], [call.gradients for call in calls])
        self._told = told._replace(
            draws=constexpr(draws),
            weight=rows_of([_contiguous(one.weight) for one in products]),
            projection=rows_of([_contiguous(call.projection) for call in calls]),
            recurrent_factor=rows_of([_contiguous(one.factor) for one in products]),
            recurrent_offset=rows_of([_contiguous(one.offset) for one in products]),
        )
        self._arguments = Arguments(self._told)

    def forward(self) -> None:
        """From W_ih x and the first state to the outputs and the last state."""
        told, gates = self._told, self._told.gate_count.value
        if self._at_once(kernels.all_steps, gates, self._noises):
            return
        launches = [self._launch(kernels.step, told.hidden, told.weight, gates, self._noises)]
        if told.projection.at is not None:
            launches.append(self._launch(kernels.project, told.state, told.projection))
        run(launches, self._steps)

    def backward(self) -> None:
        """From the gradients of those to what arrives at the products of each step."""
        told = self._told
        if self._at_once(kernels.all_steps_back):
            return
        launches = [self._launch(kernels.step_back, told.state, told.weight)]
        if told.projection.at is not None:
            launches.append(self._launch(kernels.project_back, told.hidden, told.projection))
        run(launches, self._steps[::-1])
        run([self._launch(kernels.send_back, told.state, told.weight)], self._steps[:1])

    def _at_once(self, kernel: Any, products: int = 1, noises: int = 0) -> bool:
        """Take all steps in one launch, or return that there is no room for its programs."""
        told = self._told
        if not self._persistent or told.states.at is None:
            return False
        device = told.states.at.device
        widest = max(told.hidden, told.state, key=lambda units: units.value)
        matrix = told.weight if told.projection.at is None else told.projection  # never narrower
        room = multiprocessors(device)
        launch = self._launch(kernel, widest, matrix, products, noises, room)
        if launch.programs > room:
            return False
        launch(torch.zeros(self._replicas, dtype=torch.int32, device=device))
        return True

    def _launch(
        self,
        kernel: Any,
        units: constexpr,
        matrix: Rows,
        products: int = 1,
        noises: int = 0,
        room: int = 0,
    ) -> Launch:
        """Return the launch of a kernel with a product.

        Args:
            kernel: of ``noisin.fused.kernels``.
            units: which programs share among them, H or P.
            matrix: what is multiplied with, its numbers as wide as any.
            products: how many products a program makes at once.
            noises: how many factors and offsets act on what the matrix is multiplied with.
            room: how many programs run at once, where they wait for each other.
        """
        assert matrix.at is not None
        column, row = products * matrix.at.element_size(), 4 * (1 + noises)
        tile = blocks(self._told.batch, units.value, column, row, self._replicas, room)
        return Launch(kernel, self._arguments, units, tile, self._replicas)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
