"""What a run watches for, and what it does about it; see docs/health.md."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from resd.config.part import Part
from resd.errors import close_to

Action = Literal["warn", "stop", "off"]
_GENERAL = ("action", "window", "limits")


class HealthConfig(Part):
    """Signs that a run is dying; each has an action of its own, or the one of all."""

    action: Action = Field(
        "warn",
        description="of every signal: warn once; warn, write a checkpoint and end the run, which "
        "--resume goes on with; nothing",
    )
    window: int = Field(
        8, ge=1, description="steps over which most signals are averaged before they are judged"
    )
    limits: dict[str, float] = Field(
        default_factory=dict,
        description="limits of your own, by signal: --health.limits.truncated 0.2",
    )
    nothing_taught: Action | None = Field(None, description="hardly a response teaches anything")
    truncated: Action | None = Field(None, description="responses end at the length limit")
    unfinished_thinking: Action | None = Field(None, description="thinking is never closed")
    reflections: Action | None = Field(None, description="reflections cannot be used")
    curations: Action | None = Field(None, description="curations cannot be used")
    playbook_empty: Action | None = Field(None, description="the playbook stays empty")
    playbook_churn: Action | None = Field(None, description="lessons go as fast as they come")
    entropy: Action | None = Field(None, description="the student is sure of wrong answers")
    length: Action | None = Field(None, description="responses grow or shrink without end")
    ratio: Action | None = Field(None, description="trainer and sampler hold different policies")
    not_finite: Action | None = Field(None, description="updates are skipped: loss not finite")
    weights: Action | None = Field(None, description="the first update moves the weights wrongly")
    outside: Action | None = Field(None, description="the loss sees little of the teacher")
    leak: Action | None = Field(None, description="responses name hints that only the teacher sees")
    retention: Action | None = Field(None, description="the student forgets what it is to keep")
    reward: Action | None = Field(None, description="reward rises while exact grading falls")

    @field_validator("limits")
    @classmethod
    def _known(cls, limits: dict[str, float]) -> dict[str, float]:
        known = signal_names()
        for name in limits:
            if name not in known:
                meant = f"{name[:40]}{close_to(name, known)}"
                raise ValueError(f"there is no signal {meant}; known: {', '.join(known)}")
        return limits

    def action_of(self, signal: str) -> Action:
        """What a signal does."""
        own: Action | None = getattr(self, signal)
        return own or self.action


def signal_names() -> list[str]:
    """The signals, in order."""
    return [name for name in HealthConfig.model_fields if name not in _GENERAL]
