"""The console as an `Environment`: one dialect, requests for one device each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence

from resd.tasks.console.language import Dialect, check, score_lessons
from resd.tasks.lab.dialect import DEVICES, LEVELS, ROOMS
from resd.tasks.lab.interpreter import Request
from resd.types import Example, Outcome, Split

_PROMPT = """\
The console of a house takes commands of its own: a verb, a room and a level. For example, the \
command for the clock in the yard at level 3 is:
tick yard 3

Answer with the command alone. What is the command for the {device} in the {room} at level \
{level}?"""
_TEST = 48


class ConsoleEnvironment:
    """A private command language, known only through what the console says.

    Args:
        dialect: number of the dialect, 0 or more.
        devices: devices of the house, 2 to 8, each with a verb of its own.
    """

    description = "a private command language with diagnostic errors, for real instruction models"

    def __init__(self, dialect: int = 0, devices: int = 6) -> None:
        if dialect < 0 or not 2 <= devices <= len(DEVICES):
            raise ValueError(
                f"console: dialect must be >= 0 and devices 2 to {len(DEVICES)}; got "
                f"dialect={dialect}, devices={devices}"
            )
        self.number = dialect
        self.dialect = Dialect.numbered(dialect, devices)

    def examples(self, split: Split) -> Sequence[Example]:
        """The requests of a split; no test request stands in training."""
        every = [Request(*c) for c in itertools.product(self.dialect.verbs, ROOMS, LEVELS)]
        random.Random(f"console requests {self.number}").shuffle(every)
        chosen = every[:_TEST] if split == "test" else every[_TEST:]
        return [
            Example(
                f"{split}-{i:05d}",
                [{"role": "user", "content": _PROMPT.format(**vars(request))}],
                request,
            )
            for i, request in enumerate(chosen)
        ]

    def evaluate(self, example: Example, response: str) -> Outcome:
        """What the console does with the response."""
        said = check(self.dialect, example.data, response)
        return Outcome(float(not said), not said, said)

    def gold(self, example: Example) -> str:
        """The right command."""
        return self.dialect.command(example.data)

    def lessons(self) -> list[str]:
        """What a perfect playbook says."""
        return [f"The verb for the {d} is: {verb}" for d, verb in self.dialect.verbs.items()]

    def score_playbook(self, contents: Iterable[str]) -> dict[str, float]:
        """How right and how complete the lessons about verbs are."""
        return score_lessons(contents, self.dialect)
