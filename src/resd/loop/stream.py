"""The stream protocol: every example in one batch only, K inner iterations a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence

from resd.config import TrainConfig
from resd.runs.seeds import derive
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
