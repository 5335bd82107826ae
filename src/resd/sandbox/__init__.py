"""Running model-written Python: a fresh process that can compute, answer, and nothing else."""

from resd.sandbox.base import CallResult, Failure, Kind, Limits, Sandbox
from resd.sandbox.process import SandboxUnavailable, make_sandbox

__all__ = [
    "CallResult",
    "Failure",
    "Kind",
    "Limits",
    "Sandbox",
    "SandboxUnavailable",
    "make_sandbox",
]
