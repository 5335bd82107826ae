"""When checkpoints are written, and how many are kept."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from resd.config.part import Part

_DURATION = r"^\s*\d+(\.\d+)?\s*(s|min|h)\s*$"


class CheckpointConfig(Part):
    """What a crash leaves behind."""

    every: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=_DURATION)] = Field(
        "10 min", description="steps between checkpoints, or time: '90 s', '10 min', '2 h'"
    )
    keep: int = Field(2, ge=1, description="checkpoints kept")
    max_gb: float | None = Field(
        None, gt=0, description="most disk for checkpoints together; the newest stays in any case"
    )
    background: bool = Field(
        True, description="write while training goes on, from a copy in the host's memory"
    )
    keep_evaluated: int = Field(
        4, ge=1, description="evaluated students kept for the choice of the best, by rank sum"
    )

    @property
    def seconds(self) -> float | None:
        """Seconds between checkpoints; None where steps are counted."""
        if isinstance(self.every, int):
            return None
        number, unit = re.fullmatch(r"([\d.]+)\s*(s|min|h)", self.every.strip()).groups()  # type: ignore[union-attr]
        return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
