"""The seam between the loop and a method: rollouts in, training samples and a loss out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from resd.context import PromptBuilder
from resd.distill import Aggregation
from resd.models.batch import Responses
from resd.types import ChatMessage, Rollout, TrainingSample


@dataclass(frozen=True)
class MicroBatch:
    """Training samples of one forward pass; every tensor is right-aligned [B, R]."""

    samples: Sequence[TrainingSample]
    responses: Responses
    log_probs: torch.Tensor
    old_log_probs: torch.Tensor
    pad_id: int


class Writer(Protocol):
    """Lets a model write: reflections, curations, tags."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, what: str
    ) -> list[str]:
        """One text for each prompt of token ids; `what` seeds the sampling."""
        ...


@dataclass
class Services:
    """What a method may use of the run.

    Attributes:
        encode: chat messages to token ids, with the assistant header.
        trace: keeps a record for the run's traces.
    """

    builder: PromptBuilder
    encode: Any
    count_tokens: Any
    write: Writer
    student: Any
    trace: Any
    seed: int
    pad_id: int


@dataclass
class StepReport:
    """What a method tells of one step: numbers, counts by reason, and the last lesson learnt."""

    metrics: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    lesson: str = ""


class Method(Protocol):
    """Turns a scored batch into a training batch and a loss."""

    rollouts: int
    aggregation: Aggregation

    def learn(self, batch: Sequence[Rollout], report: StepReport) -> None:
        """Update what the method remembers, before the policy update (paper: line 3)."""
        ...

    def samples(self, batch: Sequence[Rollout], report: StepReport) -> list[TrainingSample | None]:
        """A training sample for each rollout; None where it teaches nothing."""
        ...

    def token_loss(self, micro: MicroBatch, logits: torch.Tensor) -> torch.Tensor:
        """Loss [B, R] of every response token, for student logits [B, R, V]."""
        ...

    def after_update(self, student: torch.nn.Module) -> None:
        """Called after every finite optimiser step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers, as plain JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights that the method holds besides the student's."""
        ...

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore `tensors()`."""
        ...


def messages_or_count(
    messages: list[ChatMessage] | None, services: Services, report: StepReport, what: str
) -> tuple[int, ...] | None:
    """Token ids of a prompt, or None (counted) where it does not fit."""
    if messages is None:
        report.counts[f"{what}_prompt_too_long"] += 1
        return None
    return tuple(services.encode(messages))
