"""The seam between the loop and a method: rollouts in, training samples and a loss out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from resd.config import MethodConfig, Part
from resd.context import PromptBuilder, Reflection
from resd.distill import Aggregation
from resd.models.head import LogitHead
from resd.types import ChatMessage, Completion, Rollout, TrainingSample


@dataclass(frozen=True)
class TeacherStates:
    """What a teacher makes of the responses of some samples: the head turns it into logits.

    Attributes:
        hidden [N, D]: of all response tokens, sample after sample.
        head: the teacher's.
        fixed: the teacher never moves, so this holds for later updates too.
    """

    hidden: torch.Tensor
    head: LogitHead
    fixed: bool


@dataclass(frozen=True)
class Tokens:
    """Response tokens of any samples, a chunk at a time; every tensor but one is [n].

    Attributes:
        log_probs: of the student now.
        old_log_probs: of the policy that drew the tokens: the sampler's where it is another
            engine than the trainer, else the student's before the batch's first update.
        advantages: of the sample that a token belongs to.
        teacher_logits [n, V]: None if the method has no teacher.
    """

    log_probs: torch.Tensor
    old_log_probs: torch.Tensor
    advantages: torch.Tensor
    teacher_logits: torch.Tensor | None = None


@dataclass(frozen=True)
class Written:
    """One text that the model is asked to write about a rollout.

    Attributes:
        about: the rollout; its seed and example make the text's own seed.
        prompt: chat messages.
    """

    about: Rollout
    prompt: Sequence[ChatMessage]


class Writer(Protocol):
    """Lets a model write: reflections, curations, tags."""

    def __call__(
        self,
        what: str,
        wanted: Sequence[Written],
        max_new_tokens: int,
        temperature: float,
        teacher: Any = None,
    ) -> list[Completion]:
        """One completion for each prompt; `what` is traced, and part of the seeds."""
        ...


@dataclass
class Services:
    """What a method may use of the run.

    Attributes:
        encode: chat messages to token ids, with the assistant header.
        weights: the student's weights that the optimiser updates, by name.
        trace: keeps a record for the run's traces.
        phase: counts the time of its body for a phase of the step.
        whole_logits: the student's logits cannot be made a chunk at a time.
        copy: makes a frozen copy of the student as it was loaded, with `offload` in the host's
            memory; a deep copy by default.
    """

    builder: PromptBuilder
    encode: Callable[[Sequence[ChatMessage]], Sequence[int]]
    count_tokens: Callable[[str], int]
    write: Writer
    student: torch.nn.Module
    weights: Mapping[str, torch.Tensor]
    trace: Callable[..., None]
    phase: Callable[[str], Any]
    seed: int
    pad_id: int
    whole_logits: bool = False
    copy: Callable[..., torch.nn.Module] | None = None


# Tokens and their log-probs, the likeliest first.
Top = list[tuple[int, float]]


@dataclass(frozen=True)
class TokenNumbers:
    """Tokens of a response, before the first update on its batch; each list is [n].

    Attributes:
        ids: the tokens.
        student: their log-probs under the student.
        loss: theirs, before the weights of samples and batch.
        student_top: the student's likeliest tokens at each place.
        teacher: log-probs under the teacher; None without one.
        teacher_top: the teacher's likeliest tokens.
    """

    ids: list[int]
    student: list[float]
    loss: list[float]
    student_top: list[Top]
    teacher: list[float] | None = None
    teacher_top: list[Top] | None = None


@dataclass
class StepReport:
    """What is told of one step.

    Attributes:
        metrics: numbers.
        counts: by reason.
        lesson: the last one learnt.
        tokens: of the responses whose tokens are kept, by place in the batch.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    lesson: str = ""
    tokens: dict[int, TokenNumbers] = field(default_factory=dict)


@dataclass(frozen=True)
class Notes:
    """What a method learnt of a batch, for its training samples.

    Attributes:
        reflections: one a rollout; None where there is none.
    """

    reflections: Sequence[Reflection | None]


Config = TypeVar("Config", bound=Part)


class Method(Generic[Config]):
    """Turns a scored batch into a training batch and a loss. Hooks do nothing by default.

    Args:
        config: of the method; it has `rollouts` and `aggregation`.
        services: of the run.

    Attributes:
        config_class: the settings of a method of one's own; unknown keys are refused.
    """

    config_class: ClassVar[type[Part]] = MethodConfig

    def __init__(self, config: Config, services: Services) -> None:
        self.config = config
        self.services = services

    @property
    def rollouts(self) -> int:
        """Responses a prompt, in the step to come."""
        return int(self.config.rollouts)  # type: ignore[attr-defined]

    @property
    def aggregation(self) -> Aggregation:
        """How the losses of tokens are averaged, in the step at hand."""
        return self.config.aggregation  # type: ignore[attr-defined, no-any-return]

    @property
    def updates_per_batch(self) -> int | None:
        """Optimiser steps on a batch of rollouts; None for what the run says."""
        return None

    def begin_task(self, name: str, *, first: bool) -> None:
        """Called before the first step of every task of a stream, and of a run's only task.

        Args:
            name: of the task; "" where it is the only one.
            first: whether none was before it.
        """

    def learn(self, batch: Sequence[Rollout], report: StepReport) -> Notes:
        """Update what the method remembers, before the policy update (paper: line 3)."""
        return Notes([None] * len(batch))

    def samples(
        self, batch: Sequence[Rollout], notes: Notes, report: StepReport
    ) -> list[TrainingSample | None]:
        """A training sample for each rollout; None where it teaches nothing (paper: line 4)."""
        raise NotImplementedError

    def score(self, samples: Sequence[TrainingSample]) -> TeacherStates | None:
        """What the teacher makes of these samples' responses; None without a teacher."""
        return None

    def per_token(
        self, tokens: Tokens, logits: torch.Tensor, report: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Loss [n] of response tokens, for student logits [n, V].

        Args:
            tokens: which.
            logits: of the student.
            report: takes further numbers [n], averaged over the batch's tokens for the metrics.
        """
        raise NotImplementedError

    def after_update(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Called after every finite optimiser step, with the student's float32 weights."""

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers, as plain JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights that the method holds besides the student's."""
        return {}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore `tensors()`."""

    def artifacts(self, title: str) -> dict[str, str]:
        """Files for the run directory, by name: what a person wants to look at."""
        return {}

    def metrics(self, environment: Any) -> dict[str, float]:
        """Numbers that need the environment, in worlds that know the truth."""
        return {}
