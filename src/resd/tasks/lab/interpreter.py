"""The interpreter of a dialect: parses, then executes, and reports the first thing that is wrong.

Syntax errors name the rule. A wrong verb is diagnostic, not instructional: the report says what
moved, which teaches what that verb drives and nothing about the right one. A level that the
dialect cannot read leaves the device where it stands, and the report shows that level as the
dialect writes it, from which the notation must be inferred. Where levels are shifted, a level in
the right notation is obeyed, and the report says in digits where the device stands: no message
names the shift, which follows from what was written and what came of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from resd.tasks.lab.dialect import DEVICES, ROOMS, SPELLINGS, VERBS, Dialect

_ROOM = re.compile(r"[^a-z0-9]*(" + "|".join(ROOMS) + r")", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """One thing to do: bring a device in a room to a level."""

    device: str
    room: str
    level: int

    def text(self) -> str:
        """The request in plain words."""
        return f"set the {self.device} in the {self.room} to {self.level}"


@dataclass(frozen=True)
class Finding:
    """The first thing that is wrong with a command.

    Attributes:
        kind: open | close | shape | order | room | verb | place | level | shift.
        feedback: what the interpreter prints.
        fact: the fact of the dialect that follows from command and feedback, or None.
    """

    kind: str
    feedback: str
    fact: str | None


def check_command(dialect: Dialect, request: Request, line: str) -> Finding | None:
    """Interpret one line; None if it does exactly what was requested."""
    words = line.split()
    if not words or words[0] != dialect.opener:
        text = f"commands open with {dialect.opener}"
        return Finding("open", text, dialect.own(f"open: {dialect.opener}"))
    if words[-1] != dialect.closer:
        text = f"commands close with {dialect.closer}"
        return Finding("close", text, dialect.own(f"close: {dialect.closer}"))
    middle = words[1:-1]
    slots = [slot_of(word) for word in middle]
    if sorted(slots) != ["level", "room", "verb"]:
        return Finding("shape", "a command holds one room, one verb and one level", None)
    if tuple(slots) != dialect.order:
        order = " ".join(dialect.order)
        return Finding("order", f"the order is {order}", dialect.own(f"order: {order}"))
    parts = dict(zip(slots, middle, strict=True))
    return _execute(dialect, request, parts["room"], parts["verb"], parts["level"])


def _execute(
    dialect: Dialect, request: Request, place: str, verb: str, written: str
) -> Finding | None:
    match = _ROOM.fullmatch(place)
    room = match.group(1).lower() if match else place
    if place != dialect.mark + room:
        text = f"rooms are marked with {dialect.mark}"
        return Finding("room", text, dialect.own(f"room: {dialect.mark}"))
    device = dialect.device_of(verb)
    if device != request.device:
        text = f"{verb} moved the {device} in the {room}, wanted the {request.device}"
        return Finding("verb", text, dialect.own(f"verb: {device} {verb}"))
    if room != request.room:
        return Finding(
            "place", f"the {device} in the {room} moved, not in the {request.room}", None
        )
    notation, value = SPELLINGS[written]
    read = notation == dialect.notation
    value = dialect.meant(value) if read else _resting_level(request)
    if value == request.level:
        return None
    if dialect.shift and read:
        text = f"the {device} stands at {value}, wanted {request.level}"
        return Finding("shift", text, dialect.own(f"shift: {dialect.shift}"))
    text = f"the {device} reached level {dialect.write(value)}, wanted {request.level}"
    return Finding("level", text, dialect.own(f"level: {dialect.notation}"))


def _resting_level(request: Request) -> int:
    """Where a device stands that nobody could set: never at the level that is wanted."""
    return (request.level + DEVICES.index(request.device)) % 9 + 1


def slot_of(word: str) -> str:
    """What a word looks like: level, verb, room or other."""
    if word in SPELLINGS:
        return "level"
    if word in VERBS:
        return "verb"
    return "room" if _ROOM.fullmatch(word) else "other"


@dataclass(frozen=True)
class Report:
    """What the interpreter says of a whole response: one command a line, one case a request."""

    cases_passed: int
    finding: Finding | None

    @property
    def passed(self) -> bool:
        """True if every command did what was requested."""
        return self.finding is None


def interpret(dialect: Dialect, requests: Sequence[Request], response: str) -> Report:
    """Interpret a response, one command a line, in the order of the requests."""
    lines = [line for line in response.strip().split("\n") if line.strip()]
    cases, first = 0, None
    for number, request in enumerate(requests, start=1):
        line = lines[number - 1] if number <= len(lines) else ""
        finding = check_command(dialect, request, line)
        if finding is None:
            cases += 1
        elif first is None:
            where = f"command {number}: " if len(requests) > 1 else ""
            first = Finding(finding.kind, where + finding.feedback, finding.fact)
    if first is None and len(lines) > len(requests):
        extra = f"wanted {len(requests)} commands, found {len(lines)}"
        first = Finding("shape", extra, None)
    return Report(cases, first)
