"""Averaging over noise: K draws folded into the batch, and predictions averaged over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from noisin.noisy import Noisy
from noisin.shapes import Float


def sampling(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Keep the noise of every layer of ``model`` on in evaluation, torch's ``dropout=`` with it.

    Terms ``@ moments`` are drawn: averages over draws are what their propagation stands for.

    Noise in a ``TransformerEncoderLayer`` needs the context around that layer or around more: then
    torch's fast path, which would not call what is inside, is off.

    Under ``torch.utils.checkpoint`` the backward pass belongs within the context, since it runs
    the layers again. A copy of the model that is made within it samples, too, and so does what
    other threads call meanwhile; the noise is off when the last of several threads has left.

    Examples:
        >>> import noisin
        >>> layer = noisin.LSTM(4, 8, noise="hidden * Gaussian(1)").eval()
        >>> x = torch.randn(5, 3, 4)
        >>> with sampling(layer):
        ...     noisy, _ = layer(x)
        >>> bool((noisy == layer(x)[0]).all())
        False
    """
    return _switched(model, "sampling")


def plain(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Switch the noise of every layer of ``model`` off: the plain network of the same weights.

    In evaluation noise that is drawn is off anyway. What draws nothing stays, being what the
    network was trained as: ``@ moments``, and ``Zoneout`` by its expectation. Here they are off.
    (In training torch's own ``dropout=`` stays on.)

    Examples:
        >>> import noisin
        >>> layer = noisin.RNN(4, 8, noise="recurrent * Bernoulli(keep=0.8) @ moments").eval()
        >>> x = torch.randn(5, 3, 4)
        >>> with plain(layer):
        ...     output, _ = layer(x)
        >>> bool((output == layer(x)[0]).all())
        False
    """
    return _switched(model, "silent")


class _SlowPath:
    """Lets each layer of a transformer be called; torch's fast path only reads their weights."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.mha.set_fastpath_enabled(self._before)


_SLOW_PATH = _SlowPath()  # the switch is torch's own, one for all models and threads


def _is_skipped(model: nn.Module) -> bool:
    """Return whether torch might not call a noisy layer of a model in evaluation."""
    parents = [one for one in model.modules() if isinstance(one, nn.TransformerEncoderLayer)]
    return any(isinstance(one, Noisy) for parent in parents for one in parent.modules())


class _Held:
    """Attributes of modules that contexts hold at a value; the last one to end puts them back.

    Several threads may be within such a context of one model, and end in any order.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._before: WeakKeyDictionary[nn.Module, dict[str, tuple[int, bool]]]
        self._before = WeakKeyDictionary()

    @contextmanager
    def at(self, value: bool, attribute: str, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Hold an attribute of modules at a value within the context."""
        with self._lock:
            for module in modules:
                held = self._before.setdefault(module, {})
                count, before = held.get(attribute, (0, getattr(module, attribute)))
                held[attribute] = count + 1, before
                setattr(module, attribute, value)
        try:
            yield
        finally:
            with self._lock:
                for module in modules:
                    count, before = self._before[module].pop(attribute)
                    if count > 1:
                        self._before[module][attribute] = count - 1, before
                    else:
                        setattr(module, attribute, before)


_HELD = _Held()


@contextmanager
def _switched(model: nn.Module, switch: str) -> Iterator[nn.Module]:
    """Set a switch of every layer of ours, and put it back."""
    layers = [module for module in model.modules() if isinstance(module, Noisy)]
    slow = _SLOW_PATH if switch == "sampling" and _is_skipped(model) else nullcontext()
    with _HELD.at(True, switch, layers), slow:
        yield model


def fold(x: Tensor, samples: int, dim: int = 1) -> Tensor:
    """Repeat the batch K times, so that one call carries K independent draws.

    Noise in weights, and in the rows of an ``Embedding``, is shared by the batch and so by all K:
    it needs K calls.

    Args:
        x: any tensor with a batch dimension.
        samples: K >= 1.
        dim: which dimension is the batch.

    Returns:
        The tensor with B replaced by K·B, all of the batch for each draw in turn.

    Raises:
        ValueError: K below 1.

    Examples:
        >>> fold(torch.zeros(5, 3, 4), 10).shape
        torch.Size([5, 30, 4])
    """
    _at_least_one(samples)
    repeats = [1] * x.dim()
    repeats[dim] = samples
    return x.repeat(repeats)


def unfold(x: Tensor, samples: int, dim: int = 1) -> Tensor:
    """Undo ``fold``: split the batch dimension and bring K to the front: [K, …, B, …].

    Args:
        x: a tensor whose batch dimension is K·B.
        samples: K >= 1.
        dim: which dimension is the batch.

    Raises:
        ValueError: K below 1, or a batch that is no multiple of it.

    Examples:
        >>> unfold(torch.zeros(5, 30, 4), 10).shape
        torch.Size([10, 5, 3, 4])
    """
    _at_least_one(samples)
    if x.shape[dim] % samples:
        raise ValueError(f"the batch must be a multiple of samples = {samples}, got {x.shape[dim]}")
    dim %= x.dim()
    return x.unflatten(dim, (samples, -1)).movedim(dim, 0)


def _at_least_one(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")


def predictive(log_likelihoods: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
    """Average predictive distributions: log (1/K) Σ_k exp log p(x | z^k).

    By Jensen's inequality this is at least the mean of the log-likelihoods, which is what
    training maximizes.

    Args:
        log_likelihoods: log p(x | z^k), the draws first.

    Examples:
        >>> half = torch.tensor([[0.2], [0.4]]).log()
        >>> round(predictive(half).exp().item(), 4)
        0.3
    """
    return torch.logsumexp(log_likelihoods, 0) - math.log(len(log_likelihoods))


@torch.no_grad()
def predict(
    model: nn.Module | Sequence[nn.Module],
    *inputs: Any,
    samples: int = 0,
    average: Literal["arithmetic", "geometric"] = "arithmetic",
    link: Callable[[Any], Tensor] | None = None,
) -> Tensor:
    """Average what a model predicts over draws of its noise, and over several models.

    arithmetic: (1/N) Σ p_n; geometric: Π p_n^(1/N), normalized over the last dimension. N counts
    draws and models; numbers of 16 bits are added in float32. The models run in evaluation and are
    left in the mode they were in. Several threads may predict from one model at once, all of them
    with draws, or all without.

    Args:
        model: one model, or several of which the predictions are averaged too (checkpoints of one
            run, or runs of several seeds).
        *inputs: what each model is called with.
        samples: K, draws of the noise of each model, from torch's default generator; 0 is the
            network without draws.
        average: which mean. The geometric one is of probabilities p > 0 over the last dimension.
        link: what makes the prediction of a model's result, such as
            ``lambda logits: logits.softmax(-1)``; without it the result itself, a tensor.

    Raises:
        ValueError: K below 0, no model, an unknown average, or draws of a model without noise.
        TypeError: the prediction is no tensor.

    Examples:
        >>> import noisin
        >>> model = noisin.LSTM(4, 8, noise="hidden * Gaussian(1)")
        >>> predict(model, torch.randn(5, 3, 4), samples=10, link=lambda result: result[0]).shape
        torch.Size([5, 3, 8])

    References:
        Zaremba, Sutskever, Vinyals: Recurrent neural network regularization, section 4.1 (2, 5
        and 10 models). Dieng, Ranganath, Altosaar, Blei: NOISIN, section 2 (K samples).
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    if samples < 0 or not models:
        raise ValueError(f"predict needs a model and samples >= 0, got {len(models)} and {samples}")
    if average not in ("arithmetic", "geometric"):
        raise ValueError(f"average must be arithmetic or geometric, got {average!r}")
    total, narrow, count = None, None, len(models) * max(samples, 1)
    for one in models:
        for prediction in _predictions(one, inputs, samples, link):
            if prediction.dtype in (torch.float16, torch.bfloat16):
                narrow, prediction = prediction.dtype, prediction.float()
            part = prediction.log() if average == "geometric" else prediction
            total = part.clone() if total is None else total + part  # a model may reuse its memory
    assert total is not None
    mean = total / count if average == "arithmetic" else (total / count).softmax(-1)
    return mean if narrow is None else mean.to(narrow)


def _predictions(
    model: nn.Module, inputs: Sequence[Any], samples: int, link: Callable[[Any], Tensor] | None
) -> Iterator[Tensor]:
    """Yield the predictions of one model, in evaluation."""
    noisy = [module for module in model.modules() if isinstance(module, Noisy)]
    if samples and not any(layer.is_noisy for layer in noisy):
        raise ValueError(f"draws need noise, got {samples} samples of a model without any")
    with _HELD.at(False, "training", list(model.modules())):
        model.eval()
        for _ in range(max(samples, 1)):
            with sampling(model) if samples else nullcontext():
                result = model(*inputs)
            prediction = result if link is None else link(result)
            if not isinstance(prediction, Tensor):
                raise TypeError(
                    f"a prediction must be a tensor, got {type(prediction).__name__}; name it with "
                    "link=, for example link=lambda result: result[0]"
                )
            yield prediction
