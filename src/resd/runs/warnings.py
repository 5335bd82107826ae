"""What a run warned of, for those who look at it later: warnings.jsonl, a line each."""

from __future__ import annotations

import json
from pathlib import Path

from resd.runs import atomic

NAME = "warnings.jsonl"


def add_warning(run: Path, step: int, text: str) -> None:
    """Append what a run warns of at a step.

    Raises:
        StorageError: it cannot be written.
    """
    atomic.append_line(run / NAME, json.dumps({"step": step, "text": text}))


def read_warnings(run: Path) -> list[tuple[int, str]]:
    """Steps and texts, each text once: a resumed run says some things again."""
    try:
        text = (run / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found: dict[str, int] = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
            found.setdefault(str(row["text"]), int(row["step"]))
        except (ValueError, KeyError, TypeError):
            continue
    return [(step, text) for text, step in found.items()]
