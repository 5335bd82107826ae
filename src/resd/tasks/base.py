"""The seam between a task and the trainer: `Environment`, `Example`, `Outcome`.

Nothing here imports torch, so that an environment can be written and tested in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

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


@runtime_checkable
class Environment(Protocol):
    """A task. Both methods must be deterministic and safe to call from several threads.

    Optional members:
        description: a few words for `resd tasks`.
        templates: directory whose `*.jinja` files replace the built-in prompt templates.
        notes: strings that a run prints and keeps at its start (a sandbox that is off, say).
        gold(example) -> str | None: a response that scores 1.0, for `resd tasks check`.
        secrets(example) -> Sequence[str]: texts that feedback must not give away; by default the
            gold response and its fenced block.
        reveals_gold: True if the settings let the feedback show the gold answer.
        baselines() -> Mapping[str, Callable[[Example], str]]: responses of trivial strategies,
            whose score is reported beside every evaluation.
        score_playbook(contents) -> dict[str, float]: numbers to log about the playbook, for
            worlds that know the truth.
    """

    def examples(self, split: Split) -> Sequence[Example]:
        """The examples of a split, in a fixed order."""
        ...

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Score one response. Whatever the response holds, this should not raise."""
        ...
