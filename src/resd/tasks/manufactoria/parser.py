"""The Manufactoria language: source text to `Factory`, or an error as a good compiler's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

COLOURS = "RBYG"
PULLERS = {"PULLER_RB": "RB", "PULLER_YG": "YG"}
PAINTERS = {"PAINTER_RED": "R", "PAINTER_BLUE": "B", "PAINTER_YELLOW": "Y", "PAINTER_GREEN": "G"}
KINDS = ("START", *PULLERS, *PAINTERS, "END")
START_NAME, END, NONE, EMPTY = "start", "end", "NONE", "EMPTY"
NOWHERE = "END"  # may be named as a target though no node has this name; it rejects then
MAX_SOURCE = 100_000  # characters; no program of these problems needs a hundredth of it

_DECLARATION = re.compile(r"(\S+)\s+(\w+)(:?)")
_NEXT = re.compile(r"NEXT\s+(\w+)")
_BRANCH = re.compile(r"\[(R|B|Y|G|EMPTY)\]\s+(\w+)")
_LIKE_A_ROUTE = re.compile(r"NEXT\b|\[")


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
    """A parsed program: its nodes by id, and the id of START.

    END is not among the nodes, nor is a node named NONE: the route NONE rejects all the same.
    """

    nodes: dict[str, Node]
    start: str


def parse(source: str) -> Factory:
    """Parse a program. The rules are those of the paper's own parser, see docs/tasks.md.

    Raises:
        ParseError: names the line, what was found there, and what was expected.
    """
    if len(source) > MAX_SOURCE:
        raise ParseError(0, f"{len(source)} characters", f"a program of at most {MAX_SOURCE}")
    nodes: dict[str, Node] = {}
    targets: list[tuple[int, str]] = []
    current: Node | None = None
    for number, raw in enumerate(source.split("\n"), start=1):
        text = raw.partition("#")[0].rstrip()
        if not text.strip():
            continue
        # Above the first node there is nothing that a route could belong to.
        if current is not None and text.startswith(("\t", "    ")):
            targets.append((number, _add_route(current, text.strip(), number)))
            continue
        declared = _declaration(text, number)
        if current is not None:
            _check_complete(current)
        current = declared
        if current.id in nodes:
            first = f"a new name (the first stands in line {nodes[current.id].line})"
            raise ParseError(number, f"a second node named {current.id}", first)
        nodes[current.id] = current
    if current is None:
        raise ParseError(0, "an empty program", "a program from START to END")
    _check_complete(current)
    if START_NAME not in nodes:
        raise ParseError(0, "no START node", "START start: and below it, indented, NEXT NODE")
    if END not in nodes:
        raise ParseError(0, "no END node", "a line `END end`")
    for number, target in targets:
        if target not in nodes and target not in (NONE, NOWHERE):
            raise ParseError(number, _undefined(target), "a node of the program, or NONE")
    return Factory({name: n for name, n in nodes.items() if name not in (END, NONE)}, START_NAME)


def _undefined(target: str) -> str:
    known = next((name for name in (END, NONE) if name.lower() == target.lower()), None)
    hint = f" (write {known})" if known else ""
    return f"a route to {target[:40]}, a node that is not declared{hint}"


def _declaration(text: str, number: int) -> Node:
    """The node that a line declares; how far the line is indented does not matter."""
    line = text.strip()
    if _LIKE_A_ROUTE.match(line):
        indent = text[: len(text) - len(text.lstrip())]
        if indent.startswith(("\t", "    ")):
            raise ParseError(number, f"the route {line[:60]!r}", "a node above it that has routes")
        found = "no indent" if not indent else f"{len(indent)} spaces of indent"
        if indent.strip(" "):
            found = "an indent of spaces and other characters"
        raise ParseError(number, found, "a tab or at least 4 spaces before a route")
    match = _DECLARATION.fullmatch(line)
    if match is None or match.group(1) not in KINDS:
        expected = f"a node: one of {', '.join(KINDS)}, a name, and a colon right after it"
        raise ParseError(number, repr(line[:60]), expected)
    kind, name, colon = match.groups()
    if kind == "END":
        if name != END or colon:
            raise ParseError(number, repr(line[:60]), "`END end`, without a colon")
    elif not colon:
        raise ParseError(number, repr(line[:60]), f"a colon after {kind} {name[:40]}")
    elif name == END:
        raise ParseError(number, f"{kind} named end", "another name: end is the END node's")
    elif (kind == "START") != (name == START_NAME):
        expected = "`START start:`, and no other node named start"
        raise ParseError(number, repr(line[:60]), expected)
    return Node(kind, name, number)


def _add_route(node: Node, text: str, number: int) -> str:
    """Add the route that a line holds; returns where it leads."""
    if node.kind == "END":
        raise ParseError(number, f"the route {text[:60]!r}", "a node above it that has routes")
    if node.kind in PULLERS:
        match, colours = _BRANCH.fullmatch(text), PULLERS[node.kind]
        wanted = f"[{colours[0]}] NODE, [{colours[1]}] NODE or [EMPTY] NODE below {node.kind}"
        if match is None or match.group(1) not in (*colours, EMPTY):
            raise ParseError(number, repr(text[:60]), wanted)
        node.routes.setdefault(match.group(1), match.group(2))  # of duplicates the first wins
        return match.group(2)
    match = _NEXT.fullmatch(text)
    if match is None:
        raise ParseError(number, repr(text[:60]), f"NEXT NODE below {node.kind}")
    if node.routes:
        raise ParseError(number, "a second NEXT", f"exactly one NEXT below {node.kind} {node.id}")
    node.routes["NEXT"] = match.group(1)
    return match.group(1)


def _check_complete(node: Node) -> None:
    if node.kind not in PULLERS and node.kind != "END" and not node.routes:
        expected = "one route below it, indented by a tab or at least 4 spaces: NEXT NODE"
        raise ParseError(node.line, f"{node.kind} {node.id[:40]} without NEXT", expected)
