"""The seam between the loop and a method: rollouts in, training samples and a loss out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from resd.context import PromptBuilder
from resd.distill import Aggregation
from resd.engines import Completion
from resd.model import Responses
from resd.tasks.base import ChatMessage, Example, Outcome


@dataclass(frozen=True)
class Rollout:
    """A scored response.

    Attributes:
        outcome: None if the environment failed on it; such a rollout teaches nothing.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    completion: Completion
    outcome: Outcome | None

    @property
    def passed(self) -> bool:
        """Whether every test case passed."""
        return self.outcome is not None and self.outcome.passed

    @property
    def evidence(self) -> str:
        """Names this trial: the same response to the same example is the same evidence."""
        digest = hashlib.blake2b(self.completion.text.encode("utf-8", "replace"), digest_size=6)
        return f"{self.example.id}/{digest.hexdigest()}"


@dataclass
class TrainingSample:
    """One response that teaches.

    Attributes:
        teacher_ids: the teacher's prompt (distillation); empty for policy gradients.
        weight: of this sample in the loss.
        advantage: for policy gradients.
        old_log_probs [R]: of the response's tokens under the policy that drew them; filled by
            the first forward pass where the engine did not give them.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...] = ()
    weight: float = 1.0
    advantage: float = 0.0
    old_log_probs: torch.Tensor | None = None


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
