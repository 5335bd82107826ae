"""Where a run runs: in one process, or in several that share one model."""

from __future__ import annotations

from resd.backend.base import Backend, Local, Source, woven
from resd.backend.tensors import local_part, whole_tensor
from resd.launch import launched

__all__ = ["Backend", "Local", "Source", "local_part", "make_backend", "whole_tensor", "woven"]


def make_backend(device: str = "auto") -> Backend:
    """The backend of this process.

    Args:
        device: as `model.device`.

    Raises:
        UserError: torchrun set up what cannot work.
    """
    if launched() == 1:
        return Local()
    from resd.backend.fsdp import Sharded

    return Sharded(device)
