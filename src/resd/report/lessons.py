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
        id: in its playbook; `/2` is the second lesson of that id, of another task's playbook.
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
    lives = Lives()
    for traces in steps:
        lives.step(traces)
    return lives.lessons


class Lives:
    """Lessons as they come, step by step.

    Attributes:
        lessons: all so far.
        alive: those of the playbook at hand, by their ids in it.
    """

    def __init__(self) -> None:
        self.lessons: list[Lesson] = []
        self.alive: dict[str, Lesson] = {}

    def step(self, traces: StepTraces) -> None:
        """What happened in a step, and the playbook after it."""
        for event in traces.events:
            self._happened(traces.step, event)
        if traces.playbook is not None:
            self._seen(traces.step, traces.playbook["entries"])

    def _happened(self, step: int, event: Mapping[str, Any]) -> None:
        id_, what, detail = str(event["id"]), str(event["what"]), str(event["detail"])
        evidence = str(event.get("evidence", ""))
        if what == "added":
            lesson = self._born(id_, detail, step, evidence)
        else:
            lesson = self.alive.get(id_) or self._born(id_, "", step)
        lesson.moments.append(Moment(step, what, evidence, detail if what != "added" else ""))
        if what == "dropped":
            self._die(id_, step, _REASONS.get(detail, detail))

    def _seen(self, step: int, entries: Iterable[Mapping[str, Any]]) -> None:
        here = set()
        for entry in entries:
            id_ = str(entry["id"])
            here.add(id_)
            lesson = self.alive.get(id_) or self._born(id_, str(entry["content"]), step)
            lesson.content = str(entry["content"])
            counts = [entry[name] for name in ("helpful", "harmful", "support", "against")]
            state = (*counts, bool(entry["admitted"]))
            if not lesson.states or lesson.states[-1][1:] != state:
                lesson.states.append((step, *state))
        for id_ in self.alive.keys() - here:
            # No event told of it: another task has begun, or traces are missing.
            self._die(id_, step, "left with its playbook")

    def _born(self, id_: str, content: str, step: int, evidence: str = "") -> Lesson:
        # A playbook of another task counts from one again.
        self._die(id_, step, "left with its playbook")
        before = sum(lesson.id.partition("/")[0] == id_ for lesson in self.lessons)
        name = f"{id_}/{before + 1}" if before else id_
        lesson = self.alive[id_] = Lesson(name, content, step, evidence)
        self.lessons.append(lesson)
        return lesson

    def _die(self, id_: str, step: int, reason: str) -> None:
        lesson = self.alive.pop(id_, None)
        if lesson is not None:
            lesson.died, lesson.reason = step, reason
