"""Nested tensors by name on disk, by `torch.distributed.checkpoint`."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

Nested = Mapping[str, Any]


def write(place: Path, tensors: Nested, **group: Any) -> None:
    """Write into a new directory.

    Raises:
        OSError: a file cannot be written.
    """
    _call(lambda: save(dict(tensors), checkpoint_id=place, **group))


def read(place: Path, tensors: Nested, **group: Any) -> None:
    """Read in place, into tensors that have the names and shapes of those written.

    Raises:
        OSError, ValueError: it cannot be read, or lacks a name.
    """
    _call(lambda: load(dict(tensors), checkpoint_id=place, **group))


def names(place: Path) -> set[str]:
    """Dotted names of all tensors that were written."""
    return set(FileSystemReader(place).read_metadata().state_dict_metadata)


def copied(tensors: Nested) -> dict[str, Any]:
    """The same tensors in the memory of the host, unmoved by what comes after."""
    return {
        name: copied(value) if isinstance(value, Mapping) else _copy(value)
        for name, value in tensors.items()
    }


def _copy(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    mesh = tensor.device_mesh
    if mesh.device_type != "cpu":
        mesh = torch.distributed.device_mesh.DeviceMesh("cpu", mesh.mesh, _init_backend=False)
    return DTensor.from_local(
        local_part(tensor.detach()).to("cpu", copy=True),
        mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _call(action: Callable[[], None]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            action()
    except CheckpointException as error:  # not an Exception: nothing else would catch it
        failures = [failure for failure, _ in error.failures.values()]
        for failure in failures:
            if isinstance(failure, OSError):
                raise failure from None
        text = str(failures[0]) if failures else str(error)
        if any(name in text for name in ("inline_container", "iostream")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise ValueError(text) from None


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; all processes ask together."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def local_part(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or the tensor."""
    local = getattr(tensor, "to_local", None)
    return local() if local is not None else tensor
