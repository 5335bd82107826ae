"""The tasks of a stream: one student learns them one after the other."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from resd.config.part import Part


class StreamPart(Part):
    """A task of a stream."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="stands in ids, metrics and files"
    )
    task: str | None = Field(None, description="as the run's by default")
    task_args: dict[str, Any] = Field(
        default_factory=dict, description="arguments beside those that the run gives all its tasks"
    )
    steps: int | None = Field(None, ge=1, description="training steps; train.steps by default")
