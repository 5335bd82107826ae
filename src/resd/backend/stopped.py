"""Say why a process ends when its launcher stops it, as torchrun does when another has died."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from functools import lru_cache

_SAID = (
    "resd: stopped by the launcher: another process has ended, or the job was cancelled; go on "
    "with --resume RUN, with any number of processes"
)


_LEAVING = threading.Event()


def leave() -> None:
    """This process ends by itself, and says why: a stop from outside changes nothing any more."""
    _LEAVING.set()


@lru_cache(maxsize=1)
def end_at_sigterm(says: bool) -> None:
    """End this process at SIGTERM, also while it waits for others; once a process.

    A handler in Python would only run when the waiting is over.

    Args:
        says: print the reason.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while number := ours.recv(1):
            if number[0] == signal.SIGTERM and not _LEAVING.is_set():
                if says:
                    print(_SAID, file=sys.stderr, flush=True)
                theirs.close()
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="resd stopped").start()
