"""The parent's side: start the runner, feed it, read it with a deadline, believe nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, get_args

from resd.errors import UserError
from resd.sandbox.base import CallResult, Failure, Kind, Limits, Sandbox
from resd.text import one_line, printable

_RUNNER = Path(__file__).with_name("runner.py")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")
_LOCKED = b"!"
# The others are this side's to find.
_SAID_BY_RUNNER = ("syntax", "exception", "no_function", "bad_value", "memory", "exit", "protocol")
_MAX_INT = 2**53
_MAX_DEPTH = 60
_SHOWN = 500

# Tries what must not work; returns the names of what did.
_PROBE = """
import os, socket
def attempts():
    done = []
    for name, attempt in {
        "read": lambda: open("/proc/self/status").read(),
        "list": lambda: os.listdir("/"),
        "write": lambda: open("probe", "w"),
        "socket": lambda: socket.socket(),
        "signal": lambda: os.kill(os.getpid(), 0),
        "fork": lambda: os._exit(0) if os.fork() == 0 else None,
    }.items():
        try:
            attempt()
            done.append(name)
        except OSError:
            pass
    return done
"""


class SandboxUnavailable(UserError):
    """This machine cannot protect itself from model-written code."""


def make_sandbox(kind: Kind = "strict", limits: Limits | None = None) -> Sandbox:
    """A sandbox; `strict` is tried out once in a process before it is trusted.

    Args:
        kind: `strict`, or `none`: a process of its own with limits, but no protection.
        limits: of each call.

    Raises:
        SandboxUnavailable: the machine lacks what `strict` needs.
        UserError: there is no such kind.
    """
    if kind not in get_args(Kind):
        raise UserError(f"sandbox must be strict or none, found {kind!r:.80}")
    if kind == "strict":
        missing = _probe()
        if missing:
            raise SandboxUnavailable(
                f"this machine cannot run model-written code safely: it lacks {missing}; run on a "
                "machine that has it, or, if the code may do what it likes here, set "
                "task_args.sandbox to none"
            )
    return ProcessSandbox(kind, limits or Limits())


@cache
def _probe() -> str:
    """What is missing; empty if the sandbox holds."""
    if not hasattr(os, "killpg"):
        return "process groups (Linux)"
    try:
        result = ProcessSandbox("strict", Limits()).call(_PROBE, "attempts", [[]])
    except SandboxUnavailable as error:
        return str(error)
    if result.values == ([],):
        return ""
    if result.values:
        return f"a sandbox that holds: a program could {', '.join(map(str, result.values[0]))}"
    return result.message or f"a sandbox that works ({result.failure})"


class ProcessSandbox:
    """A fresh Python process a call (see `runner`)."""

    def __init__(self, kind: Kind, limits: Limits) -> None:
        self._kind: Kind = kind
        self._limits = limits

    def call(
        self,
        source: str,
        function: str,
        arguments: Sequence[Sequence[Any]],
        limits: Limits | None = None,
    ) -> CallResult:
        """See `Sandbox.call`.

        Raises:
            SandboxUnavailable: the process could not be locked; no part of `source` has run.
        """
        limits = limits or self._limits
        # Lone surrogates cannot be compiled, nor encoded.
        source = source.encode("utf-8", "replace").decode()
        if len(source.encode()) > limits.source_bytes:
            return CallResult(None, "syntax", f"the program is over {limits.source_bytes} bytes")
        wanted = {"source": source, "function": function, "arguments": [*map(list, arguments)]}
        request = json.dumps(wanted).encode()
        with tempfile.TemporaryDirectory(prefix="resd-") as folder:
            return self._run(request, len(arguments), limits, folder)

    def _run(self, request: bytes, calls: int, limits: Limits, folder: str) -> CallResult:
        began = time.monotonic()
        reading, writing = os.pipe()
        numbers = (
            writing,
            self._kind,
            limits.cpu_seconds,
            limits.memory_mb,
            os.getpid(),
        )
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(_RUNNER), *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writing,),
                env={},
                cwd=folder,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with open(reading, "rb", buffering=0) as answers:
            try:
                exchange = _Exchange(process, answers, request, limits)
                ended = exchange.until(began + limits.seconds)
                if ended == "answered":
                    ended = _wait(process, began + limits.seconds)
            finally:
                _end(process)
        seconds = time.monotonic() - began
        printed = exchange.kept["stdout"] + exchange.kept["stderr"]
        output = _ADDRESS.sub("0x...", printable(printed.decode("utf-8", "replace")))
        if not exchange.locked:
            raise SandboxUnavailable(_not_locked(exchange, process.returncode))
        result = _judge(ended, process.returncode, bytes(exchange.kept["answer"]), calls, limits)
        return CallResult(*result, output=output[: limits.output_bytes], seconds=seconds)


class _Exchange:
    """Feeds and drains the child's pipes; nothing grows beyond its limit."""

    def __init__(
        self, process: subprocess.Popen[bytes], answers: IO[bytes], request: bytes, limits: Limits
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.kept = {name: bytearray() for name in ("stdout", "stderr", "answer")}
        self._limit = limits.output_bytes
        self._request = memoryview(request)
        self._stdin = process.stdin
        self._selector = selectors.DefaultSelector()
        self.locked = False
        os.set_blocking(process.stdin.fileno(), False)
        for file, name in (
            (process.stdout, "stdout"),
            (process.stderr, "stderr"),
            (answers, "answer"),
        ):
            self._selector.register(file, selectors.EVENT_READ, name)
        for key in list(self._selector.get_map().values()):
            os.set_blocking(key.fd, False)

    def until(self, deadline: float) -> str:
        """How it ended: `answered` (all pipes closed), `timeout` or `output`."""
        with self._selector as selector:
            while any(key.data != "stdin" for key in selector.get_map().values()):
                left = deadline - time.monotonic()
                if left <= 0:
                    return "timeout"
                for key, _ in selector.select(left):
                    if key.data == "stdin":
                        self._feed()
                    elif not self._drain(key.fd, key.data):
                        return "output"
        return "answered"

    def _feed(self) -> None:
        try:
            self._request = self._request[os.write(self._stdin.fileno(), self._request[:65536]) :]
        except BlockingIOError:
            return
        except OSError:  # the child is gone
            self._request = self._request[:0]
        if not self._request:
            self._selector.unregister(self._stdin)
            with contextlib.suppress(OSError):
                self._stdin.close()

    def _drain(self, handle: int, name: str) -> bool:
        """Read once; False if the child has written more than it may."""
        try:
            data = os.read(handle, 65536)
        except BlockingIOError:
            return True
        if not data:
            self._selector.unregister(handle)
        if name == "answer" and not self.locked and data[:1] == _LOCKED:
            # Only now is there a candidate: what it writes can be no word about the lock.
            self.locked, data = True, data[1:]
            self._selector.register(self._stdin, selectors.EVENT_WRITE, "stdin")
        self.kept[name] += data
        return len(self.kept[name]) <= self._limit


def _wait(process: subprocess.Popen[bytes], deadline: float) -> str:
    """Let a child that has closed its pipes end by itself, so that its exit code is its own."""
    if not hasattr(os, "waitid"):  # macOS
        return "answered"
    try:
        # waitid leaves it unreaped: its group's number stays its own until it is killed.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                return "timeout"
            time.sleep(0.0005)
    except ChildProcessError:
        return "answered"
    return "answered"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group, reap the child, close the pipes."""
    # Also after it has ended by itself: not reaped yet, so the number is still its own.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for file in (process.stdin, process.stdout, process.stderr):
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _not_locked(exchange: _Exchange, code: int) -> str:
    """What the runner said is missing, before it was given anything to run."""
    try:
        return one_line(json.loads(exchange.kept["answer"])["missing"])
    except (ValueError, TypeError, KeyError):
        printed = one_line(exchange.kept["stderr"].decode("utf-8", "replace"))[-_SHOWN:]
        return f"a sandbox process that starts (exit code {code}{', ' * bool(printed)}{printed})"


Verdict = tuple["tuple[Any, ...] | None", "Failure | None", str, "int | None", "int | None"]


def _judge(ended: str, code: int, answer: bytes, calls: int, limits: Limits) -> Verdict:
    """The validated answer, or why there is none."""
    # The same words whichever ran out: which one it was depends on how busy the machine is.
    late = f"no answer within {limits.cpu_seconds} s of CPU time and {limits.seconds:g} s in all"
    if ended == "timeout":
        return None, "timeout", late, None, None
    if ended == "output":
        return None, "output", f"more than {limits.output_bytes} bytes of output", None, None
    if code in (-signal.SIGXCPU, -signal.SIGKILL) and not answer:
        return None, "timeout", late, None, None
    if code < 0:
        return None, "killed", f"the process was ended by signal {-code}", None, None
    if not answer:
        return None, "exit", "the process ended before it had answered", None, None
    try:
        found = json.loads(answer, parse_constant=_refuse)
        return _validated(found, calls)
    except (ValueError, RecursionError, TypeError):
        return None, "protocol", "what came back is no answer", None, None


def _validated(found: Any, calls: int) -> Verdict:
    """Exactly what the runner sends, or ValueError."""
    if type(found) is dict and set(found) == {"values"}:
        values = found["values"]
        if type(values) is not list or len(values) != calls or not _is_plain(values, 0):
            raise ValueError
        return tuple(values), None, "", None, None
    if type(found) is not dict or set(found) != {"failure", "message", "line", "call"}:
        raise ValueError
    failure, message = found["failure"], found["message"]
    if failure not in _SAID_BY_RUNNER or type(message) is not str:
        raise ValueError
    places = [found["line"], found["call"]]
    if any(p is not None and not (type(p) is int and 0 <= p < 10**9) for p in places):
        raise ValueError
    return None, failure, _printable(message)[:_SHOWN], places[0], places[1]


def _is_plain(value: Any, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -_MAX_INT <= value <= _MAX_INT
    if isinstance(value, list):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item, depth + 1) for item in value.values())
    return True


def _refuse(name: str) -> None:
    raise ValueError(name)


def _printable(text: str) -> str:
    """One line without memory addresses, which differ from run to run."""
    return _ADDRESS.sub("0x...", one_line(text))
