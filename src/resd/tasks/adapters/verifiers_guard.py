"""What scoring a response may do: compute, within limits.

A reward function is the environment's own code, but what it does with a response is open: it may
evaluate it, or hand it to a model on the network, whose verdict no run can repeat.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from resd.tasks.adapters.library_server import MEMORY_BYTES, Forbidden, limit_process, writes

CPU_SECONDS = 10
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg")
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen")


class Guard:
    """Audit hook: no network, no programs, no files written.

    Attributes:
        refused: what was refused first, in words.
    """

    def __init__(self) -> None:
        self.refused = ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Let an event pass, or raise `Forbidden`."""
        if event in _NETWORK:
            self._refuse("it reaches for the network (for a judge or a sandbox?)")
        elif event in _PROCESSES:
            self._refuse("it starts a program")
        elif writes(event, args):
            self._refuse("it writes a file")

    def _refuse(self, words: str) -> None:
        self.refused = self.refused or words
        raise Forbidden(words)


def confine() -> None:
    """Limit this process, beyond the memory that the tasks take already."""
    sys.dont_write_bytecode = True  # of a module that is imported late
    status = Path("/proc/self/status")
    held = 0
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        held = int(lines["VmData"].split()[0]) * 1024
    limit_process(CPU_SECONDS, held + MEMORY_BYTES)
