"""Settings of the anchors, which all methods share."""

from __future__ import annotations

from pydantic import Field

from resd.config.part import Part

# What `prompts` may be, beside a file.
PROMPT_SETS = (None, "task", "general")


class AnchorConfig(Part):
    """Hold the student to the initial model's answers to prompts that are not the task's."""

    weight: float = Field(
        0.0, ge=0, description="of KL(initial || student) beside the method's loss; 0 is off"
    )
    batch: int = Field(16, ge=1, description="anchors beside each optimiser step")
    prompts: str | None = Field(
        None,
        description="task: the environment's anchors(); general: instructions that ship; or a "
        "file, .jsonl or a prompt a line; by default the task's, or general where it has none",
    )
    number: int = Field(256, ge=1, description="most prompts that are answered and kept")
    earlier: int = Field(
        0,
        ge=0,
        description="(stream) prompts of each task left behind that become anchors, answered by "
        "the student as it left the task",
    )
    max_prompt_tokens: int = Field(1024, ge=1, description="longer prompts are left out")
    max_new_tokens: int = Field(256, ge=1, description="most tokens of an answer")
    temperature: float = Field(1.0, ge=0, description="of the answers; 0 is greedy")
