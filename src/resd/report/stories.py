"""The stories of a run: each kept rollout with what was made of it, from its traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resd.context import parse_curation, parse_reflection
from resd.runs.traces import read_traces, trace_files
from resd.text import strip_thinking

Record = dict[str, Any]
_WRITTEN = ("reflection", "reflection_again", "curation", "curation_again", "review")


@dataclass
class Story:
    """A rollout and what was made of it; every record is one of the traces.

    Attributes:
        step: of the rollout.
        rollout: prompt, response, outcome.
        written: reflections, curations and tags on it, by kind.
        teacher: the teacher's prompt and its sections' places; None if it taught nothing.
        tokens: numbers of its tokens; None if they were not kept.
    """

    step: int
    rollout: Record
    written: dict[str, Record] = field(default_factory=dict)
    teacher: Record | None = None
    tokens: Record | None = None

    @property
    def rejected(self) -> list[str]:
        """Why what was written about it was of no use, in words; empty if it was of use."""
        return list(_rejected(self.written))

    @property
    def loss(self) -> float | None:
        """Mean loss of its kept tokens."""
        values = self.tokens["loss"] if self.tokens else []
        return sum(values) / len(values) if values else None


@dataclass
class StepTraces:
    """What the traces of a step hold.

    Attributes:
        playbook: its state after the step's context update, without who voted; None without one.
        events: what happened to its lessons, in order.
    """

    step: int
    stories: list[Story]
    events: list[Record]
    playbook: Record | None


def read_steps(run: Path) -> Iterator[StepTraces]:
    """The traces of a run, step by step."""
    for step, file in trace_files(run):
        yield step_traces(step, read_traces(file))


def step_traces(step: int, records: Sequence[Record]) -> StepTraces:
    """Put the records of a step together."""
    stories: dict[Any, Story] = {}
    for record in records:
        if record["kind"] == "rollout":
            key = record.get("seed", (record.get("example"), len(stories)))
            stories[key] = Story(step, record)
    found = StepTraces(step, list(stories.values()), [], None)
    for record in records:
        kind, story = record["kind"], stories.get(record.get("seed"))
        if kind == "event":
            found.events.append(record)
        elif kind == "playbook":
            found.playbook = record
        elif story is not None and kind in _WRITTEN:
            story.written[kind] = record
        elif story is not None and kind in ("teacher", "tokens"):
            setattr(story, kind, record)
    return found


def parsed(record: Mapping[str, Any]) -> Any:
    """A written text as the method read it: a `Reflection`, or a `Curation`."""
    parse = parse_curation if record["kind"].startswith("curation") else parse_reflection
    return parse(strip_thinking(str(record.get("output", ""))))


def _rejected(written: Mapping[str, Record]) -> Iterator[str]:
    for what in ("reflection", "curation"):
        record = written.get(f"{what}_again") or written.get(what)
        if record is None:
            continue
        result = parsed(record)
        if result.problem:
            yield f"{what}: {result.problem}"
        elif result.rejected:
            named = ", ".join(f"{k} {v}" for k, v in sorted(result.rejected.items()) if v)
            if named:
                yield f"{what}: {named}"
