"""The program of a worker: a keeper that never runs task code, and below it the evaluator.

The keeper ends the evaluator, and all that it started, when the trainer hangs up; so nothing lives
on after a trainer that was killed, whatever the environment is doing. Requests are pickles from the
trainer; answers are JSON, so that a response which takes the evaluator over cannot reach further.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import pickle
import random
import select
import signal
import struct
import sys
import threading
import time
from typing import Any, Final, NoReturn

from resd.errors import UserError
from resd.tasks.base import Environment
from resd.tasks.outcomes import Verdict, judge
from resd.tasks.registry import describe_error, load_environment
from resd.text import one_line
from resd.types import Example

HEADER: Final = struct.Struct(">Q")
_PDEATHSIG, _SUBREAPER = 1, 36
_GRACE_S = 1.0  # for an idle evaluator to run its exit handlers
_LEAKED_THREADS = 16
_LEAKED_BYTES = 1 << 30
_FAILURES_IN_A_ROW = 3
_HANDLERS = [
    getattr(signal, f"SIG{name}")
    for name in ("INT", "TERM", "ALRM", "HUP", "CHLD", "PIPE", "USR1", "USR2", "PROF", "VTALRM")
]


def main(settings: dict[str, Any]) -> NoReturn:
    """Become the keeper of an evaluator, and end with it.

    Args:
        settings: `requests`, `replies` and `status`: file descriptors; `parent`: the trainer's pid.
    """
    _prctl(_PDEATHSIG, signal.SIGTERM)
    _prctl(_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for handle in (woken, wake, settings["status"]):
            os.close(handle)
        os.setpgid(0, 0)
        _prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(0)
        evaluator(settings["requests"], settings["replies"])
        sys.exit(0)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    os.close(settings["replies"])
    status = _watch(child, settings, woken)
    _kill_all(child)
    with contextlib.suppress(OSError):
        os.write(settings["status"], said_of(status).encode())
    os._exit(0)


def said_of(status: int | None) -> str:
    """How a process ended, in words; None is a process that was ended from outside."""
    if status is None:
        return "it was stopped"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended by itself with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it was ended by signal {-code}"


def _watch(child: int, settings: dict[str, Any], woken: int) -> int | None:
    """Wait for the evaluator's end or the trainer's."""
    poll = select.poll()
    poll.register(settings["requests"], 0)  # a hang-up alone: the requests are not ours to read
    poll.register(woken, select.POLLIN)
    until: float | None = None
    while until is None or time.monotonic() < until:
        for handle, _ in poll.poll(None if until is None else 50):
            if handle == woken:
                os.read(woken, 4096)
            elif until is None:
                until = time.monotonic() + _GRACE_S
                poll.unregister(handle)
        if until is None and os.getppid() != settings["parent"]:
            until = time.monotonic() + _GRACE_S
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == child:
                    return status
                if pid == 0:
                    break
    return None


def _kill_all(child: int) -> None:
    """Kill the evaluator's group, and on Linux what left it."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    for _ in range(100):
        try:
            with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
                left = [int(pid) for pid in file.read().split()]
        except OSError:
            return
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# -- the evaluator -------------------------------------------------------------------------------


def evaluator(requests: int, replies: int) -> None:
    """Load the task, say so, then answer requests until there are no more.

    Args:
        requests: read from; first the task (a dict), then (token, pickled example, response).
        replies: written to; JSON.
    """
    # Better this process than the trainer, where memory runs out.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    os.set_inheritable(requests, False)
    os.set_inheritable(replies, False)
    hello = receive(requests)
    if hello is None:
        return
    task = pickle.loads(hello)
    try:
        environment = load_environment(task["task"], task["args"], task["seed"])
    except UserError as error:
        return send(replies, {"error": one_line(str(error))})
    except BaseException as error:
        return send(replies, {"error": one_line(describe_error(error))})
    send(replies, {"ready": os.getpid()})
    serve = _serve_forked if task["fresh"] else _serve
    serve(environment, task["seed"], requests, replies)


def _serve(environment: Environment, seed: int, requests: int, replies: int) -> None:
    """Answer in this process, which is put in order before every response."""
    order = _Order(seed)
    here = os.getpid()
    threads, memory, in_a_row, succeeded = threading.active_count(), 0, 0, False
    while (request := receive(requests)) is not None:
        token, answer = _answer(environment, order, request)
        if os.getpid() != here:
            os._exit(0)  # the environment forked, and this is its child
        order.restore()
        memory = memory or _resident()
        failed = answer.outcome is None
        in_a_row = in_a_row + 1 if failed else 0
        succeeded = succeeded or not failed
        worn = (
            threading.active_count() > threads + _LEAKED_THREADS
            or _resident() > memory + _LEAKED_BYTES
            or (succeeded and in_a_row >= _FAILURES_IN_A_ROW)
        )
        _reply(replies, token, answer, worn)
        if worn:
            os._exit(0)


def _serve_forked(environment: Environment, seed: int, requests: int, replies: int) -> None:
    """Answer each request in a fork of this process, in which nothing has been evaluated."""
    order = _Order(seed)
    while (request := receive(requests)) is not None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            here = os.getpid()
            _prctl(_PDEATHSIG, signal.SIGKILL)
            token, answer = _answer(environment, order, request)
            if os.getpid() == here:
                _reply(replies, token, answer, False)
                os.write(writing, b"1")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.set_blocking(reading, False)  # a process that it left behind may hold the other end
        try:
            answered = os.read(reading, 1)
        except BlockingIOError:
            answered = b""
        os.close(reading)
        os.close(writing)
        if not answered:
            token = pickle.loads(request)[0]
            _reply(replies, token, Verdict(None, "env_died", said_of(status)), False)


def _answer(environment: Environment, order: _Order, request: bytes) -> tuple[int, Verdict]:
    token, pickled, response = pickle.loads(request)
    try:
        example: Example = pickle.loads(pickled)
    except BaseException as error:
        text = f"the example cannot be unpickled in a worker: {describe_error(error)}"
        return token, Verdict(None, "env_raised", one_line(text))
    order.seed(example.id, response)
    return token, judge(environment, example, response)


def _reply(replies: int, token: int, verdict: Verdict, worn: bool) -> None:
    outcome = None if verdict.outcome is None else vars(verdict.outcome)
    send(replies, [token, outcome, verdict.reason, verdict.detail, verdict.oddities, worn])


class _Order:
    """What belongs to the whole process, as the environment left it when it was made."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._here = os.open(".", os.O_RDONLY)
        self._umask = os.umask(0o77)
        os.umask(self._umask)
        self._environ = _variables().copy()
        self._handlers = {number: signal.getsignal(number) for number in _HANDLERS}
        self._recursion = sys.getrecursionlimit()
        self._streams: dict[str, Any] = {n: getattr(sys, n) for n in ("stdin", "stdout", "stderr")}
        self._handles = [os.dup(number) for number in range(3)]
        self._torch = (
            (torch.get_default_dtype(), torch.is_grad_enabled())
            if (torch := _loaded("torch", "get_default_dtype"))
            else None
        )

    def restore(self) -> None:
        """Put it back, whatever the last response did."""
        os.fchdir(self._here)
        os.umask(self._umask)
        if _variables() != self._environ:
            os.environ.clear()
            os.environ.update({os.fsdecode(k): os.fsdecode(v) for k, v in self._environ.items()})
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.setrecursionlimit(self._recursion)
        for number, kept in enumerate(self._handles):
            os.dup2(kept, number)
        for number, (name, stream) in enumerate(self._streams.items()):
            if getattr(stream, "closed", True):
                mode = "w" if number else "r"
                stream = open(number, mode, closefd=False, errors="replace")  # noqa: SIM115
                self._streams[name] = stream
            setattr(sys, name, stream)
        if torch := _loaded("torch", "get_default_dtype"):
            dtype, grad = self._torch or (torch.float32, True)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)

    def seed(self, example: str, response: str) -> None:
        """Make the global generators a function of seed, example and response alone."""
        text = f"{self._seed}\n{example}\n{response}".encode("utf-8", "replace")
        number = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
        random.seed(number)
        if numpy := _loaded("numpy", "random"):
            numpy.random.seed(number)
        if torch := _loaded("torch", "default_generator"):
            torch.default_generator.manual_seed(number)


def _loaded(name: str, member: str) -> Any:
    """A module that the environment has imported, if it is whole."""
    module = sys.modules.get(name)
    return module if hasattr(module, member) else None


def _variables() -> dict[bytes, bytes]:
    """The table below os.environ, which compares a hundred times faster."""
    table: dict[bytes, bytes] = vars(os.environ)["_data"]
    return table


def _resident() -> int:
    """Bytes of memory in use; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


# -- frames --------------------------------------------------------------------------------------


def send(handle: int, message: Any) -> None:
    """Write a message as JSON, with its length before it."""
    data = json.dumps(message, allow_nan=False).encode()
    view = memoryview(HEADER.pack(len(data)) + data)
    while view:
        view = view[os.write(handle, view) :]


def receive(handle: int) -> bytes | None:
    """The next message; None if there are no more."""
    header = _read(handle, HEADER.size)
    return None if header is None else _read(handle, HEADER.unpack(header)[0])


def _read(handle: int, length: int) -> bytes | None:
    parts = []
    while length:
        data = os.read(handle, min(length, 1 << 20))
        if not data:
            return None
        parts.append(data)
        length -= len(data)
    return b"".join(parts)
