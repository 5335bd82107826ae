"""Generation with the current weights."""

from resd.engines.base import Engine, OnDone, Request, Sampling
from resd.engines.hf import HFEngine
from resd.types import Completion

__all__ = ["Completion", "Engine", "HFEngine", "OnDone", "Request", "Sampling"]
