"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PHASES = (
    "generate",
    "environment",
    "reflect",
    "curate",
    "teacher",
    "update",
    "anchors",
    "save",
    "evaluate",
)


class Clock:
    """Seconds by phase; a phase inside another is taken out of the outer one."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._inside: list[float] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the body for a phase."""
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - began
            own = took - self._inside.pop()
            self._seconds[name] = self._seconds.get(name, 0.0) + own
            if self._inside:
                self._inside[-1] += took

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Count all phases of the body as one, whatever they are called inside."""
        began, before = time.perf_counter(), self.take()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._seconds = {**before, name: before.get(name, 0.0) + took}

    def take(self) -> dict[str, float]:
        """The seconds since the last call, by phase, and start again."""
        taken, self._seconds = self._seconds, {}
        return taken


def describe_phases(row: Mapping[str, Any]) -> str:
    """The phases of a step's row in one line, in order, without those that took no time."""
    named = [(name, float(row.get(f"time/{name}_s", 0.0))) for name in PHASES]
    return "  ".join(f"{name} {value:.2f}" for name, value in named if value >= 0.005)
