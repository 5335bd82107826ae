"""The run directory as seen by all processes but the first: nothing is written but shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resd.runs import atomic
from resd.runs.directory import RunDirectory


class FollowedRun(RunDirectory):
    """A run that process 0 writes.

    Where all processes make something together (shards of a checkpoint, the gathering of a model)
    this one takes part, and leaves the rest to process 0.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        """It holds no lock."""

    def discard(self) -> None:
        """Process 0 does it."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Process 0 does it."""

    def trace(self, what: str, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Process 0 does it."""

    def warned(self, step: int, text: str) -> None:
        """Process 0 does it."""

    def save_artifacts(self, files: Mapping[str, str]) -> None:
        """Process 0 does it."""

    def save_notes(self, notes: Sequence[str]) -> None:
        """Process 0 does it."""

    def rewind(self, step: int, keep: int, budget: float | None = None) -> None:
        """Process 0 does it."""

    def finish(self, best: int, summary: Mapping[str, Any]) -> None:
        """Process 0 does it."""

    def save_checkpoint(
        self, step: int, keep: int, fill: Callable[[Path], None], budget: float | None = None
    ) -> None:
        """Write this process's shards where process 0 has made room for them."""
        fill(atomic.scratch_of(self.checkpoint(step)))

    def save_evaluated(self, step: int, keep: Sequence[int], fill: Callable[[Path], None]) -> None:
        """Take part in gathering the model."""
        if step in keep:
            fill(self.path)

    def save_final(self, fill: Callable[[Path], None]) -> None:
        """Take part in gathering the model."""
        fill(self.path)
