"""Responses evaluated as they come, beside the generation of those that follow."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from resd.types import Example, Outcome

Pair = tuple[Example, str]


@dataclass
class Scores:
    """What came of a list of responses.

    Attributes:
        outcomes: in order, None where the environment failed.
        counts: failures and oddities by kind (`env_raised`, `env_timeout`, `env_died`, ...).
        failures: in order, kind and detail of each failure in one line; empty where there is none.
        warnings: oddities in words, each only the first time that a scorer meets it.
    """

    outcomes: list[Outcome | None] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def first_failure(self) -> str:
        """The first failure in one line; empty if there was none."""
        return next(filter(None, self.failures), "")


class ScoringStream:
    """Takes responses one by one, and gives their scores in order; see `Scorer.stream`.

    Args:
        score: evaluates a list of responses.
        interrupted: makes `score` give up while it is set; with it, `score` is called in a thread
            of the stream's own, and without it in `finish`.

    Attributes:
        early: whether a response that is added is evaluated at once.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Pair]], Scores],
        interrupted: threading.Event | None = None,
    ) -> None:
        self.early = interrupted is not None
        self._score, self._interrupted = score, interrupted
        self._number = 0
        self._todo: queue.SimpleQueue[tuple[int, Pair] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[list[int], Scores] | BaseException] = (
            queue.SimpleQueue()
        )
        self._given_up = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="resd score")

    def __enter__(self) -> ScoringStream:
        if self.early:
            self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait until nothing is evaluated any more; after an error, what is left is given up."""
        if self._interrupted is None:
            return
        self._given_up = kind is not None
        if self._given_up:
            self._interrupted.set()
        self._todo.put(None)
        self._thread.join()
        self._interrupted.clear()

    def add(self, number: int, pair: Pair) -> None:
        """Hand in a response.

        Args:
            number: its place among all, from 0 on; any order.
            pair: example and response.
        """
        self._number += 1
        self._todo.put((number, pair))

    def finish(self) -> Scores:
        """The scores of everything handed in, in order; waits for what is still evaluated.

        Raises:
            UserError: as `Scorer.score`.
        """
        if not self.early:
            taken = sorted((self._taken() for _ in range(self._number)), key=lambda item: item[0])
            return self._score([pair for _, pair in taken])
        parts: dict[int, tuple[Outcome | None, str]] = {}
        total = Scores()
        while len(parts) < self._number:
            found = self._found.get()
            if isinstance(found, BaseException):
                raise found
            numbers, scores = found
            for place, number in enumerate(numbers):
                parts[number] = scores.outcomes[place], scores.failures[place]
            total.counts += scores.counts
            total.warnings += scores.warnings
        total.outcomes = [parts[number][0] for number in range(self._number)]
        total.failures = [parts[number][1] for number in range(self._number)]
        return total

    def _taken(self) -> tuple[int, Pair]:
        item = self._todo.get_nowait()
        assert item is not None
        return item

    def _serve(self) -> None:
        """Evaluate what comes until there is no more."""
        try:
            while (batch := self._waiting()) and not self._given_up:
                numbers = [number for number, _ in batch]
                self._found.put((numbers, self._score([pair for _, pair in batch])))
        except BaseException as error:  # it is the caller's, who waits for it
            self._found.put(error)

    def _waiting(self) -> list[tuple[int, Pair]]:
        """All that is there by now, at least one; empty at the end."""
        batch = []
        item = self._todo.get()
        while item is not None:
            batch.append(item)
            try:
                item = self._todo.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._todo.put(None)  # the end is met once more
        return batch
