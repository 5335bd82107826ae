"""The Manufactoria language: source text to `Factory`, or an error as a good compiler's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

COLOURS = "RBYG"
PULLERS = {"PULLER_RB": "RB", "PULLER_YG": "YG"}
PAINTERS = {"PAINTER_RED": "R", "PAINTER_BLUE": "B", "PAINTER_YELLOW": "Y", "PAINTER_GREEN": "G"}
KINDS = ("START", *PULLERS, *PAINTERS, "END")
END, NONE, EMPTY = "end", "NONE", "EMPTY"
MAX_SOURCE = 100_000  # characters; no program of these problems needs a hundredth of it

_DECLARATION = re.compile(r"(\S+)\s+(\w+)\s*(:?)")
_NEXT = re.compile(r"NEXT\s+(\w+)")
_BRANCH = re.compile(r"\[(R|B|Y|G|EMPTY)\]\s+(\w+)")


class ParseError(ValueError):
    """A program that is none.

    Attributes:
        line: number of the line, 1 is the first; 0 for the program as a whole.
        found, expected: what stands there, and what should.
    """

    def __init__(self, line: int, found: str, expected: str) -> None:
        self.line, self.found, self.expected = line, found[:100], expected
        where = f"line {line}: " if line else ""
        super().__init__(f"{where}found {self.found}; expected {expected}")


@dataclass
class Node:
    """A node: `routes` maps NEXT, a colour or EMPTY to the id of the next node."""

    kind: str
    id: str
    line: int
    routes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Factory:
    """A parsed program: its nodes by id, without END, and the id of START."""

    nodes: dict[str, Node]
    start: str


def parse(source: str) -> Factory:
    """Parse a program.

    Raises:
        ParseError: names the line, what was found there, and what was expected.
    """
    if len(source) > MAX_SOURCE:
        raise ParseError(0, f"{len(source)} characters", f"a program of at most {MAX_SOURCE}")
    nodes: dict[str, Node] = {}
    start, ended, current = "", 0, None
    for number, raw in enumerate(source.split("\n"), start=1):
        text = raw.partition("#")[0].rstrip()
        if not text.strip():
            continue
        if text[0] == "\t" or text.startswith("    "):
            _add_route(current, text.strip(), number)
            continue
        declared = _declaration(text, number)
        if current is not None:
            _check_complete(current)
        current = declared
        if current.id in nodes or (current.kind == "END" and ended):
            first = nodes[current.id].line if current.id in nodes else ended
            found = f"a second node named {current.id}"
            raise ParseError(number, found, f"a new name (the first stands in line {first})")
        if current.kind == "END":
            ended = number
            continue
        if current.kind == "START":
            if start:
                raise ParseError(number, "a second START", "one START in a program")
            start = current.id
        nodes[current.id] = current
    if current is not None:
        _check_complete(current)
    if not nodes and not ended:
        raise ParseError(0, "an empty program", "a program from START to END")
    if not start:
        raise ParseError(0, "no START node", "START NAME: and below it, indented, NEXT NODE")
    if not ended:
        raise ParseError(0, "no END node", "a line `END end`")
    return Factory(nodes, start)


def _declaration(text: str, number: int) -> Node:
    if text[0] in " \r\v\f":
        spaces = len(text) - len(text.lstrip())
        raise ParseError(number, f"{spaces} spaces of indent", "a tab or at least 4 before a route")
    match = _DECLARATION.fullmatch(text)
    if match is None or match.group(1) not in KINDS:
        raise ParseError(number, repr(text[:60]), f"a node: one of {', '.join(KINDS)}, and a name")
    kind, name, colon = match.groups()
    if kind == "END":
        if name != END or colon:
            raise ParseError(number, repr(text[:60]), "`END end`, without a colon")
    elif not colon:
        raise ParseError(number, repr(text[:60]), f"a colon after {kind} {name[:40]}")
    elif name == END:
        raise ParseError(number, f"{kind} named end", "another name: end is the END node's")
    return Node(kind, name, number)


def _add_route(node: Node | None, text: str, number: int) -> None:
    if node is None or node.kind == "END":
        raise ParseError(number, f"the route {text[:60]!r}", "a node above it that has routes")
    if node.kind in PULLERS:
        match, colours = _BRANCH.fullmatch(text), PULLERS[node.kind]
        wanted = f"[{colours[0]}] NODE, [{colours[1]}] NODE or [EMPTY] NODE below {node.kind}"
        if match is None or match.group(1) not in (*colours, EMPTY):
            raise ParseError(number, repr(text[:60]), wanted)
        node.routes.setdefault(match.group(1), match.group(2))  # of duplicates the first wins
        return
    match = _NEXT.fullmatch(text)
    if match is None:
        raise ParseError(number, repr(text[:60]), f"NEXT NODE below {node.kind}")
    if node.routes:
        raise ParseError(number, "a second NEXT", f"exactly one NEXT below {node.kind} {node.id}")
    node.routes["NEXT"] = match.group(1)


def _check_complete(node: Node) -> None:
    if node.kind not in PULLERS and node.kind != "END" and not node.routes:
        expected = "one route below it, indented by a tab or at least 4 spaces: NEXT NODE"
        raise ParseError(node.line, f"{node.kind} {node.id[:40]} without NEXT", expected)
