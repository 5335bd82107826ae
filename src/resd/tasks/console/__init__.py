"""The console: a private command language for instruction models of a real vocabulary."""

from resd.tasks.console.environment import ConsoleEnvironment

__all__ = ["ConsoleEnvironment"]
