"""The trainer's end of the process that holds a reasoning-gym dataset (see `gym_server`)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from resd.errors import UserError
from resd.tasks.adapters.library_process import LibraryProcess


@dataclass(frozen=True)
class Item:
    """A question, its number in the dataset, and the package's answer, if it has one."""

    index: int
    question: str
    answer: str | None


@dataclass(frozen=True)
class Verdict:
    """A score between 0 and 1, and what went wrong in scoring, in words."""

    score: float
    problem: str = ""


class GymProcess(LibraryProcess):
    """One dataset in a process of its own, which ends with this object. Safe for threads.

    Args:
        dataset: its name.
        config: its options, plain JSON.
        seed: of the first question.
        train: number of questions to train on.
        test: number of questions to test on.

    Attributes:
        train: questions to train on, in a fixed order.
        test: questions to test on; no question stands twice in the two.

    Raises:
        UserError: the package is missing, or refuses the dataset or its options, or the dataset has
            too few questions.
    """

    def __init__(
        self, dataset: str, config: dict[str, Any], seed: int, train: int, test: int
    ) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError("the package reasoning-gym is missing: pip install 'resd[gym]'")
        setup = {"name": dataset, "config": config, "seed": seed, "train": train, "test": test}
        super().__init__("resd.tasks.adapters.gym_server", setup, "reasoning-gym")
        self.train = [Item(*item) for item in self.started["train"]]
        self.test = [Item(*item) for item in self.started["test"]]

    def score(self, index: int, answer: str) -> Verdict:
        """The package's verdict on an answer to the question with this index."""
        return Verdict(**self.ask([index, answer]))
