"""The seam between a task and the trainer: `Environment`.

Nothing here imports torch, so that an environment can be written and tested in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from resd.types import ChatMessage, Example, Outcome, Split

__all__ = ["ChatMessage", "Environment", "Example", "Outcome", "Split"]


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
        anchors() -> Sequence[str | Sequence[ChatMessage]]: prompts that have nothing to do with
            the task, on which a student is held to the initial model (docs/anchors.md).
        retention() -> Mapping[str, Sequence[Example]]: named groups of examples that have nothing
            to do with the task and that `evaluate` scores, for `evaluation.retention`.
        lessons() -> Sequence[str]: what a perfect playbook says, for `resd probe`.
        score_playbook(contents) -> dict[str, float]: numbers to log about the playbook, for
            worlds that know the truth.
    """

    def examples(self, split: Split) -> Sequence[Example]:
        """The examples of a split, in a fixed order."""
        ...

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Score one response. Whatever the response holds, this should not raise."""
        ...
