"""The lab: the whole loop on a laptop. A private command language and a model to learn it."""

from resd.tasks.lab.dialect import Dialect
from resd.tasks.lab.environment import LabEnvironment

__all__ = ["Dialect", "LabEnvironment"]
