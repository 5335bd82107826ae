"""Adapters: task collections of other packages behind the `Environment` seam."""

from resd.tasks.adapters.reasoning_gym import ReasoningGymEnvironment

__all__ = ["ReasoningGymEnvironment"]
