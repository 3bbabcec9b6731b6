"""Drop-in recurrent layers: torch's ``RNN``, ``GRU`` and ``LSTM`` with ``noise=``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from noisin import at, draws, functional
from noisin.checks import check_finite
from noisin.draws import Draws, Like, Scaled, expected, outside_checkpoints
from noisin.functional import Path
from noisin.laws import Bernoulli
from noisin.noise import Noise, Term
from noisin.noisy import Noisy
from noisin.propagated import Propagation
from noisin.propagation import Moments, checked, each, exact, mean_of
from noisin.reference import State
from noisin.stack import Places, Stack, places
from noisin.tracing import autocasting, computing, untraced


class NoisyRNNBase(Noisy, nn.RNNBase):
    """What the noisy recurrent layers share; it stands in front of one of torch's layers.

    With ``noise=None`` this is torch's layer, bit for bit; in evaluation too, but for what draws
    nothing, ``@ moments`` and the expectation of ``Zoneout``, which stays. With noise, in
    training, the draws come from torch's default generator, or are handed in: whatever stands
    below the draw is a deterministic function of ``draws``.
    """

    propagation: Propagation = Propagation()

    def __init__(self, *args: Any, noise: Term | str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.noise = noise

    @property
    def stack(self) -> Stack:
        """The shape of the layers."""
        return Stack(
            self.mode,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.proj_size,
        )

    def resolve(self, noise: Term | None) -> Places:
        """Return where each term acts, or raise: a term cannot act here."""
        return places(self.stack, self._with_dropout(noise))

    def _spread_size(self, place: str, term: Noise) -> tuple[int, ...]:
        return self.stack.spread(place, term)

    def draw(
        self,
        input: Any,
        hx: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, tuple[Tensor | Scaled, ...]]:
        """Draw the noise for one call ``layer(input, hx, draws=…)``.

        Args:
            input: the input of that call.
            hx: ignored, so that both calls take the same arguments.
            generator: source of randomness; torch's default generator without it.

        Returns:
            For each place one entry a term, in most cases the final factor or offset; see
            ``noisin.draws``. torch's ``dropout=`` counts as the last term at ``between``.
            Gradients reach learned spreads through these tensors.
        """
        x, lengths = self._time_major(mean_of(input))
        source = outside_checkpoints(generator)
        return self._each(
            lambda layer: draws.draw(
                layer.stack,
                layer.on(layer.acting(), given=True),
                x.shape[0],
                x.shape[1],
                spread=layer._spread,
                generator=source,
                dtype=self._dtype(x, lengths is not None),
                device=x.device,
            )
        )

    @untraced  # as torch's own layers are out of its sight
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Any,
        hx: Any = None,
        *,
        draws: Draws | None = None,
        check: bool = False,
        path: Path | None = None,
        return_moments: bool = False,
    ) -> Any:
        """Run the layers, as torch does.

        Args:
            input: [T, B, I], [B, T, I] with ``batch_first``, [T, I] unbatched, or packed; or
                ``Moments`` of such tensors.
            hx: h_0, for an LSTM (h_0, c_0); zeros without it. Each may be ``Moments``.
            draws: noise from ``draw``, applied whatever the mode; without it the layer draws in
                training, and in evaluation while ``sampling``.
            check: look for NaN and infinity in the input and the given state, at the price of
                reading them.
            path: force one path, as in ``noisin.functional.recur``: ``"reference"`` can be
                differentiated twice.
            return_moments: return ``Moments`` in the place of the output and of each tensor of
                the final state, with variance 0 where nothing is propagated. Otherwise, with noise
                ``@ moments``, they are the means.

        Returns:
            The output and the final state. The final h is what the next step would receive:
            perturbed at ``hidden``, clean at ``recurrent``, ``between`` and ``output``.

        Raises:
            ValueError: draws that do not fit the noise or the input; a path that cannot serve;
                with ``check``, a number that is not finite.
            RuntimeError: torch's own errors of shape.
        """
        if check:
            check_finite(input, hx)
        moments = return_moments or isinstance(input, Moments)
        kernel = path is None and not moments and not _has_moments(hx)
        kernel = kernel and not functional.is_mapped()
        noise = self._noise_of(draws, kernel)
        if kernel and noise is None and draws is None and self.mode in functional.KERNELS:
            return super().forward(input, hx)
        form = _checked_form(input)
        x, lengths = self._time_major(form)
        self.check_input(x, None)
        if not len(x):
            raise RuntimeError("a sequence must have at least one step, got none")
        autocast, x = autocasting(x.device), x.to(self._dtype(x, lengths is not None))
        if draws is None:
            draws = self._own_draws(form, x, kernel)
        unbatched = not isinstance(form, PackedSequence) and form.dim() == 2
        variance = self._time_major(input.variance)[0] if isinstance(input, Moments) else None
        with computing(x.device):
            output, final = functional.recur(
                self.stack,
                [[weight.to(x.dtype) for weight in group] for group in self.all_weights],
                x if variance is None else Moments(x, variance.to(x.dtype)),
                self._state(hx, x, unbatched, autocast),
                noise=noise,
                draws=draws,
                lengths=lengths,
                path=path,
                how=self.propagation,
            )
        output, *final = ((exact(s) if moments else mean_of(s)) for s in (output, *final))
        if unbatched:
            final = [each(lambda one: one.squeeze(1), s) for s in final]
        output = _as_moments(lambda one: self._as_given(one, form), output)
        return output, tuple(final) if self.mode == "LSTM" else final[0]

    def _own_draws(self, form: Any, x: Tensor, kernel: bool) -> Draws:
        """Return the noise of a call that was handed none: drawn, or its mean."""
        if (self.training or self.sampling) and not self.silent:
            return self.draw(form)
        like = Like(x.dtype, x.device)
        return self._each(
            lambda layer: expected(
                layer.stack, layer._noise_of(None, kernel), x.shape[1], like, layer._spread
            )
        )

    def _noise_of(self, draws: Draws | None, kernel: bool) -> Term | None:
        """Return the noise of this call: all of it, what evaluation leaves, or torch's alone.

        Args:
            draws: what is handed in.
            kernel: whether torch's own kernel may run all of the call.
        """
        given = draws is not None
        if kernel and self.training and not given and self.drops_by_itself:
            return None
        return self.on(self.acting(), given)

    @property
    def drops_by_itself(self) -> bool:
        """Whether torch runs the layers in training: without noise of ours, dropout= included."""
        return self._noise is None and self.mode in functional.KERNELS and not self.sampling

    def acting(self) -> Term | None:
        """Return the noise at its strength; torch's ``dropout=`` acts after ``between``."""
        return self._with_dropout(super().acting())

    def _with_dropout(self, noise: Term | None) -> Term | None:
        if not self.dropout or self.num_layers == 1:
            return noise
        if self.dropout < 1:
            dropout = at.between * Bernoulli(keep=1 - self.dropout)
            return dropout if noise is None else noise & dropout
        if noise is not None or self.mode not in functional.KERNELS:
            raise ValueError("dropout must be below 1 in a noisy layer, got 1")
        return None  # torch's alone, which returns zeros

    def _time_major(self, input: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
        """Return the input as [T, B, I] in original batch order, and the lengths if packed."""
        if isinstance(input, PackedSequence):
            return pad_packed_sequence(input)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: input must have 2 or 3 dimensions, got {input.dim()}"
            )
        if input.dim() == 2:
            return input.unsqueeze(1), None
        return (input.transpose(0, 1) if self.batch_first else input), None

    def _dtype(self, input: Tensor, packed: bool = False) -> torch.dtype:
        # torch's own GRU on the CPU is not among what autocast lowers, nor is a packed LSTM
        kept = self.mode == "GRU" or (self.mode == "LSTM" and packed)
        return input.dtype if kept and input.device.type == "cpu" else super()._dtype(input)

    def _state(
        self, hx: Tensor | State | None, x: Tensor, unbatched: bool, autocast: bool
    ) -> State:
        """Return the initial state as a tuple of [L·directions, B, P or H]."""
        sizes = self.stack.state_shapes(x.shape[1])
        if hx is None:
            return tuple(x.new_zeros(size) for size in sizes)
        one = isinstance(hx, Tensor | Moments)
        if one == (self.mode == "LSTM"):
            rule = "a pair of tensors (h, c)" if self.mode == "LSTM" else "a tensor"
            raise ValueError(f"hx of {self.mode} must be {rule}, got {type(hx).__name__}")
        state = (hx,) if one else tuple(hx)
        if len(state) != len(sizes):
            raise ValueError(f"hx of {self.mode} must have {len(sizes)} tensors, got {len(state)}")
        for values in state:
            if not isinstance(values, Tensor | Moments):
                raise ValueError(f"hx must be tensors, got {type(values).__name__}")
            if unbatched and _dim(values) != 2:
                raise RuntimeError(
                    f"hx must be 2-D where the input is, without a batch; got {_dim(values)}-D"
                )
        if unbatched:
            state = tuple(each(lambda one: one.unsqueeze(1), s) for s in state)
        for values, size in zip(state, sizes, strict=True):
            for tensor in checked(values) if isinstance(values, Moments) else (values,):
                self.check_hidden_size(tensor, size)
                if tensor.device != x.device:
                    raise ValueError(f"hx must be where x is, on {x.device}; got {tensor.device}")
        if autocast:
            state = tuple(each(lambda one: one.to(x.dtype), s) for s in state)
        return state  # pyright: ignore[reportReturnType]

    def _as_given(self, output: Tensor, input: Tensor | PackedSequence) -> Tensor | PackedSequence:
        """Return the output in the layout of the input."""
        if isinstance(input, PackedSequence):
            order = input.sorted_indices
            lengths = pad_packed_sequence(input)[1]
            if order is not None:
                output, lengths = output.index_select(1, order), lengths[order.cpu()]
            packed = pack_padded_sequence(output, lengths)
            return input._replace(data=packed.data)
        if input.dim() == 2:
            return output.squeeze(1)
        return output.transpose(0, 1) if self.batch_first else output


def _dim(values: Tensor | Moments) -> int:
    return (values.mean if isinstance(values, Moments) else values).dim()


def _has_moments(hx: Any) -> bool:
    several = isinstance(hx, tuple | list) and not isinstance(hx, Moments)
    return any(isinstance(one, Moments) for one in (hx if several else (hx,)))


def _checked_form(input: Any) -> Any:
    """Return the mean of moments, whose variance stands as it does, or what is no moments.

    Raises:
        ValueError: mean and variance are not alike.
    """
    if not isinstance(input, Moments):
        return input
    mean, variance = input
    if isinstance(mean, PackedSequence) and isinstance(variance, PackedSequence):
        checked(Moments(mean.data, variance.data))
        orders = [one.sorted_indices for one in (mean, variance)]
        alike = mean.batch_sizes.equal(variance.batch_sizes) and (
            orders[0] is orders[1] or (None not in orders and torch.equal(orders[0], orders[1]))  # pyright: ignore[reportArgumentType]
        )
        if not alike:
            raise ValueError("mean and variance must be packed alike; got other lengths or orders")
    else:
        checked(input)
    return mean


def _as_moments(function: Callable[[Tensor], Any], x: Tensor | Moments) -> Any:
    """Return a function of a tensor, or of the mean and the variance."""
    return Moments(*map(function, x)) if isinstance(x, Moments) else function(x)


class LSTM(NoisyRNNBase, nn.LSTM):
    """``torch.nn.LSTM`` with noise.

    i, f, o = σ(·), g = tanh(·), c_t = f ⊙ c_{t-1} + i ⊙ g, h_t = o ⊙ tanh(c_t). ``hidden`` noise
    perturbs h_t (the projected one with ``proj_size``); c_t stays clean.

    Args:
        *args: as ``torch.nn.LSTM``.
        noise: terms such as ``at.hidden * Bernoulli(keep=0.41)``, their text, or None.
        **kwargs: as ``torch.nn.LSTM``.

    Raises:
        ValueError: a term that cannot act here.

    Examples:
        >>> layer = LSTM(8, 16, num_layers=2, noise="hidden * Bernoulli(keep=0.41)")
        >>> output, (h, c) = layer(torch.randn(5, 3, 8))
        >>> output.shape
        torch.Size([5, 3, 16])

    References:
        Dieng, Ranganath, Altosaar, Blei: NOISIN: unbiased regularization for recurrent neural
        networks, section 2.
    """


class GRU(NoisyRNNBase, nn.GRU):
    """``torch.nn.GRU`` with noise: the GRU whose reset gate acts after the recurrent product.

    ``recurrent`` noise touches the three products with weight_hh and not z ⊙ h_{t-1}; ``hidden``
    noise, being in h itself, touches both.

    Args:
        *args: as ``torch.nn.GRU``.
        noise: terms such as ``at.hidden * Gaussian(0.5)``, their text, or None.
        **kwargs: as ``torch.nn.GRU``.

    Raises:
        ValueError: a term that cannot act here.

    Examples:
        >>> GRU(8, 16, noise="recurrent * Gaussian(0.5)")
        GRU(8, 16, noise=recurrent * Gaussian(0.5))
    """


class RNN(NoisyRNNBase, nn.RNN):
    """``torch.nn.RNN`` with noise, and with the logistic sigmoid as a third nonlinearity.

    h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Args:
        *args: as ``torch.nn.RNN``; ``nonlinearity`` may also be ``"sigmoid"``, for which torch
            has no kernel.
        noise: terms such as ``at.hidden + Gaussian(0.3)``, their text, or None.
        **kwargs: as ``torch.nn.RNN``.

    Raises:
        ValueError: a term that cannot act here, or an unknown nonlinearity.

    Examples:
        >>> RNN(8, 16, nonlinearity="sigmoid", noise="hidden + Gaussian(0.3)")
        RNN(8, 16, noise=hidden + Gaussian(0.3), nonlinearity=sigmoid)
    """

    def __init__(self, *args: Any, noise: Term | str | None = None, **kwargs: Any) -> None:
        given = args[3] if len(args) > 3 else kwargs.get("nonlinearity", "tanh")
        if given not in ("tanh", "relu", "sigmoid"):
            raise ValueError(f"nonlinearity must be tanh, relu or sigmoid, got {given!r}")
        if given == "sigmoid":
            if len(args) > 3:
                args = (*args[:3], "tanh", *args[4:])
            else:
                kwargs["nonlinearity"] = "tanh"
        super().__init__(*args, **kwargs)
        if given == "sigmoid":
            self.nonlinearity, self.mode = "sigmoid", "RNN_SIGMOID"
        self.noise = noise

    def flatten_parameters(self) -> None:
        """Lay the weights out for cuDNN, which has no sigmoid RNN."""
        if self.mode in functional.KERNELS:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        """Torch's line, the nonlinearity where torch has none like it, and the noise."""
        plain = self.mode in functional.KERNELS
        return super().extra_repr() + ("" if plain else ", nonlinearity=sigmoid")
