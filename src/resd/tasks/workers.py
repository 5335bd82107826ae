"""The trainer's end of the workers (see `worker_process`): dispatch, deadlines, restarts."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from resd.errors import UserError
from resd.tasks.base import Example, Outcome
from resd.tasks.outcomes import ODDITIES, Verdict, checked
from resd.tasks.registry import TaskSpec
from resd.tasks.worker_process import HEADER
from resd.text import one_line

START_S = 300.0  # to load the task
_END_S = 2.0  # for all workers together to end, before their keepers are killed
_AHEAD_S = 0.02  # work that a worker has waiting, so that it never waits for the trainer
_MOST_AHEAD = 32
_TICK_S = 0.25
_MAX_REPLY = 4 << 20
_NOISE_KEPT = 500
_PROGRAM = (
    "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings['path']; "
    "sys.argv[:] = ['resd']; from resd.tasks.worker_process import main; main(settings)"
)
# One thread each, since the workers are the parallelism; one order of sets and dicts in all.
_VARIABLES = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class WorkerPool:
    """Worker processes that have loaded one task.

    They start at once, beside whatever the caller does next. Not safe for several threads.

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
        self._place = os.getcwd()
        self._ending: list[_Worker] = []
        self._pace = 1.0  # seconds a response, of late
        self._workers: list[_Worker | None] = [self._started() for _ in range(workers)]

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

    def _take(self, worker: _Worker, job: _Job) -> None:
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

    def _lost(self, place: int, worker: _Worker, job: _Job, reason: str, detail: str) -> None:
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

    def _started(self) -> _Worker:
        self._ending = [worker for worker in self._ending if not worker.gone()]
        return _Worker(self._hello, self._place)

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


class _Worker:
    """One worker: its keeper's process and the four pipes to it.

    Attributes:
        ready: it has loaded the task.
        pid: of the evaluator, which leads a process group of its own.
        waiting: numbers asked and not answered; it is at the first of them.
        since: when it began with that one.
        over: nothing more will come from it.
        worn: it ended because too much was left behind in it; nothing was lost.
    """

    def __init__(self, hello: bytes, place: str) -> None:
        self.ready = self.over = self.worn = False
        self.pid = 0
        self.waiting: deque[int] = deque()
        self.since = self._began = time.monotonic()
        self._out = bytearray(HEADER.pack(len(hello)) + hello)
        self._in = bytearray()
        self._noise, self._said = b"", ""
        self._selector: selectors.BaseSelector | None = None
        theirs_requests, self._requests = os.pipe()
        self._replies, theirs_replies = os.pipe()
        self._status, theirs_status = os.pipe()
        self._output, theirs_output = os.pipe()
        theirs = (theirs_requests, theirs_replies, theirs_status)
        settings = {
            "path": [os.path.abspath(entry) for entry in sys.path],
            "parent": os.getpid(),
            **dict(zip(("requests", "replies", "status"), theirs, strict=True)),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=theirs_output,
                stderr=theirs_output,
                pass_fds=theirs,
                env={**_VARIABLES, **os.environ},
                cwd=place,
                start_new_session=True,  # Ctrl-C is the trainer's to handle
            )
        finally:
            for handle in (*theirs, theirs_output):
                os.close(handle)
        self._mine = [self._replies, self._status, self._output]
        for handle in (*self._mine, self._requests):
            os.set_blocking(handle, False)
        self.flush()

    def attend(self, selector: selectors.BaseSelector) -> None:
        """Wake this selector whenever there is something to read."""
        self._selector = selector
        for handle in self._mine:
            selector.register(handle, selectors.EVENT_READ, self)
        self.flush()

    def ask(self, number: int, requests: list[bytes]) -> None:
        """Queue a request; `flush` sends it."""
        if not self.waiting:
            self.since = time.monotonic()
        self.waiting.append(number)
        self._out += requests[number]

    def flush(self) -> None:
        """Write as much as the pipe takes."""
        try:
            while self._out:
                del self._out[: os.write(self._requests, self._out[: 1 << 16])]
        except BlockingIOError:
            pass
        except OSError:  # it is gone, which its status will say
            self._out.clear()
        if self._selector is not None:
            known = self._requests in self._selector.get_map()
            if self._out and not known:
                self._selector.register(self._requests, selectors.EVENT_WRITE, self)
            elif known and not self._out:
                self._selector.unregister(self._requests)

    def hear(self) -> list[Any]:
        """The messages that are there; sets `over` if there will be no more."""
        self._noise = (self._noise + self._drained(self._output))[-_NOISE_KEPT:]
        status = self._drained(self._status)
        self._said += status.decode()
        self._in += self._drained(self._replies)
        self.over = self.over or bool(status) or self._process.poll() is not None
        messages = []
        while len(self._in) >= HEADER.size:
            (length,) = HEADER.unpack(self._in[: HEADER.size])
            if length > _MAX_REPLY:
                messages.append(None)
                self._in.clear()
            if len(self._in) < HEADER.size + length:
                break
            data = bytes(self._in[HEADER.size : HEADER.size + length])
            del self._in[: HEADER.size + length]
            try:
                messages.append(json.loads(data))
            except ValueError:
                messages.append(None)
        return messages

    def _drained(self, handle: int) -> bytes:
        found = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(handle, 1 << 16):
                found += data
                if len(found) > _MAX_REPLY:
                    break
            else:  # closed at the other end: do not wake up for it any more
                if self._selector is not None and handle in self._selector.get_map():
                    self._selector.unregister(handle)
        return found

    def limit(self, seconds: float | None) -> float | None:
        """When it will be late, on the monotonic clock."""
        if not self.ready:
            return self._began + START_S
        return None if seconds is None or not self.waiting else self.since + seconds

    def said(self) -> str:
        """How it ended, with the last line that it printed."""
        lines = self._noise.decode("utf-8", "replace").strip().splitlines()
        how = self._said or "its process broke the connection"
        return f"{how}; it last printed {one_line(lines[-1])!r:.200}" if lines else how

    def gone(self) -> bool:
        """Whether its keeper has ended."""
        return self._process.poll() is not None

    def hang_up(self, *, now: bool) -> None:
        """Close the connection, upon which the keeper ends the evaluator; `now` without grace."""
        if now and self.pid and not self.gone():
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        for handle in (*self._mine, self._requests):
            if self._selector is not None:
                with contextlib.suppress(KeyError, ValueError, RuntimeError):
                    self._selector.unregister(handle)
            os.close(handle)

    def wait(self, until: float) -> None:
        """Wait for the keeper, and kill it if it is not gone in time."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _read(outcome: Any, reason: Any, detail: Any, oddities: Any) -> Verdict:
    """A verdict that came through the pipe; any exception if it is none."""
    if outcome is None:
        return Verdict(None, str(reason) or "env_died", one_line(str(detail)))
    plain = checked(Outcome(**outcome)).outcome
    return Verdict(plain, oddities=tuple(name for name in oddities if name in ODDITIES))
