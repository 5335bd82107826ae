"""Runs in processes of their own, several at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resd.compare.plan import Command, Run, State
from resd.compare.progress import ComparisonView
from resd.errors import UserError
from resd.report.results import read_result

_POLL = 0.05
_PATIENCE = 5.0


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    errors: Path


def run_all(
    runs: Sequence[Run], jobs: int, logs: Path, view: ComparisonView, command: Command
) -> dict[str, str]:
    """Run what is not finished yet; go on with what broke off.

    Args:
        runs: of which those that are finished are only reported.
        jobs: runs at a time.
        logs: directory for the output of each run.
        view: is told of every run.
        command: makes the command line of a run.

    Returns:
        Why runs failed, by run name.

    Raises:
        KeyboardInterrupt: somebody stopped it; no child is left behind.
    """
    failures: dict[str, str] = {}
    waiting: deque[Run] = deque()
    for run in runs:
        if run.state() is State.FINISHED:
            _report(run, None, view, failures, reused=True)
        else:
            waiting.append(run)
    environment = _environment(jobs)
    running: list[_Child] = []
    with _interruptions() as interrupted:
        try:
            while waiting or running:
                if interrupted():
                    raise KeyboardInterrupt
                while waiting and len(running) < jobs:
                    run = waiting.popleft()
                    try:
                        running.append(_start(run, command, logs, environment))
                        view.started(run)
                    except OSError as error:
                        _report(run, f"cannot be started: {error}", view, failures)
                for child in [c for c in running if c.process.poll() is not None]:
                    running.remove(child)
                    _report(child.run, _failure(child), view, failures)
                time.sleep(_POLL)
        finally:
            _stop(running)
    return failures


def _environment(jobs: int) -> dict[str, str]:
    """Several runs at a time share the cores: one thread each, unless the user says otherwise."""
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def _report(
    run: Run,
    reason: str | None,
    view: ComparisonView,
    failures: dict[str, str],
    reused: bool = False,
) -> None:
    """Tell how a run ended; one whose files make no sense has failed too."""
    try:
        result = read_result(run.path, run.seed) if reason is None else None
    except UserError as error:
        result, reason = None, str(error)
    if result is not None:
        view.finished(run, result, reused)
        return
    failures[run.name] = reason or "no result"
    view.failed(run, failures[run.name])


def _start(run: Run, command: Command, logs: Path, environment: dict[str, str]) -> _Child:
    resume = run.state() is State.BROKEN_OFF
    words = list(command(run, resume))
    errors = logs / f"{run.name}.err"
    with (logs / f"{run.name}.out").open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            # Ctrl-C is for this process alone; it ends its children, and theirs.
            start_new_session=True,
        )
    return _Child(run, process, errors)


def _failure(child: _Child) -> str | None:
    """Why the run has no result, in one line; None if it has one."""
    code = child.process.returncode
    if code == 0 and child.run.state() is State.FINISHED:
        return None
    text = child.errors.read_text(encoding="utf-8", errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    last = lines[-1].removeprefix("resd: ")[:300] if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"killed by {name}" + (f": {last}" if last else "")
    if code == 0:
        return "ended without a result" + (f": {last}" if last else "")
    return last or f"ended with exit code {code}"


@contextlib.contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C, a lost terminal and a request to end, instead of dying of them at any point.

    Dying between the start of a child and its entry into the list would leave it behind.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    # What nohup and the shell's & have switched off stays off.
    kinds = [kind for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN]
    before = {kind: signal.signal(kind, lambda number, _: noted.append(number)) for kind in kinds}
    try:
        yield lambda: bool(noted)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _stop(children: Sequence[_Child]) -> None:
    """End children with everything that they started; a run survives this at any moment."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in children:
            if child.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, number)
        limit = time.monotonic() + _PATIENCE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, limit - time.monotonic()))
