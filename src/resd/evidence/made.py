"""With which code a run was made and how long it took, beside the run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resd.compare.plan import Command, Run
from resd.runs import atomic

_MODELS = ("checkpoints", "evaluated", "best", "final")


@dataclass(frozen=True)
class Made:
    """How a run was made; unknown if nothing was noted.

    Attributes:
        code: digests of the source, one if it did not change between start and end.
        seconds: of the processes, loading and evaluation included.
    """

    code: tuple[str, ...] = ()
    seconds: float = 0.0


class Noting:
    """A command that notes, beside each run, the code and the time that it takes."""

    def __init__(self, command: Command, folder: Path, code: str) -> None:
        self._command, self._folder, self._code = command, folder, code
        self._began: dict[str, float] = {}

    def __call__(self, run: Run, resume: bool) -> Sequence[str]:
        """The command line of a run, which is about to start."""
        before = read_made(self._folder, run.name) if resume else Made()
        self._began[run.name] = time.monotonic()
        code = (*(c for c in before.code if c != self._code), self._code)
        self._write(run, Made(code, before.seconds))
        return self._command(run, resume)

    def finished(self, run: Run) -> None:
        """The run is complete."""
        before = read_made(self._folder, run.name)
        spent = time.monotonic() - self._began.get(run.name, time.monotonic())
        self._write(run, Made(before.code, round(before.seconds + spent, 2)))

    def _write(self, run: Run, made: Made) -> None:
        values = {"code": list(made.code), "seconds": made.seconds}
        atomic.write_json(self._folder / f"{run.name}.json", values)


def read_made(folder: Path, name: str) -> Made:
    """How a run was made."""
    try:
        values = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return Made(tuple(map(str, values["code"])), float(values["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Made()


def without_models(run: Path) -> None:
    """Remove the models and checkpoints of a finished run: hundreds of runs would fill a disk."""
    for name in _MODELS:
        if (run / name).is_dir():
            atomic.remove_directory(run / name)
