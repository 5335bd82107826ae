"""What flows through a run: examples, outcomes, completions, rollouts, training samples.

Nothing here imports torch, so that an environment can be written and tested in milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Split = Literal["train", "test"]


class ChatMessage(TypedDict):
    """One message of a prompt: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One problem.

    Attributes:
        id: unique within its split; the solution buffer and all statistics go by it.
        prompt: the chat messages that the student sees; the last one is the user's.
        data: whatever `Environment.evaluate` needs; never shown to the model.
    """

    id: str
    prompt: Sequence[ChatMessage]
    data: Any = None


@dataclass(frozen=True)
class Outcome:
    """What the environment says of one response.

    Attributes:
        reward: finite number, 1.0 for a right response (paper: R, binary).
        passed: True only if every test case passes.
        feedback: what went wrong, in words (paper: c). Empty means "nothing to say".
        cases_passed: test cases that pass, 0 <= cases_passed <= cases.
        cases: test cases in all, at least 1.
        metrics: further numbers, averaged into the metrics of the step.
    """

    reward: float
    passed: bool
    feedback: str = ""
    cases_passed: int | None = None
    cases: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def case_fraction(self) -> float:
        """Fraction of the test cases that pass, between 0 and 1."""
        passed = self.cases_passed if self.cases_passed is not None else self.cases * self.passed
        return passed / self.cases


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        token_ids: with the end token, if it was reached.
        text: the whole response, so that it can be judged alone: where the prompt opened the
            thinking, the text starts with that mark.
        finish_reason: "stop", or "length" if the limit cut it off.
        log_probs: of each token under the sampler's full softmax at temperature 1, before
            temperature and nucleus: what the trainer's log-softmax is compared with. None where
            the engine does not give them.
        answer: what follows the thinking; None if the response ended inside its thinking and
            so holds no answer.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    log_probs: tuple[float, ...] | None = None
    answer: str | None = ""


@dataclass(frozen=True)
class Rollout:
    """A scored response.

    Attributes:
        outcome: None if the environment failed on it; such a rollout teaches nothing.
        seed: of this response's sampling; whatever else is random about it derives from it.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    completion: Completion
    outcome: Outcome | None
    seed: int = 0

    @property
    def passed(self) -> bool:
        """Whether every test case passed."""
        return self.outcome is not None and self.outcome.passed

    @property
    def answer(self) -> str:
        """What the response answers; empty if it ended inside its thinking."""
        return self.completion.answer or ""

    @property
    def evidence(self) -> str:
        """Names this trial: the same response to the same example is the same evidence."""
        digest = hashlib.blake2b(self.completion.text.encode("utf-8", "replace"), digest_size=6)
        return f"{self.example.id}/{digest.hexdigest()}"


@dataclass(frozen=True)
class TrainingSample:
    """One response that teaches.

    Attributes:
        teacher_ids: the teacher's prompt (distillation); empty for policy gradients.
        weight: of this sample in the loss.
        advantage: for policy gradients.
        log_probs [R]: of the response's tokens under the sampler, as in `Completion`.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...] = ()
    weight: float = 1.0
    advantage: float = 0.0
    log_probs: tuple[float, ...] | None = None
