"""The stream protocol: every example in one batch only, K inner iterations a batch.

A run has one task, or several that follow one another, each with steps of its own.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from resd.config import TrainConfig
from resd.runs.seeds import derive
from resd.tasks.base import Environment
from resd.types import Example


class Stream:
    """Which examples a step trains on; a pure function of seed and step.

    Args:
        examples: the training examples.
        config: batch size, inner iterations, steps. More steps than a pass holds go on with
            another pass, shuffled anew (unless `config.shuffle` is off).
        seed: of the order.
    """

    def __init__(self, examples: Sequence[Example], config: TrainConfig, seed: int) -> None:
        self._examples = list(examples)
        self._size = min(config.batch_size, len(self._examples))
        self._inner = config.inner_iterations
        self._shuffle = config.shuffle
        self._seed = seed
        # A last batch that would not be full is left out of the pass.
        self._batches = len(self._examples) // self._size
        self.steps = config.steps or self._batches * self._inner

    def batch(self, step: int) -> list[Example]:
        """The examples of step 1, 2, ..."""
        number = (step - 1) // self._inner
        order = list(range(len(self._examples)))
        if self._shuffle:
            random.Random(derive(self._seed, "pass", number // self._batches)).shuffle(order)
        start = number % self._batches * self._size
        return [self._examples[i] for i in order[start : start + self._size]]

    def is_first_iteration(self, step: int) -> bool:
        """Whether a step is the first on its batch."""
        return (step - 1) % self._inner == 0


@dataclass(frozen=True)
class Stage:
    """A task of a run.

    Attributes:
        name: as the stream names it; "" where a run has one task only.
        environment: the task.
        train, test: its examples.
        steps: how long it is trained; as `train.steps` says where it is None.
    """

    name: str
    environment: Environment
    train: Sequence[Example]
    test: Sequence[Example]
    steps: int | None = None


class Course:
    """The tasks of a run in order, and which examples a step trains on.

    Args:
        stages: the tasks.
        config: of all of them.
        seed: of the orders.
    """

    def __init__(self, stages: Sequence[Stage], config: TrainConfig, seed: int) -> None:
        self.stages = stages
        self._streams = [
            Stream(s.train, config.model_copy(update={"steps": s.steps or config.steps}), seed)
            for s in stages
        ]
        self._ends = list(itertools.accumulate(stream.steps for stream in self._streams))
        self.steps = self._ends[-1]

    def number(self, step: int) -> int:
        """Which task a step trains: 0, 1, ... The step before the first belongs to the first."""
        return bisect.bisect_left(self._ends, max(1, step))

    def stage(self, step: int) -> Stage:
        """The task that a step trains."""
        return self.stages[self.number(step)]

    def seen(self, step: int) -> Sequence[Stage]:
        """The tasks that have begun by a step."""
        return self.stages[: self.number(step) + 1]

    def begins(self, step: int) -> bool:
        """Whether a step is the first of its task."""
        return step == 1 or step - 1 in self._ends

    def ends(self, step: int) -> bool:
        """Whether a step is the last of its task."""
        return step in self._ends

    def batch(self, step: int) -> list[Example]:
        """The examples of step 1, 2, ..."""
        number = self.number(step)
        return self._streams[number].batch(step - self._before(number))

    def is_first_iteration(self, step: int) -> bool:
        """Whether a step is the first on its batch."""
        number = self.number(step)
        return self._streams[number].is_first_iteration(step - self._before(number))

    def _before(self, number: int) -> int:
        return self._ends[number - 1] if number else 0
