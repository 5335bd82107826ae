"""Runs on disk: layout, checkpoints, metrics, seeds."""

from resd.runs.config_file import read_config
from resd.runs.directory import RunDirectory
from resd.runs.rows import read_metrics

__all__ = ["RunDirectory", "read_config", "read_metrics"]
