"""Questions of the lab, and what a perfect model answers."""

from __future__ import annotations

import json
from collections.abc import Sequence

from resd.context.playbook import Entry
from resd.tasks.lab.dialect import Dialect, contradicts
from resd.tasks.lab.interpreter import Finding, Request

WRONG_WORDS = {
    "open": "opener",
    "close": "closer",
    "shape": "shape",
    "order": "order",
    "room": "mark",
    "verb": "verb",
    "place": "place",
    "level": "level",
    "shift": "shift",
}
GENERAL_LESSONS = {
    "shape": "one room, one verb, one level",
    "place": "take the room of the request",
}


def question(requests: Sequence[Request], dialect: Dialect, known: int = 0) -> str:
    """The student's prompt."""
    return "\n".join([*dialect.heading(known), *(request.text() for request in requests)])


def solution(dialect: Dialect, requests: Sequence[Request]) -> str:
    """The right response."""
    return "\n".join(dialect.command(r.device, r.room, r.level) for r in requests)


def compact(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def lesson_of(finding: Finding) -> str:
    """What a perfect reflector says to do."""
    return finding.fact or GENERAL_LESSONS[finding.kind]


def reflection_target(finding: Finding, playbook: Sequence[Entry]) -> str:
    """A perfect reflection: what follows from the feedback, and tags by it."""
    tags = []
    for entry in playbook:
        if finding.fact is not None and entry.content == finding.fact:
            tags.append({"id": entry.id, "tag": "helpful"})
        elif finding.fact is not None and contradicts(entry.content, finding.fact):
            tags.append({"id": entry.id, "tag": "harmful"})
    return compact(
        {
            "what_went_wrong": WRONG_WORDS[finding.kind],
            "what_to_do": lesson_of(finding),
            "tags": tags,
        }
    )


def curation_target(lesson: str, playbook: Sequence[Entry]) -> str:
    """A perfect curation: add what is missing, replace what is contradicted."""
    if lesson in GENERAL_LESSONS.values():
        return compact({"operations": []})
    known = any(entry.content == lesson for entry in playbook)
    operations: list[dict[str, str]] = []
    for entry in playbook:
        if contradicts(entry.content, lesson):
            if known:
                operations.append({"op": "REMOVE", "id": entry.id})
            else:
                operations.append({"op": "UPDATE", "id": entry.id, "content": lesson})
                known = True
    if not known:
        section = "calc" if counts(lesson) else "code"
        operations.append({"op": "ADD", "section": section, "content": lesson})
    return compact({"operations": operations})


def review_target(dialect: Dialect, requests: Sequence[Request], playbook: Sequence[Entry]) -> str:
    """Perfect tags after a success: what the solution shows of verbs, and what it refutes."""
    shown = [fact for fact in dialect.facts() if "verb:" not in fact]
    shown += [dialect.own(f"verb: {r.device} {dialect.verb_of(r.device)}") for r in requests]
    verbs = [fact for fact in shown if "verb:" in fact]
    tags = []
    for entry in playbook:
        if entry.content in verbs:
            tags.append({"id": entry.id, "tag": "helpful"})
        elif any(contradicts(entry.content, fact) for fact in shown):
            tags.append({"id": entry.id, "tag": "harmful"})
    return compact({"tags": tags})


def counts(fact: str) -> bool:
    """Whether a fact is about numbers, and belongs to the section of formulas."""
    return "level:" in fact or "shift:" in fact
