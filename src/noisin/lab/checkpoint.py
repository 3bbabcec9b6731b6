"""Checkpoints: tensors as safetensors, everything else as JSON in its header. No pickle."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.optim import Optimizer

from noisin.lab import LabError
from noisin.lab.files import write_aside


def save(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: bool = False
) -> None:
    """Write a checkpoint, aside and renamed.

    Args:
        path: file.
        tensors: named tensors.
        state: anything JSON can hold; numbers come back exactly.
        keep: whether what was there stays, beside it, for ``load_last``.

    Raises:
        LabError: the file cannot be written; what was there stays.
    """
    # clones, since tied weights share memory, which the format does not know
    flat = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    header = {"state": text, "sha256": _checksum(flat, text)}
    with write_aside(path, _before(path) if keep else None) as file:
        file.write(save_tensors(flat, header))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        LabError: the file is damaged.
    """
    try:
        data = path.read_bytes()
        tensors = load_tensors(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])["__metadata__"]
        text, checksum = header["state"], header.get("sha256")  # files of version 0.1 lack it
        state = json.loads(text)
        if not isinstance(state, dict):
            raise ValueError("its state is no table")
        if checksum is not None and checksum != _checksum(tensors, text):
            raise ValueError("its checksum does not match")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LabError(f"{path}: a checkpoint must be a whole safetensors file; {error}") from None
    return tensors, state


def load_last(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the last whole checkpoint, the one before where the last is damaged; None without any.

    Raises:
        LabError: there are some, and all are damaged.
    """
    first: LabError | None = None
    for file in (path, _before(path)):
        if not file.exists():
            continue
        try:
            found = load(file)
        except LabError as error:
            first = first or error
            continue
        if first is not None:
            warnings.warn(f"{first}; the checkpoint before it is used", stacklevel=2)
            path.unlink()  # or the next one would push the good one out
        return found
    if first is not None:
        raise LabError(f"{first}. Delete it to begin anew")
    return None


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{weights_hash(tensors)} {text}".encode()).hexdigest()


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a prefix to their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors below a prefix, without it."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state, as ``index/name``."""
    return {
        f"{index}/{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what ``optimizer_tensors`` gave; the settings stay those of the optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, types, shapes and bytes of a state dict."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
