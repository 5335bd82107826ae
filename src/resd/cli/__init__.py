"""The command line."""

from resd.cli.main import main

__all__ = ["main"]
