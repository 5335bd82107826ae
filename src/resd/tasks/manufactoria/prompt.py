"""What the student is told: every rule that parser, machine and grader go by."""

from __future__ import annotations

from resd.tasks.manufactoria.families import ACCEPTORS, Problem
from resd.tasks.manufactoria.machine import MAX_VISITS

_RULES = f"""Write a program for a factory. A robot carries a tape of colours through its nodes.
The colours are R (red), B (blue), Y (yellow) and G (green); a tape is written front first.

Nodes:
- START start: where the robot begins; one route, NEXT. Exactly one, and its name is start.
- PULLER_RB NAME: if the front colour is R or B, removes it and takes the route of that colour.
  Otherwise (Y, G, or an empty tape) removes nothing and takes the route [EMPTY].
- PULLER_YG NAME: the same for Y and G.
- PAINTER_RED NAME, PAINTER_BLUE NAME, PAINTER_YELLOW NAME, PAINTER_GREEN NAME: adds that colour \
at the back of the tape; one route, NEXT.
- END end: reaching it accepts the tape, whatever is left on it. Exactly one, and its name is end.

Rules:
- A node is declared on a line of its own that is not indented: kind, name and, right after the \
name, a colon. END has no colon and no routes.
- Its routes follow, one a line, indented by a tab or at least four spaces: `NEXT node`, or for a \
puller `[R] node`, `[B] node`, `[Y] node`, `[G] node` (only its own two colours) and `[EMPTY] node`.
- START and painters have exactly one NEXT. A puller's route that is missing leads to NONE; of two \
for the same colour the first counts.
- The route NONE rejects the tape. Every other route must lead to a node that the program \
declares: with a route to any other name the program does not parse, even if no tape takes it. \
Only END in capitals may be written without such a node, and rejects the tape; to accept, go to end.
- Visiting more than {MAX_VISITS} nodes, START included and END not, rejects the tape.
- Names are letters, digits and underscores, each used once. Capital and small letters differ.
- `#` starts a comment. Blank lines do not matter.

A program that accepts the empty tape and nothing else:
```
START start:
    NEXT first
PULLER_RB first:
    [R] NONE
    [B] NONE
    [EMPTY] second
PULLER_YG second:
    [Y] NONE
    [G] NONE
    [EMPTY] end
END end
```

Task: """
_EXACT = """
The program must be right for every tape, however long. Use no painters: only programs of pullers \
can be proven right. The limit on visits is there to end loops, and plays no part in the proof."""
_CASES = """
The program is run on test tapes, and must be right on every one."""
_ANSWER = """
Give the whole program in a fenced block (```). The last closed block after your thinking counts."""


def prompt_text(problem: Problem, grading: str) -> str:
    """The prompt of a problem; what all share stands first."""
    proven = grading == "exact" and problem.family in ACCEPTORS
    return f"{_RULES}{problem.criterion}{_EXACT if proven else _CASES}{_ANSWER}"
