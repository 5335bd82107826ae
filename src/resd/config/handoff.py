"""Settings of the hand-off from self-distillation to rewards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from resd.config.part import Part


class SwitchConfig(Part):
    """When rewards carry a signal of their own, and when they no longer do."""

    rule: Literal["measured", "schedule"] = Field(
        "measured", description="by what the rollouts show, or after a number of steps"
    )
    after: int = Field(20, ge=1, description="(schedule) steps before the switch")
    window: int = Field(4, ge=1, description="(measured) steps over which is averaged")
    passed: float = Field(
        0.2, gt=0, le=1, description="(measured) fraction of rollouts that must pass"
    )
    spread: float = Field(
        0.5,
        gt=0,
        le=1,
        description="(measured) fraction of groups that must hold both a success and a failure",
    )
    back: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="(measured) below this fraction passed reflection returns; 0 is never",
    )
