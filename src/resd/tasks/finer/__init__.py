"""FiNER: tag the numbers in sentences of SEC filings with US GAAP tags, four at a time."""

from resd.tasks.finer.environment import FinerEnvironment

__all__ = ["FinerEnvironment"]
