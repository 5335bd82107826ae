"""How a student is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from resd.config.part import Part


class EvalConfig(Part):
    """Validation (paper: 4 samples, temperature 0.6, top-p 0.95)."""

    every: int = Field(10, ge=0, description="steps between evaluations; 0 for only at the end")
    samples: int = Field(4, ge=1, description="n of mean@n and best@n")
    temperature: float = Field(0.6, gt=0, description="sampling temperature")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus")
    max_examples: int | None = Field(None, ge=1, description="test examples used; all by default")
    at_start: bool = Field(True, description="evaluate before the first step")
    retention: int = Field(
        0,
        ge=0,
        description="examples a group of what is to be kept, the task's own or general skills "
        "(resd retention); 0 is off",
    )
    retention_at: Literal["all", "ends"] = Field(
        "all", description="at all evaluations, or at both ends: before the first step and last"
    )
    retention_tokens: int = Field(256, ge=1, description="most tokens of an answer to one of them")
