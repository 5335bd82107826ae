"""One lesson of the playbook, and what a curator may wish for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

SECTIONS = {
    "sai": "strategies and insights",
    "calc": "formulas and calculations",
    "code": "code snippets and templates",
    "err": "common mistakes to avoid",
    "heu": "problem-solving heuristics",
    "ctx": "context clues and indicators",
    "misc": "others",
}
Tag = Literal["helpful", "harmful", "neutral"]

_SEEN_BOUND = 64


@dataclass
class Entry:
    """One lesson.

    Attributes:
        id: `slug-00001`; the slug is the section.
        content: one line.
        helpful, harmful: how often reflections tagged it so.
        created: context update that added it.
        tagged: context update that last tagged it helpful or harmful; None if none did.
        support, against: independent reflections for and against it.
        replaces: entries that it was written to replace, by UPDATE or MERGE, while a candidate.
        admitted: whether the teacher sees it.

    Two entries are equal if what they render to is equal; bookkeeping does not count.
    """

    id: str
    content: str
    helpful: int = 0
    harmful: int = 0
    created: int = field(default=0, compare=False)
    tagged: int | None = field(default=None, compare=False)
    support: int = field(default=1, compare=False)
    against: int = field(default=0, compare=False)
    replaces: list[str] = field(default_factory=list, compare=False)
    admitted: bool = field(default=True, compare=False)
    seen: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def section(self) -> str:
        """Slug of the section: sai, calc, code, err, heu, ctx or misc."""
        return self.id.partition("-")[0]

    @property
    def net(self) -> int:
        """Support minus opposition."""
        return self.support - self.against

    def render(self) -> str:
        """One line: `[err-00012] helpful=3 harmful=0 :: content`."""
        return f"[{self.id}] helpful={self.helpful} harmful={self.harmful} :: {self.content}"

    def vote(self, evidence: str, *, pro: bool) -> None:
        """Count one reflection for or against; the same evidence counts once."""
        if evidence in self.seen:
            return
        self.seen = [*self.seen, evidence][-_SEEN_BOUND:]
        self.support += pro
        self.against += not pro


@dataclass(frozen=True)
class Event:
    """Something that happened to a lesson.

    Attributes:
        what: `added`, `supported`, `opposed`, `tagged`, `rewritten`, `admitted`, `withdrawn` (the
            teacher sees it no more) or `dropped`.
        id: of the entry.
        evidence: the trial that it stands on, as in `Rollout.evidence`; empty if there is none.
        detail: the tag; of a rewritten entry the old words; of a dropped one the reason, and the
            entry that has its place now.
    """

    what: str
    id: str
    evidence: str = ""
    detail: str = ""


# Told of an event: what, id of the entry, detail.
Tell = Callable[[str, str, str], None]


def nobody(what: str, id_: str, detail: str) -> None:
    """A `Tell` that forgets."""


@dataclass(frozen=True)
class Operation:
    """A curator's wish. `ids` holds one id for UPDATE and REMOVE, two or more for MERGE."""

    op: Literal["ADD", "UPDATE", "MERGE", "REMOVE"]
    content: str = ""
    section: str = "misc"
    ids: tuple[str, ...] = ()
