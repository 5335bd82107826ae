"""What the processes share that hold another library: their protocol, and forks that score.

JSON lines: first comes what the server has to offer, or `{"error": words}` and the end. Then to
each line on stdin the reply is one line.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

WALL_SECONDS = 30
MEMORY_BYTES = 2 * 1024**3
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(Exception):
    """Something that the user must change."""


class Forbidden(BaseException):
    """What scoring an answer may not do; no `except Exception` of a scorer hides it."""


class Server(Protocol):
    """What a process offers, and how it answers."""

    @property
    def offer(self) -> object:
        """The first line."""
        ...

    def answer(self, question: Any) -> object:
        """The reply to a line."""
        ...


def serve(make: Callable[..., Server]) -> None:
    """Serve until stdin ends; the arguments of `make` are the program's JSON argument."""
    # Libraries print; only the protocol may reach the pipe.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def reply(value: object) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        server = make(**json.loads(sys.argv[1]))
    except Refused as error:
        reply({"error": str(error)})
        return
    reply(server.offer)
    for line in sys.stdin:
        reply(server.answer(json.loads(line)))


def in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What `work` returns in a fork, which ends with it; None if the fork died of a limit."""
    result, sent = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(sent, "wb") as pipe:
                pipe.write(json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(sent)
    with os.fdopen(result, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told) if told else None


def limit_process(cpu_seconds: int, memory_bytes: int = MEMORY_BYTES) -> None:
    """Limit this process: it dies when it has used its time; more memory is refused."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WALL_SECONDS)


class Guard:
    """Audit hook: what scores an answer writes no file; a library's own adds what else it may not.

    Attributes:
        refused: what was refused first, in words.
    """

    def __init__(self) -> None:
        self.refused = ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Let an event pass, or raise `Forbidden`."""
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
            self.refuse("it writes a file")
        self.check(event, args)

    def check(self, event: str, args: tuple[Any, ...]) -> None:
        """Refuse what else an answer may not do."""

    def refuse(self, words: str) -> None:
        """Raise `Forbidden`, and remember why."""
        self.refused = self.refused or words
        raise Forbidden(words)


def described(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
