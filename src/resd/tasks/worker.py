"""One worker as the trainer sees it: its keeper's process, and the pipes to it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from typing import Any

from resd.tasks.worker_process import HEADER
from resd.text import one_line

START_S = 300.0  # to load the task
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


class Worker:
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
        messages: list[Any] = []
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
