"""Adapters: task collections of other packages behind the `Environment` seam."""

from resd.tasks.adapters.reasoning_gym import ReasoningGymEnvironment
from resd.tasks.adapters.verifiers import VerifiersEnvironment

__all__ = ["ReasoningGymEnvironment", "VerifiersEnvironment"]
