"""What scoring a response may do: compute, within limits.

A reward function is the environment's own code, but what it does with a response is open: it may
evaluate it, or hand it to a model on the network, whose verdict no run can repeat.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from resd.tasks.adapters import library_server

CPU_SECONDS = 10
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg")
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen")


class Guard(library_server.Guard):
    """Audit hook: no network, no programs, no files written."""

    def check(self, event: str, args: tuple[Any, ...]) -> None:
        """Refuse the network and other programs."""
        if event in _NETWORK:
            self.refuse("it reaches for the network (for a judge or a sandbox?)")
        elif event in _PROCESSES:
            self.refuse("it starts a program")


def confine() -> None:
    """Limit this process, beyond the memory that the tasks take already."""
    sys.dont_write_bytecode = True  # of a module that is imported late
    status = Path("/proc/self/status")
    held = 0
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        held = int(lines["VmData"].split()[0]) * 1024
    library_server.limit_process(CPU_SECONDS, held + library_server.MEMORY_BYTES)
