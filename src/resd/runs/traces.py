"""Traces of a run: what it saw and wrote, for people. Nothing is resumed from them.

traces/step-000001.jsonl.gz        rollouts of a step, what was written about them, teacher prompts,
                                   what happened to the playbook, numbers of tokens
traces/evaluation-000001.jsonl.gz  answers of an evaluation to the first test problems

A file is written once and whole, so a crash leaves none that is torn.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resd.runs import atomic

FOLDER = "traces"
_NAME = re.compile(r"(step|evaluation)-(\d{6,})\.jsonl(\.gz)?")
# Fast: most of what can be saved is saved by then, and a step waits for it.
_LEVEL = 1


def write_traces(run: Path, what: str, step: int, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of a step, or of the evaluation after it.

    Args:
        run: the directory.
        what: `step` or `evaluation`.
        step: which.
        records: plain JSON, each with a `kind`.

    Raises:
        StorageError: the file cannot be written.
        ValueError, TypeError: a record is no JSON.
    """
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    # No time of writing in the file: a resumed run leaves the same bytes.
    packed = gzip.compress(text.encode("utf-8", "replace"), _LEVEL, mtime=0)
    place = run / FOLDER / f"{what}-{step:06d}.jsonl.gz"
    atomic.write_bytes(place, packed, lasting=False)


def trace_files(run: Path, what: str = "step") -> list[tuple[int, Path]]:
    """Steps, or evaluations, that have traces, in order."""
    found = []
    folder = run / FOLDER
    for path in folder.iterdir() if folder.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match and match.group(1) == what:
            found.append((int(match.group(2)), path))
    return sorted(found)


def read_traces(file: Path) -> list[dict[str, Any]]:
    """The records of a file; what cannot be read is left out."""
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error):
        return []
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            records.append(record)
    return records


def playbook_state(run: Path, step: int) -> dict[str, Any] | None:
    """The playbook after the context update of a step, by its traces; None if they hold none."""
    file = dict(trace_files(run)).get(step)
    records = read_traces(file) if file else []
    return next((record for record in records if record["kind"] == "playbook"), None)


def forget_after(run: Path, step: int) -> None:
    """Remove what was written after a step: it will be written again."""
    for what in ("step", "evaluation"):
        for number, file in trace_files(run, what):
            if number > step:
                atomic.barrier(f"before removing {file.name}")
                atomic.remove(file)
