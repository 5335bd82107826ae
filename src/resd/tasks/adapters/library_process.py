"""The trainer's end of a process that holds another library (see `library_server`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from resd.errors import UserError

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "XDG_CACHE_HOME")


class LibraryProcess:
    """A library in a process of its own, which ends with this object. Safe for threads.

    Args:
        module: run as a program; it answers each line of JSON with one.
        setup: its argument, plain JSON.
        name: of the library.
        kept: environment variables that it sees besides those that every program needs.

    Attributes:
        started: its first reply.

    Raises:
        UserError: what the process refuses, or options that are no JSON.
    """

    def __init__(
        self, module: str, setup: Mapping[str, Any], name: str, kept: Sequence[str] = ()
    ) -> None:
        if not hasattr(os, "fork"):
            raise UserError(f"{name} tasks need fork(): Linux or macOS")
        try:
            argument = json.dumps(setup)
        except (TypeError, ValueError) as error:
            said = f"config must be plain numbers, texts, lists and tables: {error}"
            raise UserError(said) from None
        self._name = name
        self._lock = threading.Lock()
        self._place = tempfile.mkdtemp(prefix="resd-")  # some libraries write files
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(kept),
            cwd=self._place,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is the trainer's to handle
        )
        self._close = weakref.finalize(self, _close, self._process, self._place)
        self.started = self._reply()

    def ask(self, question: object) -> Any:
        """The reply to one question, both plain JSON."""
        assert self._process.stdin is not None
        with self._lock:
            with contextlib.suppress(OSError):  # it has ended, which the reply shows
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
            return self._reply()

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"the {self._name} process ended with exit code {code}")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply


def _environment(kept: Sequence[str]) -> dict[str, str]:
    """What the process sees: no secrets, one thread, a hash seed that is always the same."""
    found = {name: os.environ[name] for name in (*_KEPT, *kept) if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**found, **threads, "PYTHONHASHSEED": "0", "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _close(process: subprocess.Popen[str], place: str) -> None:
    """End the process, which stops when its stdin does, and remove its directory."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(place, ignore_errors=True)
