"""Rows of metrics.jsonl: a step's, an evaluation's. Who writes them reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resd.runs import atomic

NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Rows:
    """What could be read.

    Attributes:
        rows: each with an integer `step`.
        damaged: numbers of the lines that are no row, from 1.
        torn: whether the last line is one of them and has no end, as a crash leaves it.
    """

    rows: tuple[dict[str, Any], ...]
    damaged: tuple[int, ...] = ()
    torn: bool = False

    def problem(self, step: int) -> str | None:
        """What is wrong with the rows up to the checkpoint of `step`, in one line; or None.

        A last line without an end is what a crash leaves, and is written again.
        """
        lines = self.damaged[:-1] if self.torn else self.damaged
        found = []
        if lines:
            shown = ", ".join(map(str, lines[:3])) + (", ..." if len(lines) > 3 else "")
            found.append(f"line{'s' * (len(lines) > 1)} {shown} cannot be read")
        have = {row["step"] for row in self.rows if is_step(row)}
        missing = [number for number in range(1, step + 1) if number not in have]
        if missing:
            shown = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
            found.append(f"the rows of step{'s' * (len(missing) > 1)} {shown} are missing")
        return f"{NAME}: {' and '.join(found)}; the run goes on without them" if found else None


def is_step(row: Mapping[str, Any]) -> bool:
    """Whether a row is a training step's; the others are evaluations."""
    return any(key.startswith("rollout/") for key in row)


def append_row(run: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a run's metrics.jsonl.

    Raises:
        StorageError: it cannot be written.
    """
    atomic.append_line(run / NAME, json.dumps(row))


def write_rows(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a run's rows, atomically.

    Raises:
        StorageError: they cannot be written; the old ones are still there.
    """
    atomic.write_text(run / NAME, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(run: Path) -> Rows:
    """The rows of a run, and which lines are none."""
    try:
        text = (run / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Rows(())
    rows: list[dict[str, Any]] = []
    damaged = []
    lines = text.split("\n")
    torn = bool(lines.pop()) and not text.endswith("\n")
    lines = text.split("\n") if torn else lines
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            damaged.append(number)
        else:
            rows.append(row)
    return Rows(tuple(rows), tuple(damaged), torn and damaged[-1:] == [len(lines)])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a line that is none is left out."""
    return list(read_rows(run).rows)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) else None
