"""Noise around a cell of the user's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noisin.draws import Draws
from noisin.laws import Learned
from noisin.noise import Noise, Term
from noisin.noisy import Simple
from noisin.product import by_time, perturb
from noisin.shapes import Float

State = Any


class Recurrence(Simple):
    """Run any cell over time, with noise at what it reads and shows.

    (h_t, s_t) = cell(x_t, s_{t-1}). ``input`` perturbs x_t, ``output`` what is returned of h_t.
    Where the first tensor of the state is h, ``hidden`` perturbs h_t itself, in the state and in
    the output, and ``recurrent`` perturbs h_{t-1} in the state that the cell reads.

    Args:
        cell: a module ``(x_t [B, I], state) -> (h_t [B, H], state)``; the state is a tensor or a
            tuple of tensors. torch's ``RNNCell``, ``GRUCell`` and ``LSTMCell`` are taken as they
            are.
        input_size: I.
        hidden_size: H, size of h_t.
        noise: terms at ``input``, ``output``, ``hidden``, ``recurrent``, their text, or None.

    Raises:
        ValueError: no cell, or no sizes; a term that cannot act here; ``@ untied``,
            ``@ preactivation`` and noise in the weights need to see into the cell.

    Note:
        What an opaque cell cannot separate stays joined: everything in it that reads h_{t-1}
        sees ``recurrent`` noise, the z ⊙ h_{t-1} of a ``GRUCell`` among it, which
        ``noisin.GRU`` leaves clean.

    Examples:
        >>> layer = Recurrence(nn.GRUCell(4, 8), 4, 8, noise="hidden * Gaussian(0.5)")
        >>> output, state = layer(torch.randn(5, 3, 4), torch.zeros(3, 8))
        >>> output.shape
        torch.Size([5, 3, 8])
    """

    sites = ("input", "output", "hidden", "recurrent")

    def __init__(
        self,
        cell: nn.Module,
        input_size: int,
        hidden_size: int,
        *,
        noise: Term | str | None = None,
    ) -> None:
        super().__init__()
        if not callable(cell):
            raise ValueError(f"cell must be a module (x, state) -> (h, state), got {cell!r}")
        if not all(isinstance(size, int) and size >= 1 for size in (input_size, hidden_size)):
            raise ValueError(f"sizes must be numbers >= 1, got {input_size!r} and {hidden_size!r}")
        self.cell = cell
        self.input_size, self.hidden_size = input_size, hidden_size
        self.noise = noise

    def _check(self, term: Noise) -> None:
        super()._check(term)
        if term.estimate != "sample":
            raise ValueError(f"a Recurrence cannot look into its cell; got {term}")

    def _features(self, place: str) -> int:
        return self.input_size if place == "input" else self.hidden_size

    def _spread_size(self, place: str, term: Noise) -> tuple[int, ...]:
        layer = isinstance(term.law.std, Learned) and term.law.std.per == "layer"
        return () if layer else (self._features(place),)

    def entry_size(self, term: Noise, input: Tensor) -> tuple[int, ...]:
        """Return the shape of a term's entry in the draws."""
        time = 1 if term.hold == "sequence" else input.shape[0]
        return (time, input.shape[1], self._features(term.site.name))

    def _time(self, term: Noise, input: Tensor) -> int:
        return 0

    def reset_parameters(self) -> None:
        """Set learned spreads to their start, and let the cell draw its weights anew if it can."""
        reset = getattr(self.cell, "reset_parameters", None)
        if reset is not None:
            reset()
        self._reset_spreads()

    def forward(
        self, input: Float[Tensor, "T B I"], state: State, *, draws: Draws | None = None
    ) -> tuple[Float[Tensor, "T B H"], State]:
        """Run the cell over time.

        Args:
            input: x [T, B, I], T >= 1.
            state: the state before the first step, as the cell takes it.
            draws: noise from ``draw``, applied whatever the mode; without it the layer draws in
                training, and in evaluation while ``sampling``.

        Returns:
            The output [T, B, H] and the state that the next step would receive.

        Raises:
            ValueError: draws that do not fit; ``hidden`` or ``recurrent`` where the state of the
                cell does not begin with h.
        """
        rule = f"Recurrence: input must be [T, B, {self.input_size}] with T >= 1"
        if not isinstance(input, Tensor):
            raise ValueError(f"{rule}, got {type(input).__name__}")
        if input.dim() != 3 or not len(input) or input.shape[2] != self.input_size:
            raise ValueError(f"{rule}, got {list(input.shape)}")
        noise = self._acting(input, draws) or {}
        rows = perturb(input, noise.get("input", ())).unbind(0)  # pyright: ignore[reportArgumentType]
        recurrent, hidden = (
            by_time(noise.get(site, ()), len(rows)) for site in ("recurrent", "hidden")
        )
        outputs = []
        for x, before, after in zip(rows, recurrent, hidden, strict=True):
            seen = _with_first(state, perturb(_first(state), before)) if before else state
            h, state = self._step(x, seen)
            if h.shape[-1] != self.hidden_size:
                raise ValueError(
                    f"Recurrence: h_t must be [B, {self.hidden_size}], got {list(h.shape)}"
                )
            if before or after:
                self._check_first(h, state)
            if after:
                h = perturb(h, after)
                state = _with_first(state, h)
            outputs.append(h)
        return perturb(torch.stack(outputs), noise.get("output", ())), state  # pyright: ignore[reportArgumentType]

    def _step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if isinstance(self.cell, nn.RNNCellBase):
            new = self.cell(x, state)
            return (new if isinstance(new, Tensor) else new[0]), new
        return self.cell(x, state)

    def _check_first(self, h: Tensor, state: State) -> None:
        if _first(state) is not h:
            raise ValueError(
                "noise at hidden or recurrent needs a cell whose new state begins with the very "
                f"tensor h_t that it returns; {type(self.cell).__name__} returned another one"
            )

    def extra_repr(self) -> str:
        """The sizes and the noise."""
        return f"{self.input_size}, {self.hidden_size}" + super().extra_repr()


def _first(state: State) -> Tensor:
    if not isinstance(state, Tensor | tuple):
        raise ValueError(
            "noise at hidden or recurrent needs a state, a tensor or a tuple that begins with h; "
            f"got {type(state).__name__}"
        )
    return state if isinstance(state, Tensor) else state[0]


def _with_first(state: State, h: Tensor) -> State:
    if isinstance(state, Tensor):
        return h
    named = getattr(state, "_fields", None)
    return state._replace(**{named[0]: h}) if named else (h, *state[1:])
