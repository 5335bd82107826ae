"""Generation with the current weights."""

from resd.engines.base import Engine, Request, Sampling
from resd.engines.hf import HFEngine
from resd.types import Completion

__all__ = ["Completion", "Engine", "HFEngine", "Request", "Sampling"]
