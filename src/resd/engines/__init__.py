"""Generation with the current weights."""

from resd.engines.base import Completion, Engine, Sampling
from resd.engines.hf import HFEngine

__all__ = ["Completion", "Engine", "HFEngine", "Sampling"]
