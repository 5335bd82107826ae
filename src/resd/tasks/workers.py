"""The trainer's end of the workers (see `worker_process`): dispatch, deadlines, restarts."""

from __future__ import annotations

import os
import pickle
import secrets
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from resd.errors import UserError
from resd.tasks.outcomes import ODDITIES, Verdict, checked
from resd.tasks.registry import TaskSpec
from resd.tasks.worker import START_S, Worker
from resd.tasks.worker_process import HEADER
from resd.text import one_line
from resd.types import Example, Outcome

_END_S = 2.0  # for all workers together to end, before their keepers are killed
_AHEAD_S = 0.02  # work that a worker has waiting, so that it never waits for the trainer
_MOST_AHEAD = 32
_TICK_S = 0.25


class WorkerPool:
    """Worker processes that have loaded one task.

    They start at once, beside whatever the caller does next. Not safe for several threads; but
    another one may set `interrupted`, and `score` gives up with an InterruptedError.

    Args:
        spec: the task.
        workers: how many.
        seconds: most time a response may take.
        fresh: score each response in a fork of its worker.

    Raises:
        UserError: this system cannot fork.
    """

    def __init__(self, spec: TaskSpec, workers: int, seconds: float | None, *, fresh: bool) -> None:
        if not hasattr(os, "fork"):
            raise UserError(
                "worker processes need fork() (Linux or macOS): set rollout.env_mode to thread"
            )
        self._spec, self._seconds = spec, seconds
        task = {"task": spec.task, "args": dict(spec.args), "seed": spec.seed, "fresh": fresh}
        try:
            self._hello = pickle.dumps(task)
        except Exception as error:
            raise UserError(
                f"task_args of {spec.task} cannot be sent to a worker process "
                f"({one_line(str(error))}): set rollout.env_mode to thread"
            ) from None
        self.interrupted = threading.Event()
        self._place = os.getcwd()
        self._ending: list[Worker] = []
        self._pace = 1.0  # seconds a response, of late
        self._workers: list[Worker | None] = [self._started() for _ in range(workers)]

    def score(
        self,
        pairs: Sequence[tuple[Example, str]],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """Evaluate responses; verdicts in order.

        Raises:
            UserError: the task cannot be loaded in a worker, or an example cannot be sent to one.
        """
        # No response can answer for those that wait behind it: it would have to know their tokens.
        tokens = [secrets.randbits(62) for _ in pairs]
        job = _Job(tokens, self._requests(tokens, pairs), progress)
        try:
            with selectors.DefaultSelector() as selector:
                for worker in self._workers:
                    if worker is not None:
                        worker.attend(selector)
                while job.left:
                    if self.interrupted.is_set():
                        raise InterruptedError("the responses are not wanted any more")
                    self._dispatch(job, selector)
                    self._listen(job, selector)
        except BaseException:
            # Answers still on their way must not be taken for those of the next call.
            self.close()
            raise
        return job.found()

    def close(self) -> None:
        """End all workers; they start again when there is something to score."""
        for place, worker in enumerate(self._workers):
            if worker is not None:
                self._end(place, now=bool(worker.waiting) or not worker.ready)
        until = time.monotonic() + _END_S
        for worker in self._ending:
            worker.wait(until)
        self._ending = []

    def _requests(self, tokens: Sequence[int], pairs: Sequence[tuple[Example, str]]) -> list[bytes]:
        requests = []
        last: Example | None = None
        pickled = b""
        for token, (example, response) in zip(tokens, pairs, strict=True):
            if example is not last:
                last = example
                try:
                    pickled = pickle.dumps(example)
                except Exception as error:
                    raise UserError(
                        f"task {self._spec.task}: example {example.id} cannot be sent to a worker "
                        f"process ({one_line(str(error))[:200]}): keep plain data in Example.data, "
                        "or set rollout.env_mode to thread"
                    ) from None
            data = pickle.dumps((token, pickled, response))
            requests.append(HEADER.pack(len(data)) + data)
        return requests

    # -- one turn ------------------------------------------------------------------------------

    def _dispatch(self, job: _Job, selector: selectors.BaseSelector) -> None:
        """Give every worker enough to do, and start those that are missing."""
        ahead = max(1, min(_MOST_AHEAD, int(_AHEAD_S / max(self._pace, 1e-6))))
        for place, worker in enumerate(self._workers):
            if not job.todo:
                return
            if worker is not None and worker.ready and not worker.waiting and worker.gone():
                self._end(place, now=True)  # it died while there was nothing to do
                worker = None
            if worker is None:
                worker = self._workers[place] = self._started()
                worker.attend(selector)
            while worker.ready and job.todo and len(worker.waiting) < ahead:
                worker.ask(job.todo.popleft(), job.requests)
            worker.flush()

    def _listen(self, job: _Job, selector: selectors.BaseSelector) -> None:
        """Read what has come, then see who died and who is late."""
        now = time.monotonic()
        limits = [worker.limit(self._seconds) for worker in self._workers if worker is not None]
        wait = max(0.0, min([_TICK_S, *(limit - now for limit in limits if limit is not None)]))
        heard = {key.data for key, _ in selector.select(wait)}
        for place, worker in enumerate(self._workers):
            if worker is None:
                continue
            if worker in heard:
                worker.flush()
                self._take(worker, job)
            limit = worker.limit(self._seconds)
            if worker.over:
                self._take(worker, job)  # what it said before it ended
                self._lost(place, worker, job, "env_died", worker.said())
            elif limit is not None and time.monotonic() > limit:
                self._lost(
                    place, worker, job, "env_timeout", f"no outcome within {self._seconds:g} s"
                )

    def _take(self, worker: Worker, job: _Job) -> None:
        for message in worker.hear():
            if isinstance(message, dict):
                if "error" in message:
                    raise self._unloadable(str(message["error"]))
                worker.ready, worker.pid = True, int(message["ready"])
                continue
            try:
                token, outcome, reason, detail, oddities, worn = message
                number = worker.waiting[0]
                if token != job.tokens[number]:
                    raise ValueError("not what was asked")
                verdict = _read(outcome, reason, detail, oddities)
            except Exception:  # a response that took the evaluator over writes what it likes
                worker.over = True
                return
            now = time.monotonic()
            self._pace += 0.2 * (now - worker.since - self._pace)
            worker.since = now
            worker.waiting.popleft()
            worker.over = worker.worn = worker.worn or bool(worn)
            job.settle(number, verdict)

    def _lost(self, place: int, worker: Worker, job: _Job, reason: str, detail: str) -> None:
        """A worker is gone: what it was at counts as failed, what it had waiting is asked anew."""
        if not worker.ready:
            slow = reason == "env_timeout"
            raise self._unloadable(f"it was not loaded within {START_S:g} s" if slow else detail)
        if worker.waiting and not worker.worn:
            job.settle(worker.waiting.popleft(), Verdict(None, reason, one_line(detail)))
        job.todo.extendleft(reversed(worker.waiting))
        worker.waiting.clear()
        self._end(place, now=True)

    def _unloadable(self, why: str) -> UserError:
        return UserError(
            f"task {self._spec.task} can be loaded here but not in a worker process: {why}; what "
            "it needs must not live in this process alone, or set rollout.env_mode to thread"
        )

    def _started(self) -> Worker:
        self._ending = [worker for worker in self._ending if not worker.gone()]
        return Worker(self._hello, self._place)

    def _end(self, place: int, *, now: bool) -> None:
        worker = self._workers[place]
        assert worker is not None
        worker.hang_up(now=now)
        self._ending.append(worker)
        self._workers[place] = None


class _Job:
    """The requests of one call: what is left to ask, and what was answered."""

    def __init__(
        self,
        tokens: list[int],
        requests: list[bytes],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.tokens, self.requests = tokens, requests
        self.todo = deque(range(len(requests)))
        self._progress = progress
        self._verdicts: dict[int, Verdict] = {}

    @property
    def left(self) -> int:
        return len(self.requests) - len(self._verdicts)

    def settle(self, number: int, verdict: Verdict) -> None:
        self._verdicts[number] = verdict
        if self._progress is not None:
            self._progress(len(self._verdicts), len(self.requests))

    def found(self) -> list[Verdict]:
        return [self._verdicts[number] for number in range(len(self.requests))]


def _read(outcome: Any, reason: Any, detail: Any, oddities: Any) -> Verdict:
    """A verdict that came through the pipe; any exception if it is none."""
    if outcome is None:
        return Verdict(None, str(reason) or "env_died", one_line(str(detail)))
    plain = checked(Outcome(**outcome)).outcome
    return Verdict(plain, oddities=tuple(name for name in oddities if name in ODDITIES))
