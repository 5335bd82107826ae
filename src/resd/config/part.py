"""What every part of the configuration has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of the configuration: unknown keys fail."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)
