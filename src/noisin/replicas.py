"""Several models of one shape, trained at once: noise levels, seeds, members of an ensemble."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from noisin.draws import in_checkpoint, is_final
from noisin.laws import Learned
from noisin.noise import Noise, Term
from noisin.noisy import Noisy, standing_for
from noisin.surgery import regularize

Dims = int | None | tuple[int | None, ...]
State = dict[str, Tensor]


class Replicas(nn.Module):
    """R models of one shape, each with its own weights, noise and draws, run at once.

    A small recurrent network leaves a GPU nearly idle, so that several cost little more than one.
    What each of them computes is what it would alone: its draws come from a random stream of its
    own, and its gradients from its own loss.

    Args:
        model: what is copied, once for each noise or seed; or a list of models, taken as they are.
        noises: for each replica the terms that its recurrent layers get, or their text, as
            ``regularize`` gives them; None where all keep what they have.
        seeds: of the streams of draws; without them, drawn from torch's default generator.
        together: whether one pass of ``torch.func.vmap`` serves all replicas whose noise differs
            in numbers alone (what differs in more has a pass of its own); else they run in turn,
            bit for bit as each alone. None: together on CUDA, where no layer of torch is in the
            way.

    Attributes:
        models: the replicas; ``replicas[r]`` is one of them, to be used and kept as any model.
        seeds: as above.

    Raises:
        ValueError: models of different shapes; not as many noises as seeds or models; a term that
            cannot act.

    Note:
        Together, a model may not read numbers out of its tensors, keep what it computes elsewhere
        than in its buffers, or draw by operations of torch such as ``nn.Dropout``: such a model
        runs in turn (``together=False``), as all do on packed arguments. ``state_dict`` holds the
        streams too, so that a checkpoint goes on exactly.

    Examples:
        >>> from noisin import LSTM
        >>> noises = ["hidden * Gaussian(0.5)", "hidden * Gaussian(1.0)"]
        >>> replicas = Replicas(LSTM(4, 8), noises, seeds=[1, 2])
        >>> output, (h, c) = replicas(torch.randn(5, 3, 4))
        >>> output.shape
        torch.Size([2, 5, 3, 8])
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        noises: Sequence[Term | str | None] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        together: bool | None = None,
    ) -> None:
        super().__init__()
        given = noises if noises is not None else seeds
        if not isinstance(model, nn.Module):
            models = list(model)
        elif given is None:
            raise ValueError("Replicas of one model need noises or seeds, one a replica; got none")
        else:
            models = [copy.deepcopy(model) for _ in given]
        for name, values in (("noises", noises), ("seeds", seeds)):
            if values is not None and len(values) != len(models):
                raise ValueError(f"{name} must be one a replica, {len(models)}; got {len(values)}")
        if not models:
            raise ValueError("Replicas must have at least one model, got none")
        for one, noise in zip(models, noises or (), strict=bool(noises)):
            regularize(one, noise)
        _check_alike(models)
        self.models = nn.ModuleList(models)
        drawn = torch.randint(2**63 - 1, (len(models),)).tolist() if seeds is None else seeds
        self.seeds, self.together = tuple(drawn), together
        self._streams: list[State] = [{} for _ in models]

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, index: int) -> nn.Module:
        return self.models[index]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.models)

    def forward(self, *args: Any, in_dims: Dims = None, **kwargs: Any) -> Any:
        """Run all replicas.

        Args:
            *args: of the models: tensors, or tuples, lists and dicts of them.
            in_dims: of ``args``, as in ``torch.func.vmap``: 0 for what has an axis of replicas in
                front, None for what all share; one for all arguments, or one for each.
            **kwargs: of the models, which all share.

        Returns:
            What the models return, each tensor with an axis of replicas in front, and in the place
            of a packed sequence one for each replica.

        Raises:
            ValueError: other ``in_dims``, or an argument without that axis; together, a layer of
                torch that one pass cannot run.
            RuntimeError: in training, or while sampling, the call stands in a region under
                ``torch.utils.checkpoint``, which runs again and would draw other noise; a
                checkpoint inside the models, run in turn (``together=False``), draws the same.
        """
        draws = any(one.training or getattr(one, "sampling", False) for one in self.modules())
        if draws and in_checkpoint():
            raise RuntimeError(
                "Replicas draw from streams of their own, which a checkpointed region would not "
                "set back: let the checkpoint be inside of their models, with together=False"
            )
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        self._check(args, dims)
        packed = any(isinstance(one, PackedSequence) for one in (*args, *kwargs.values()))
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        together = device.type == "cuda" if self.together is None else self.together
        groups = [[r] for r in range(len(self))]
        if together and not packed:
            groups = _alike(list(self.models))
        for group in [group for group in groups if len(group) > 1]:
            if refusal := _refusal(self.models[group[0]]):
                if self.together:
                    raise ValueError(refusal)
                groups = [one for one in groups if one is not group] + [[r] for r in group]
        found: list[Any] = [None] * len(self)
        for group in groups:
            own = [_of(args, dims, r) for r in group]
            if len(group) == 1:
                with self.stream(group[0], device):
                    found[group[0]] = self.models[group[0]](*own[0], **kwargs)
                continue
            whole = self._mapped(group, own, kwargs, device)
            for at, r in enumerate(group):
                found[r] = tree_map(lambda one, at=at: one[at], whole)
        return tree_map(_stacked, *found, is_leaf=lambda one: isinstance(one, PackedSequence))

    def _check(self, args: tuple[Any, ...], dims: tuple[int | None, ...]) -> None:
        if len(dims) != len(args) or any(dim not in (0, None) for dim in dims):
            raise ValueError(
                f"in_dims must be 0 or None, or one such for each of {len(args)} arguments; "
                f"got {dims}"
            )
        for arg, dim in zip(args, dims, strict=True):
            for one in tree_leaves(arg) if dim == 0 else ():
                if not isinstance(one, Tensor) or not one.dim() or len(one) != len(self):
                    got = list(one.shape) if isinstance(one, Tensor) else type(one).__name__
                    raise ValueError(
                        f"an argument of in_dims 0 must have {len(self)} replicas in front; "
                        f"got {got}"
                    )

    def _mapped(
        self, group: Sequence[int], args: list[Any], kwargs: dict[str, Any], device: torch.device
    ) -> Any:
        """Return what the replicas of a group return, by one pass."""
        models = [self.models[r] for r in group]
        states = [dict((*one.named_parameters(), *one.named_buffers())) for one in models]
        state = {name: torch.stack([one[name] for one in states]) for name in states[0]}

        def run(state: State, args: Any) -> Any:
            return functional_call(models[0], state, args, kwargs)

        layers = [[one for one in model.modules() if isinstance(one, Noisy)] for model in models]
        streams = [lambda r=r: self.stream(r, device) for r in group]
        with standing_for(list(zip(*layers, strict=True)), streams):
            try:
                found = vmap(run, randomness="error")(state, tree_map(_stacked, *args))
            except RuntimeError as error:
                if "randomness" not in str(error):
                    raise
                raise RuntimeError(
                    "a model that draws by operations of torch runs in turn, with together=False"
                ) from error
        with torch.no_grad():
            for at, model in enumerate(models):
                for name, buffer in model.named_buffers():
                    buffer.copy_(state[name][at])  # which the pass may have changed
        return found

    @contextmanager
    def stream(self, index: int, device: torch.device | str = "cpu") -> Iterator[None]:
        """Draw from the stream of a replica within the context, and go on with it the next time.

        Args:
            index: of the replica.
            device: where else than on the CPU is drawn.
        """
        cuda = torch.device(device).type == "cuda"
        with torch.random.fork_rng([device] if cuda else []):
            own = self._streams[index]
            if own:
                torch.set_rng_state(own["cpu"])
            if cuda and "cuda" in own:
                torch.cuda.set_rng_state(own["cuda"], device)
            if not own:
                torch.default_generator.manual_seed(self.seeds[index])
            if cuda and "cuda" not in own:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self.seeds[index])
            yield
            own["cpu"] = torch.get_rng_state()
            if cuda:
                own["cuda"] = torch.cuda.get_rng_state(device)

    def get_extra_state(self) -> Any:
        """Return seeds and streams, for ``state_dict``."""
        return {"seeds": list(self.seeds), "streams": [dict(one) for one in self._streams]}

    def set_extra_state(self, state: Any) -> None:
        """Take up what ``get_extra_state`` gave."""
        self.seeds = tuple(state["seeds"])
        self._streams = [{name: x.cpu() for name, x in one.items()} for one in state["streams"]]

    def extra_repr(self) -> str:
        """The number of replicas."""
        return f"{len(self)} replicas"


def _refusal(model: nn.Module) -> str:
    """Return why one pass cannot do what a model does for several of its kind, or ""."""
    for name, one in model.named_modules():
        drops = isinstance(one, nn.modules.dropout._DropoutNd) and one.p and model.training
        by_torch = isinstance(one, nn.RNNBase) and not isinstance(one, Noisy)
        if drops or by_torch:
            instead = "a term of noise" if drops else "regularize(model, None)"
            return (
                f"together, replicas cannot run torch's own {type(one).__name__}: take {instead} "
                f"instead, or together=False; got {name or 'the model'}"
            )
    return ""


def _stacked(*parts: Any) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.stack(parts)
    if isinstance(parts[0], PackedSequence):
        return parts
    if all(part == parts[0] for part in parts):
        return parts[0]
    raise ValueError(f"replicas must return tensors, or the same; got {parts}")


def _of(args: tuple[Any, ...], dims: tuple[int | None, ...], r: int) -> tuple[Any, ...]:
    """Return the arguments of a replica."""
    return tuple(
        arg if dim is None else tree_map(lambda one: one[r], arg)
        for arg, dim in zip(args, dims, strict=True)
    )


def _check_alike(models: Sequence[nn.Module]) -> None:
    """Refuse models of different shapes."""

    def shape(model: nn.Module) -> list[tuple[Any, ...]]:
        weights = [(n, tuple(p.shape), p.dtype, p.device) for n, p in model.named_parameters()]
        return [t for t in weights if ".rho_" not in f".{t[0]}"]

    first = shape(models[0])
    for index, model in enumerate(models):
        other = shape(model)
        if other != first:
            wrong = next((b for a, b in zip(first, other, strict=False) if a != b), "their number")
            raise ValueError(
                f"replicas must have parameters of the same names, shapes, types and devices; "
                f"got {wrong} in replica {index}"
            )


def _alike(models: Sequence[nn.Module]) -> list[list[int]]:
    """Return the replicas in groups that differ in weights and in numbers of their noise alone."""
    groups: dict[Any, list[int]] = {}
    for index, model in enumerate(models):
        groups.setdefault(_kind(model), []).append(index)
    return list(groups.values())


def _kind(model: nn.Module) -> Any:
    """Return what replicas have in common that one pass serves."""
    return tuple(
        (name, type(module), _settings(module), *_shown(module))
        for name, module in model.named_modules()
    )


_STANDARD = {
    *(vars(nn.Module()).keys() - {"training"}),
    *("_flat_weights", "_flat_weight_refs", "_flat_weights_names"),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NOISE = {"_noise", "_strength", "_replicas", "sampling", "silent"}  # see ``_shown``


def _settings(module: nn.Module) -> Any:
    """Return the attributes of a module that are no tensors or modules, to compare, and hooks."""
    apart = _STANDARD | _NOISE if isinstance(module, Noisy) else _STANDARD
    own = {name: value for name, value in vars(module).items() if name not in apart}
    hooks = [tuple(getattr(module, name).values()) for name in _HOOKS]
    return _comparable(own), _comparable(hooks)


def _comparable(value: Any) -> Any:
    """Return what equals that of another value if one pass may read either."""
    if isinstance(value, dict):
        return dict, tuple((k, _comparable(v)) for k, v in value.items())
    if isinstance(value, list | tuple | set):
        return type(value), tuple(map(_comparable, value))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _shown(module: nn.Module) -> tuple[Any, ...]:
    if not isinstance(module, Noisy):
        return (module.extra_repr(),)
    places = module.resolve(module.acting())
    terms = tuple((place, *map(_form, terms)) for place, terms in places.items())
    how = [getattr(module, name, None) for name in ("mode", "propagation", "time_dim")]
    return super(Noisy, module).extra_repr(), *how, module.sampling, module.silent, terms


def _form(term: Term) -> Any:
    """Return what is read of a term but for the numbers that are in its draws already."""
    if not isinstance(term, Noise):
        return type(term)
    std = term.law.std
    form = term.site, term.operator, term.hold, term.gates, term.estimate
    rest = None if is_final(term) else term.law
    return *form, (type(std), std.per) if isinstance(std, Learned) else rest
