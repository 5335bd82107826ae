"""One door to `evaluate()`: in worker processes or in threads, with a time limit each response."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from resd.errors import UserError
from resd.tasks.base import Environment
from resd.tasks.copies import shared
from resd.tasks.outcomes import ODDITIES, Verdict, judge
from resd.tasks.registry import TaskSpec
from resd.tasks.stream import Pair as Pair
from resd.tasks.stream import Scores as Scores
from resd.tasks.stream import ScoringStream
from resd.tasks.workers import WorkerPool

Mode = Literal["process", "fresh", "thread"]
Progress = Callable[[int, int], None]

_TICK_S = 0.05


class Scorer:
    """Evaluates responses; what a response makes the environment do costs that response alone.

    `process`: workers that load the task themselves and live on. What belongs to a worker's whole
    process (directory, umask, variables, signal handlers, standard streams, torch's default dtype
    and grad mode) is put back after every response, and the global generators of random, numpy and
    torch are seeded by (seed, example, response) before; what the environment keeps to itself lives
    on, as caches must, until the worker ends: by dying, by the time limit, with many threads or a
    gigabyte left behind, or by failing three times in a row after it had worked.
    `fresh`: the same workers, but each response is scored in a fork of one that has evaluated
    nothing yet. Nothing at all passes from one response to the next, caches included.
    `thread`: daemon threads in this process. Nothing is put back; a hang is left behind.

    The environment never gets the caller's example, but a copy.

    Args:
        environment: the task, for threads.
        spec: what workers load; without it there are only threads.
        workers: processes or threads.
        mode: see above.
        seconds: most time a response may take; None for no limit. One thread without a limit is the
            caller's own, in which a KeyboardInterrupt is taken for the user's.

    Raises:
        UserError: there is no such mode, or the system has no fork().
    """

    def __init__(
        self,
        environment: Environment,
        spec: TaskSpec | None = None,
        *,
        workers: int = 1,
        mode: Mode = "process",
        seconds: float | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise UserError(f"env_mode must be one of {', '.join(get_args(Mode))}, found {mode!r}")
        self.environment, self._workers, self._seconds = environment, max(1, workers), seconds
        self._said: set[str] = set()
        self._pool: WorkerPool | None = None
        if spec is not None and mode != "thread":
            self._pool = WorkerPool(spec, self._workers, seconds, fresh=mode == "fresh")

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, pairs: Sequence[Pair], progress: Progress | None = None) -> Scores:
        """Evaluate responses.

        Args:
            pairs: example and response.
            progress: called in this thread with the number of responses done, and of all.

        Raises:
            UserError: the task cannot be loaded in a worker, or an example cannot be sent to one.
        """
        if self._pool is not None:
            verdicts = self._pool.score(pairs, progress)
        elif self._workers == 1 and self._seconds is None:
            verdicts = _here(self.environment, pairs, progress)
        else:
            threads = _Threads(self.environment, pairs, self._seconds)
            verdicts = threads.run(self._workers, progress)
        return self._summed(verdicts)

    def stream(self) -> ScoringStream:
        """Evaluate responses as they come; use it in a `with`, one at a time.

        With worker processes they are evaluated beside whatever the caller does meanwhile. In this
        process all are evaluated at the end: threads would only take turns with the caller.
        """
        return ScoringStream(self.score, None if self._pool is None else self._pool.interrupted)

    def close(self) -> None:
        """End the workers; within three seconds, whatever they do."""
        if self._pool is not None:
            self._pool.close()

    def _summed(self, verdicts: Sequence[Verdict]) -> Scores:
        scores = Scores([verdict.outcome for verdict in verdicts])
        for verdict in verdicts:
            scores.counts.update(verdict.oddities)
            failed = verdict.outcome is None
            scores.counts[verdict.reason] += failed
            scores.failures.append(f"{verdict.reason}: {verdict.detail}" if failed else "")
        for oddity, text in ODDITIES.items():
            if scores.counts[oddity] and oddity not in self._said:
                self._said.add(oddity)
                scores.warnings.append(f"{text} ({oddity}, counted)")
        scores.counts = +scores.counts
        return scores


def score(environment: Environment, pairs: Sequence[Pair], workers: int = 1) -> Scores:
    """Evaluate responses in threads without a time limit; see `Scorer`."""
    return Scorer(environment, workers=workers, mode="thread").score(pairs)


def _here(
    environment: Environment, pairs: Sequence[Pair], progress: Progress | None
) -> list[Verdict]:
    verdicts = []
    for copies, response in shared(pairs):
        verdicts.append(judge(environment, copies.make(), response, interruptible=True))
        if progress is not None:
            progress(len(verdicts), len(pairs))
    return verdicts


class _Threads:
    """Evaluation in daemon threads; one that takes too long is left behind and replaced."""

    def __init__(
        self, environment: Environment, pairs: Sequence[Pair], seconds: float | None
    ) -> None:
        self._environment, self._seconds = environment, seconds
        self._shared = shared(pairs)
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(pairs)):
            self._todo.put(number)
        self._done: queue.SimpleQueue[tuple[int, Verdict]] = queue.SimpleQueue()
        self._running: dict[int, float] = {}  # number: since when
        self._given_up: set[int] = set()

    def run(self, workers: int, progress: Progress | None) -> list[Verdict]:
        total = len(self._shared)
        found: dict[int, Verdict] = {}
        for _ in range(min(workers, total)):
            self._start()
        while len(found) < total:
            try:
                number, verdict = self._done.get(timeout=_TICK_S)
            except queue.Empty:
                found.update(self._overdue())
            else:
                found[number] = verdict
            if progress is not None:
                progress(len(found), total)
        return [found[number] for number in range(total)]

    def _start(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="resd evaluate").start()

    def _work(self) -> None:
        while True:
            try:
                number = self._todo.get_nowait()
            except queue.Empty:
                return
            copies, response = self._shared[number]
            self._running[number] = time.monotonic()
            verdict = judge(self._environment, copies.make(), response)
            if number in self._given_up:
                return
            del self._running[number]
            self._done.put((number, verdict))

    def _overdue(self) -> dict[int, Verdict]:
        late: dict[int, Verdict] = {}
        if self._seconds is not None:
            for number, since in list(self._running.items()):
                if number not in self._given_up and time.monotonic() - since > self._seconds:
                    self._given_up.add(number)
                    late[number] = Verdict(
                        None, "env_timeout", f"no outcome within {self._seconds:g} s"
                    )
                    self._start()
        return late
