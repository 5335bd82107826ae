"""Budgets and rules of the playbook."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PlaybookConfig(BaseModel):
    """Budgets and rules of the playbook."""

    model_config = ConfigDict(extra="forbid")

    max_entries: int = Field(150, ge=1, description="most entries (paper: Mmax, 120 to 200)")
    max_tokens: int = Field(8192, ge=16, description="most tokens of the rendered playbook")
    max_entry_chars: int = Field(1000, ge=16, description="a longer lesson is cut here")
    concise: Literal["staleness", "prioritized", "off"] = Field(
        "staleness", description="how entries are dropped (paper: CONCISE, App. D)"
    )
    concise_every: int = Field(4, ge=1, description="context updates between two cleanings (F)")
    admission: Literal["immediate", "confirmed"] = Field(
        "immediate", description="immediate: the paper's; confirmed: once reflections agree"
    )
    confirmations: int = Field(
        2, ge=1, description="independent reflections that admit an entry (confirmed)"
    )
    candidate_patience: int = Field(
        32, ge=1, description="context updates that a candidate waits for support (confirmed)"
    )
    scope: Literal["task", "stream"] = Field(
        "task", description="(stream) a playbook for each task, or one for all of them"
    )
    merge_similarity: float = Field(
        0.95, gt=0, le=1, description="lessons at least this alike are one (1: same words only)"
    )
    operations: Literal["all", "add"] = Field(
        "all", description="what a curator may ask for; add: the paper's, others are refused"
    )
    max_changes_per_output: int = Field(
        2, ge=0, description="most entries that one output may remove, merge or rewrite"
    )
    max_changes_per_update: int = Field(
        2, ge=0, description="most entries that leave or change by operations in one context update"
    )
    max_harmful_per_output: int = Field(
        4, ge=0, description="most entries that one reflection may tag harmful"
    )

    @property
    def add_only(self) -> bool:
        """Whether the curator may only ADD."""
        return self.operations == "add"
