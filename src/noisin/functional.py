"""The functional entry: a stack of recurrent layers on given weights and given noise.

Here the path of each layer is chosen: torch's own kernel where no term acts inside the recurrence
(noise that is held in the weights for the call is applied to them first), ``noisin.fused`` where
noise does act inside, or acts at all on a GRU or RNN, which torch runs slowly on a CPU, and the
plain loop of ``noisin.reference`` for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from noisin import propagated, reference
from noisin.checks import Ends, check_call, ends_of
from noisin.draws import Draws, acting
from noisin.fused import unroll as fused
from noisin.noise import Term
from noisin.product import Acting, Fresh, Preactivation, perturb_held
from noisin.propagated import Propagation
from noisin.propagated_product import Values, perturb_values
from noisin.propagation import Moments, each, exact, mean_of
from noisin.reference import State, Weights
from noisin.shapes import Float, Int
from noisin.stack import (
    Places,
    Stack,
    carries_moments,
    feeding,
    inside,
    is_held,
    is_sampled,
    places,
)
from noisin.tracing import untraced

Path = Literal["torch", "cpu", "cuda", "reference", "moments"]

_USUAL = Propagation()
INSIDE = (
    *("weight_ih", "recurrent", "weight_hh"),
    *("candidate", "hidden", "zoneout_hidden", "zoneout_cell"),
)
_FUSED: tuple[Path, ...] = ("cpu", "cuda")  # paths that bear the name of their device
KERNELS = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


def path_of(
    stack: Stack, found: Places, layer: int, dtype: torch.dtype, device: torch.device
) -> tuple[Path, str]:
    """Return the path that a layer takes, and why.

    Args:
        stack: shape of the layers.
        found: where each term acts.
        layer: index of the layer.
        dtype: of the input and the weights.
        device: where they are.
    """
    if carries_moments(found, layer):
        return "moments", "mean and variance are propagated"
    if _is_differentiated():
        return "reference", "torch.func or forward-mode differentiation is active"
    refusal = fused.refusal(stack, found, layer, dtype, device)
    why = _beyond_torch(stack, found, layer)
    if not why and is_mapped():
        why = "torch.func.vmap is active, which torch's kernel does not serve"
    if why:
        return ("reference", f"{why}; {refusal}") if refusal else (cast(Path, device.type), why)
    if found and not refusal and fused.is_faster(stack.mode, dtype, device):
        cell = stack.mode.partition("_")[0]
        return cast(Path, device.type), f"the fused recurrence is faster than torch's {cell}"
    return "torch", "no noise acts inside the recurrence"


def _is_differentiated() -> bool:
    """Return whether derivatives are taken in another way than by backward()."""
    if forward_ad._current_level >= 0:
        return True
    vmap = torch._C._functorch.TransformType.Vmap  # pyright: ignore[reportAttributeAccessIssue]
    return any(one.key() != vmap for one in _transforms())


def is_mapped() -> bool:
    """Return whether a transform of torch.func is active."""
    return bool(_transforms())


def _transforms() -> Sequence[Any]:
    """Return the transforms of torch.func that are active."""
    if not torch._C._are_functorch_transforms_active():  # what torch.compile knows, too
        return ()
    stack = torch._C._functorch.get_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return stack or ()


def _beyond_torch(stack: Stack, found: Places, layer: int) -> str:
    """Return why torch's own kernel cannot serve a layer, or ""."""
    sites = dict.fromkeys(place.partition("_l")[0] for place in inside(stack, found, layer))
    if sites:
        return f"noise acts inside the recurrence, at {', '.join(sites)}"
    return "" if stack.mode in KERNELS else f"torch has no kernel for {stack.mode}"


def recur(
    stack: Stack,
    weights: Sequence[Sequence[Tensor]],
    x: Float[Tensor, "T B I"] | Moments,
    state: tuple[Values, ...],
    *,
    noise: Term | None = None,
    draws: Draws | None = None,
    lengths: Int[Tensor, " B"] | None = None,
    path: Path | None = None,
    how: Propagation | None = None,
) -> tuple[Any, tuple[Any, ...]]:
    """Run a stack of recurrent layers.

    Args:
        stack: shape of the layers.
        weights: for each layer and direction, torch's parameters in torch's order (as
            ``RNNBase.all_weights`` gives them).
        x: input, time first; a tensor or moments.
        state: (h_0,) or (h_0, c_0), each [L·directions, B, P or H]; tensors or moments.
        noise: the terms; without them the plain network.
        draws: their draws, from ``noisin.draws.draw``; needed where there is noise.
        lengths: steps of each sequence, on the CPU; all T without it.
        path: force one path, an error where it cannot serve: ``"reference"`` is the plain loop,
            differentiable any number of times; ``"cpu"`` or ``"cuda"`` the fused recurrence on
            that device, once;
            ``"torch"`` torch's own kernel, where no noise acts inside; ``"moments"`` propagates
            mean and variance.
        how: how moments are propagated.

    Returns:
        The output [T, B, directions·P], 0 behind the end of a sequence, and the final state,
        shaped as ``state``: what the next step would receive. Both are tensors, or ``Moments``
        where some noise is propagated or moments come in.

    Raises:
        ValueError: the noise, the draws, the path, or shapes and dtypes do not fit.
    """
    found = places(stack, noise)
    if found and draws is None:
        raise ValueError(f"noise is data: draws must be given with {noise}")
    like = mean_of(x)
    if path not in (None, *get_args(Path)):
        raise ValueError(f"path must be one of {', '.join(get_args(Path))}; got {path!r}")
    if how is not None and not isinstance(how, Propagation):
        raise ValueError(f"how moments are propagated must be a Propagation, got {how!r}")
    check_call(stack, weights, like, state)
    noisy = acting(found, draws or {}, stack, like)
    ends = None if lengths is None else ends_of(like, lengths)
    width, finals = len(stack.directions), []
    for layer in range(stack.num_layers):
        rows = slice(layer * width, (layer + 1) * width)
        initial = tuple(each(itemgetter(rows), s) for s in state)
        given = any(isinstance(one, Moments) for one in (x, *initial))
        if is_sampled(found.get(feeding(layer), ())):
            x = perturb_values(x, noisy.pop(feeding(layer), ()))
        chosen = _checked("moments" if given and path is None else path, stack, found, layer, like)
        if given and chosen != "moments":
            raise ValueError(f"path={path!r} takes tensors; got moments")
        run = _RUN.get(chosen, partial(_moments, how=how or _USUAL))
        held, within = _of_layer(stack, found, noisy, layer)
        perturbed = [
            _perturbed(stack, group, *pair) for group, pair in zip(weights[rows], held, strict=True)
        ]
        x, final = run(stack, perturbed, x, initial, ends, within)
        finals.append(final)
    x = perturb_values(x, noisy.get("output", ()))
    if ends is not None:  # an offset at `output` shows behind the end, too
        x = each(lambda one: torch.where(ends.valid, one, 0), x)
    return x, tuple(each(_cat, *parts) for parts in zip(*finals, strict=True))


def _cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _checked(path: Path | None, stack: Stack, found: Places, layer: int, x: Tensor) -> Path:
    """Return the path of a layer, or refuse the one that was asked for."""
    chosen, why = path_of(stack, found, layer, x.dtype, x.device)
    if path == "moments" or (path is None and chosen == "moments"):
        return "moments"
    if chosen == "moments":
        raise ValueError(f"path={path!r} runs tensors, and the layer takes moments; {why}")
    if path == "torch" and (
        _is_differentiated() or is_mapped() or _beyond_torch(stack, found, layer)
    ):
        raise ValueError(f'path="torch" needs torch\'s own kernel to serve the layer; {why}')
    if path in _FUSED:
        refusal = fused.refusal(stack, found, layer, x.dtype, x.device)
        if x.device.type != path:
            refusal = f"the layer is on {x.device.type}"
        if refusal or chosen == "reference":
            needs = f'path="{path}" needs the fused recurrence to serve the layer'
            raise ValueError(f"{needs}; {refusal or why}")
    return path or chosen


def _of_layer(
    stack: Stack, found: Places, noisy: dict[str, list[Acting]], layer: int
) -> tuple[list[list[list[Acting]]], list[dict[str, list[Acting]]]]:
    """Return what acts in one layer, for each direction.

    Returns:
        What is held in W_ih and W_hh for the whole call, and everything else by site.
    """
    held, within = [], []
    for index, direction in enumerate(stack.directions):
        of_weights: list[list[Acting]] = []
        sites = {}
        for site in INSIDE:
            place = f"{site}_l{layer}{direction}"
            sites[site] = noisy.get(place, [])
            if site in ("weight_ih", "weight_hh"):
                whole = is_held(found.get(place, ()))
                of_weights.append(sites[site] if whole else [])
                sites[site] = [] if whole else sites[site]
        shared = noisy.get(feeding(layer), [])
        sites["input"] = [_of_direction(one, index, len(stack.directions)) for one in shared]
        held.append(of_weights)
        within.append(sites)
    return held, within


def _of_direction(one: Acting, index: int, directions: int) -> Acting:
    """Return a direction's own numbers of a pre-activation; perturbations are shared."""
    if not isinstance(one, Preactivation):
        return one
    return one._replace(value=one.value.chunk(directions, -1)[index])


def _perturbed(
    stack: Stack, group: Sequence[Tensor], ih: Sequence[Acting], hh: Sequence[Acting]
) -> list[Tensor]:
    """Return the parameters of a direction with the noise that is held in them."""
    first, second, *rest = group
    return [perturb_held(first, ih), perturb_held(second, hh), *rest]


def _loop(
    stack: Stack,
    weights: Sequence[Sequence[Tensor]],
    x: Tensor,
    state: State,
    ends: Ends | None,
    within: Sequence[dict[str, list[Acting]]],
) -> tuple[Tensor, State]:
    """Run one layer by the plain loop."""
    valid = None if ends is None else ends.valid
    drawn = any(isinstance(one, Fresh) for acting in within for one in acting.get("weight_hh", ()))
    unroll = _unseen_loop if drawn else reference.unroll
    return _by_direction(unroll, stack, weights, x, state, within, valid=valid)


_unseen_loop = untraced(reference.unroll)  # of matrices drawn step by step, or each is compiled


def _fused(
    stack: Stack,
    weights: Sequence[Sequence[Tensor]],
    x: Tensor,
    state: State,
    ends: Ends | None,
    within: Sequence[dict[str, list[Acting]]],
) -> tuple[Tensor, State]:
    """Run one layer by the fused recurrence."""
    lengths = None if ends is None else ends.here
    return _by_direction(fused.unroll, stack, weights, x, state, within, lengths=lengths)


def _moments(
    stack: Stack,
    weights: Sequence[Sequence[Tensor]],
    x: Values,
    state: tuple[Values, ...],
    ends: Ends | None,
    within: Sequence[dict[str, list[Acting]]],
    how: Propagation,
) -> tuple[Any, tuple[Any, ...]]:
    """Run one layer over moments."""
    state = tuple(map(exact, state))
    valid = None if ends is None else ends.valid
    return _by_direction(
        *(propagated.unroll, stack, weights, x, state, within), valid=valid, how=how
    )


def _by_direction(
    unroll: Callable[..., tuple[Any, tuple[Any, ...]]],
    stack: Stack,
    weights: Sequence[Sequence[Tensor]],
    x: Values,
    state: tuple[Values, ...],
    within: Sequence[dict[str, list[Acting]]],
    **options: Any,
) -> tuple[Any, tuple[Any, ...]]:
    """Run each direction of one layer, and put the results side by side."""
    outputs: list[Any] = []
    finals: list[Any] = []
    for index, direction in enumerate(stack.directions):
        output, final = unroll(
            stack.mode,
            x,
            tuple(each(itemgetter(index), s) for s in state),
            named_weights(stack, weights[index]),
            within[index],
            reverse=direction == "_reverse",
            **options,
        )
        outputs.append(output)
        finals.append(final)
    output = outputs[0] if len(outputs) == 1 else each(_beside, *outputs)
    return output, tuple(each(_stack, *parts) for parts in zip(*finals, strict=True))


def _beside(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


def _stack(*parts: Tensor) -> Tensor:
    return torch.stack(parts)


def _kernel(
    stack: Stack,
    weights: Sequence[Sequence[Tensor]],
    x: Tensor,
    state: State,
    ends: Ends | None,
    within: Sequence[dict[str, list[Acting]]],
) -> tuple[Tensor, State]:
    """Run one layer by torch's kernel."""
    flat = [weight for group in weights for weight in group]
    has_biases = named_weights(stack, weights[0]).bias_ih is not None
    options = (has_biases, 1, 0.0, torch.is_grad_enabled(), stack.bidirectional)
    hx = state if stack.mode == "LSTM" else state[0]
    kernel = KERNELS[stack.mode]
    if ends is None:
        output, *final = kernel(x, hx, flat, *options, False)
        return output, tuple(final)
    packed = pack_padded_sequence(x, ends.lengths, enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None
    assert back is not None
    hx = tuple(s.index_select(1, order) for s in state)
    output, *final = kernel(
        packed.data, packed.batch_sizes, hx if stack.mode == "LSTM" else hx[0], flat, *options
    )
    padded, _ = pad_packed_sequence(packed._replace(data=output), total_length=x.shape[0])
    return padded, tuple(s.index_select(1, back) for s in final)


_RUN: dict[str, Callable[..., Any]] = {
    "torch": _kernel,
    "reference": _loop,
    **dict.fromkeys(_FUSED, _fused),
}


def named_weights(stack: Stack, weights: Sequence[Tensor]) -> Weights:
    """Name the parameters of one layer and direction, given in torch's order."""
    ih, hh, *rest = weights
    hr = rest.pop() if stack.proj_size else None
    bias_ih, bias_hh = rest or (None, None)
    return Weights(ih, hh, bias_ih, bias_hh, hr)
