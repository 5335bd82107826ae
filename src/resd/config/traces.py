"""What a run keeps of its texts and tokens, and how much of it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from resd.config.part import Part


class TracesConfig(Part):
    """Texts and tokens kept for `resd report`; `traces = false` is short for `keep = false`."""

    keep: bool = Field(True, description="keep rollouts, reflections and teacher prompts")
    rollouts: int = Field(
        64, ge=0, description="rollouts of a step whose texts are kept, the first ones"
    )
    responses: int = Field(
        8, ge=0, description="responses of a step whose tokens are kept with their numbers"
    )
    tokens: int = Field(256, ge=1, description="most tokens of such a response, the first ones")
    alternatives: int = Field(
        4, ge=0, description="likeliest tokens of student and teacher kept beside each"
    )
    answers: int = Field(
        5, ge=0, description="test problems of each task whose first answer is kept"
    )
    characters: int = Field(
        65536, ge=100, description="most characters of a text; the middle of a longer one goes"
    )

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {"keep": value}
        if not isinstance(value, dict):
            raise ValueError("it is true, false, or a table of settings such as traces.responses")
        return value
