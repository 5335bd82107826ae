"""BouncingSim: the model writes a program that predicts where bouncing balls will be."""

from resd.tasks.bouncing.environment import BouncingEnvironment
from resd.tasks.bouncing.simulator import simulate

__all__ = ["BouncingEnvironment", "simulate"]
