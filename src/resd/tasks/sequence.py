"""Several tasks as one environment: those of a stream, each with examples of its own.

An example's id says which task it belongs to: `birch/train-00003`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from resd.errors import UserError
from resd.tasks.base import Environment
from resd.tasks.registry import asked, load_environment, load_examples
from resd.types import ChatMessage, Example, Outcome, Split


class SequenceEnvironment:
    """The tasks of a stream.

    Args:
        tasks: name, task and task_args of each, in order.
        seed: of the run.

    Raises:
        UserError: one of them cannot be loaded, or their prompt templates differ.
    """

    description = "several tasks, one after the other"

    def __init__(self, tasks: Sequence[Mapping[str, Any]], seed: int = 0) -> None:
        self.parts: dict[str, Environment] = {}
        self._tasks = {part["name"]: part["task"] for part in tasks}
        for part in tasks:
            try:
                self.parts[part["name"]] = load_environment(part["task"], part["task_args"], seed)
            except UserError as error:
                raise UserError(f"{part['name']}: {error}") from None
        places = {name: getattr(part, "templates", None) for name, part in self.parts.items()}
        first, *others = places
        for name in others:
            if places[name] != places[first]:
                raise UserError(
                    f"the tasks {first} and {name} have different prompt templates; name one "
                    "directory for all of them with --templates"
                )
        self.templates = places[first]
        self.notes = [
            f"{name}: {note}"
            for name, part in self.parts.items()
            for note in getattr(part, "notes", ())
        ]
        # What some of them have, and all are asked for.
        if any(hasattr(part, "anchors") for part in self.parts.values()):
            self.anchors = self._anchors
        if any(hasattr(part, "retention") for part in self.parts.values()):
            self.retention = self._retention
        # What is of use only if it is there for every example.
        if all(hasattr(part, "gold") for part in self.parts.values()):
            self.gold = self._gold

    def examples(self, split: Split) -> list[Example]:
        """Those of all tasks, in order."""
        return [example for name in self.parts for example in self.examples_of(name, split)]

    def examples_of(self, name: str, split: Split) -> list[Example]:
        """Those of one task."""
        examples = load_examples(self.parts[name], split, self._tasks[name])
        return [replace(example, id=f"{name}/{example.id}") for example in examples]

    def evaluate(self, example: Example, response: str) -> Outcome:
        """By the task that the example belongs to."""
        part, own = self._own(example)
        return part.evaluate(own, response)

    def _gold(self, example: Example) -> str:
        part, own = self._own(example)
        return str(part.gold(own))  # type: ignore[attr-defined]

    def _own(self, example: Example) -> tuple[Environment, Example]:
        name, _, own = example.id.partition("/")
        return self.parts[name], replace(example, id=own)

    def _anchors(self) -> list[Sequence[ChatMessage] | str]:
        """Of every task that has some, by turns, so that the first of them are a fair share."""
        given = [
            list(asked(f"{name}: anchors()", part.anchors))
            for name, part in self.parts.items()
            if hasattr(part, "anchors")
        ]
        longest = max(map(len, given))
        return [prompts[i] for i in range(longest) for prompts in given if i < len(prompts)]

    def _retention(self) -> dict[str, list[Example]]:
        """Of the first task that has groups: skills that belong to none of the tasks."""
        name, part = next(
            (name, part) for name, part in self.parts.items() if hasattr(part, "retention")
        )
        groups = asked(f"{name}: retention()", lambda: dict(part.retention()))
        return {
            group: [replace(example, id=f"{name}/{example.id}") for example in examples]
            for group, examples in groups.items()
        }
