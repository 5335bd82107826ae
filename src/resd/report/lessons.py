"""The life of every lesson of a run: birth, votes, edits, death and why, from its traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resd.report.stories import StepTraces

# What a death is called in an event, and in words.
_REASONS = {
    "harmful": "tagged harmful as often as helpful",
    "unused": "no reflection found a use for it",
    "unconfirmed": "no second reflection said the same in time",
    "outvoted": "more reflections against it than for it",
    "budget": "the playbook was full",
    "removed": "a curation removed it",
}


@dataclass(frozen=True)
class Moment:
    """Something that happened to a lesson: see `resd.context.playbook.entry.Event`."""

    step: int
    what: str
    evidence: str
    detail: str


@dataclass
class Lesson:
    """A lesson's life.

    Attributes:
        content: its words, the last ones if they were changed.
        born: step of its birth; `died` of its death, and `reason` why, if it is dead.
        evidence: the trial that it was learnt from, as in `Rollout.evidence`.
        example: of that trial.
        moments: all that happened to it, in order.
        states: counts at the end of each step at which they changed: step, helpful, harmful,
            support, against, whether the teacher sees it.
    """

    id: str
    content: str
    born: int
    evidence: str = ""
    died: int | None = None
    reason: str = ""
    moments: list[Moment] = field(default_factory=list)
    states: list[tuple[int, int, int, int, int, bool]] = field(default_factory=list)

    @property
    def example(self) -> str:
        """The example that it was learnt from."""
        return self.evidence.rpartition("/")[0]

    def at_end(self) -> Mapping[str, int | bool]:
        """Its last counts."""
        names = ("helpful", "harmful", "support", "against", "admitted")
        last = self.states[-1][1:] if self.states else (0, 0, 0, 0, False)
        return dict(zip(names, last, strict=True))


def lessons(steps: Iterable[StepTraces]) -> list[Lesson]:
    """All lessons that a run ever had, in the order of their births."""
    found: dict[str, Lesson] = {}
    for traces in steps:
        for event in traces.events:
            _happened(found, traces.step, event)
        entries = (traces.playbook or {}).get("entries", [])
        for entry in entries:
            lesson = found.setdefault(
                entry["id"], Lesson(entry["id"], entry["content"], traces.step)
            )
            lesson.content = entry["content"]
            counts = [entry[name] for name in ("helpful", "harmful", "support", "against")]
            state = (*counts, bool(entry["admitted"]))
            if not lesson.states or lesson.states[-1][1:] != state:
                lesson.states.append((traces.step, *state))
        here = {entry["id"] for entry in entries}
        for lesson in found.values():
            # One that no event told of: the traces of a step are missing.
            if traces.playbook and lesson.died is None and lesson.id not in here:
                lesson.died, lesson.reason = traces.step, lesson.reason or "not known"
    return list(found.values())


def _happened(found: dict[str, Lesson], step: int, event: Mapping[str, Any]) -> None:
    id_, what, detail = str(event["id"]), str(event["what"]), str(event["detail"])
    evidence = str(event.get("evidence", ""))
    if what == "added":
        found[id_] = Lesson(id_, detail, step, evidence)
    lesson = found.setdefault(id_, Lesson(id_, "", step))
    lesson.moments.append(Moment(step, what, evidence, detail if what != "added" else ""))
    if what == "dropped":
        lesson.died, lesson.reason = step, _REASONS.get(detail, detail)
