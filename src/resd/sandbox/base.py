"""The seam between a grader and the place where model-written Python runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["strict", "none"]
Failure = Literal[
    "syntax",  # the source does not compile
    "exception",  # the module or a call raised
    "no_function",  # the module defines no such function
    "bad_value",  # a call returned something that is not plain, finite JSON
    "timeout",  # wall clock or CPU time ran out
    "memory",  # the memory limit
    "killed",  # ended by a signal, or for a forbidden system call
    "exit",  # the process ended before it had answered
    "output",  # more output than allowed
    "protocol",  # what came back is no answer of the runner
]


@dataclass(frozen=True)
class Limits:
    """What one evaluation may use.

    Attributes:
        seconds: wall clock, for the module and all calls together.
        cpu_seconds: CPU time.
        memory_mb: address space, in MiB.
        output_bytes: of the answer, and of stdout and stderr each.
        source_bytes: of the program's text.
    """

    seconds: float = 20.0
    cpu_seconds: int = 5
    memory_mb: int = 512
    output_bytes: int = 65536
    source_bytes: int = 262144


@dataclass(frozen=True)
class CallResult:
    """What came of one evaluation.

    Attributes:
        values: one plain JSON value a call, validated by the caller's process; None unless every
            call returned one.
        failure: why there are no values.
        message: the failure in words, for feedback: type and text of an exception, say. One line,
            bounded, printable.
        line: line of the candidate's source where it failed (1 is the first).
        call: index of the call that failed; None if the module itself did.
        output: what the candidate printed, bounded, printable.
        seconds: wall clock.
    """

    values: tuple[Any, ...] | None
    failure: Failure | None = None
    message: str = ""
    line: int | None = None
    call: int | None = None
    output: str = ""
    seconds: float = 0.0


class Sandbox(Protocol):
    """Runs model-written Python in a process of its own. Safe to call from several threads."""

    def call(
        self,
        source: str,
        function: str,
        arguments: Sequence[Sequence[Any]],
        limits: Limits | None = None,
    ) -> CallResult:
        """Execute `source` as a module, then call `function` once for each list of arguments.

        All calls run in one fresh process. Never raises for anything that the source does; raises
        SandboxUnavailable if the process could not be made ready for it.

        Args:
            source: the program's text.
            function: name of a function that it defines.
            arguments: positional arguments of each call, plain JSON values.
            limits: by default the sandbox's own.
        """
        ...
