"""Where a run runs: in one process, or in several that share one model."""

from resd.backend.base import Backend, Local, ProcessError, local_part, whole_tensor, woven
from resd.backend.launch import launched, make_backend

__all__ = [
    "Backend",
    "Local",
    "ProcessError",
    "launched",
    "local_part",
    "make_backend",
    "whole_tensor",
    "woven",
]
