"""The language of Manufactoria: the released parser's rules, the machine, prompt and trace."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd import Example
from resd.tasks.answers import last_code_block
from resd.tasks.manufactoria import Factory, ManufactoriaEnvironment, ParseError, parse, run
from resd.tasks.manufactoria.automata import REJECT, program, resolve
from resd.tasks.manufactoria.families import HAS, Problem, problems
from resd.tasks.manufactoria.feedback import refuted

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"


def vectors(name: str) -> list[dict[str, Any]]:
    if not (VECTORS / name).is_file():
        pytest.skip(f"no {name}")
    return [json.loads(line) for line in (VECTORS / name).open()]


def fenced(source: str) -> str:
    return f"```\n{source}\n```"


def example(problem: Problem) -> Example:
    return Example(problem.id, [{"role": "user", "content": "-"}], problem)


# -- semantics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manufactoria_dev.jsonl", "manufactoria_rules_dev.jsonl"])
def test_the_reference_programs(name: str) -> None:
    for row in vectors(name):
        try:
            factory = parse(row["program"])
        except ParseError:
            assert not row["parses"], row["program"]
            continue
        assert row["parses"], row["program"]
        for case in row["runs"]:
            verdict = run(factory, case["tape"])
            found = (verdict.finished, verdict.tape, case.get("kind") and verdict.reason)
            assert found == (case["finished"], case["final_tape"], case.get("kind")), row


def test_the_reference_problems() -> None:
    own = {p.id: p for family in HAS for p in problems(family)}
    for row in vectors("has_dev.jsonl"):
        problem, params = own[row["id"]], row["params"]
        counts = params.get("requirements") or []
        assert problem.sequence == params.get("sequence", "".join(c * n for c, n in counts))
        factory = parse(program(problem.language()))
        for case in row["test_cases"]:
            assert problem.language().accepts(case["input"]) == case["expected_accepted"]
            assert run(factory, case["input"]).finished == case["expected_accepted"]


HEAD = "START start:\n    NEXT a\n"
TRIVIAL = "START start:\n    NEXT end\n"
ERRORS = [
    ("", 0, "an empty program"),
    ("# nothing\n", 0, "an empty program"),
    ("END end", 0, "no START"),
    (HEAD, 0, "no END"),
    ("START start\n    NEXT a\nEND end", 1, "a colon"),
    ("START start :\n    NEXT end\nEND end", 1, "a colon right after it"),
    (f"{HEAD}PULLER_RB a\t:\nEND end", 3, "a colon right after it"),
    (f"{HEAD}PULLER_RB a::\nEND end", 3, "a colon right after it"),
    (f"{HEAD}PULLER_RB a: [R] end\nEND end", 3, "a colon right after it"),
    ("START start:\n  NEXT a\nEND end", 2, "2 spaces of indent"),
    ("START start:\nNEXT a\nEND end", 2, "no indent; expected a tab"),
    ("START start:\n \tNEXT a\nEND end", 2, "spaces and other characters; expected a tab"),
    (f"{HEAD}PULLER_RB a:\n   [R] end\nEND end", 4, "3 spaces of indent"),
    ("START start:\nEND end", 1, "without NEXT"),
    (f"{HEAD}END end\nPAINTER_RED a:", 4, "PAINTER_RED a without NEXT"),
    ("START start:\n    NEXT a\n    NEXT b\nEND end", 3, "exactly one NEXT"),
    ("START start:\n    NEXT: end\nEND end", 2, "NEXT NODE below START"),
    ("START start:\n    NEXTend\nEND end", 2, "NEXT NODE below START"),
    (f"{TRIVIAL}    END end", 3, "NEXT NODE below START"),
    ("    NEXT a\nEND end", 1, "a node above it"),
    (f"{TRIVIAL}END end\n    NEXT end", 4, "a node above it"),
    (f"{HEAD}PULLER_RB a:\n    [Y] end\nEND end", 4, r"[R] NODE, [B] NODE or [EMPTY] NODE"),
    (f"{HEAD}PULLER_YG a:\n    [B] end\nEND end", 4, r"[Y] NODE, [G] NODE or [EMPTY] NODE"),
    (f"{HEAD}PULLER_RB a:\n    [r] end\nEND end", 4, "below PULLER_RB"),
    (f"{HEAD}PULLER_RB a:\n    [R]end\nEND end", 4, "below PULLER_RB"),
    (f"{HEAD}PULLER_RB a:\n    NEXT end\nEND end", 4, "below PULLER_RB"),
    (f"{HEAD}PULLER_RB a:\n    [R] end end\nEND end", 4, "below PULLER_RB"),
    (f"{HEAD}PULLER_RB a:\nPULLER_YG a:\nEND end", 4, "a second node named a"),
    (f"{HEAD}START start:\n    NEXT a\nEND end", 3, "a second node named start"),
    (f"{HEAD}PULLER_RB start:\nEND end", 3, "no other node named start"),
    ("START begin:\n    NEXT end\nEND end", 1, "`START start:`"),
    (f"{HEAD}PAINTER_PINK a:\nEND end", 3, "one of START"),
    (f"{HEAD}painter_red a:\nEND end", 3, "one of START"),
    (f"{HEAD}END finish", 3, "`END end`"),
    (f"{HEAD}END end:", 3, "`END end`"),
    (f"{HEAD}END end\nEND end", 4, "a second node named end"),
    (f"{HEAD}PULLER_RB end:\nEND end", 3, "another name"),
    ("x" * 200_000, 0, "at most 100000"),
    # A target that no node declares, taken by a tape or not, shadowed or not, in any kind of node.
    ("START start:\n    NEXT x\nEND end", 2, "a route to x, a node that is not declared"),
    (f"{TRIVIAL}PULLER_RB a:\n    [EMPTY] x\nEND end", 4, "a route to x"),
    (f"{TRIVIAL}PULLER_YG a:\n    [Y] end\n    [Y] x\nEND end", 5, "a route to x"),
    (f"{TRIVIAL}PAINTER_RED a:\n    NEXT A\nEND end", 4, "a route to A"),
    (f"{TRIVIAL}END end\nPAINTER_RED a:\n    NEXT x#y", 5, "a route to x,"),
    ("START start:\n    NEXT End\nEND end", 2, "not declared (write end)"),
    ("START start:\n    NEXT None\nEND end", 2, "not declared (write NONE)"),
]


@pytest.mark.parametrize(("source", "line", "said"), ERRORS)
def test_a_parse_error_says_where_and_what(source: str, line: int, said: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(source)
    assert caught.value.line == line
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


WORKS = {  # program, tape, and how it ends
    "three spaces before a declaration": (f"{TRIVIAL}   END end", "R", (True, "R", "accept")),
    "four above the first node": (f"    {TRIVIAL}END end", "R", (True, "R", "accept")),
    "a form feed before one": (f"{TRIVIAL}\fEND end", "", (True, "", "accept")),
    "a comment between routes": (
        f"{HEAD}PULLER_RB a:\n# x\n\t[R] end # y\n\n  # z\n\t[B] a\nEND end",
        "BRG",
        (True, "G", "accept"),
    ),
    "layout": (
        "# x\nSTART\t start: # y\n\n\tNEXT a\r\n\nPULLER_RB a:\n        [R]   end\n\nEND end # z",
        "RG",
        (True, "G", "accept"),
    ),
    "END above a node": (f"{HEAD}END end\nPULLER_RB a:\n    [R] end", "RG", (True, "G", "accept")),
    "a letter of another alphabet": (
        "START start:\n    NEXT é\nPULLER_RB é:\n    [R] end\nEND end",
        "R",
        (True, "", "accept"),
    ),
    "of duplicates the first": (
        f"{HEAD}PULLER_RB a:\n    [R] end\n    [R] NONE\nEND end",
        "R",
        (True, "", "accept"),
    ),
    "a route that is missing": (f"{HEAD}PULLER_YG a:\nEND end", "GY", (False, "Y", "none")),
    "the route NONE": ("START start:\n    NEXT NONE\nEND end", "R", (False, "R", "none")),
    "a node named NONE is never reached": (
        "START start:\n    NEXT NONE\nPULLER_RB NONE:\n    [R] end\nEND end",
        "R",
        (False, "R", "none"),
    ),
    "END in capitals": ("START start:\n    NEXT END\nEND end", "R", (False, "R", "unknown_node")),
    "a node named END": (
        "START start:\n    NEXT END\nPULLER_RB END:\n    [R] end\nEND end",
        "R",
        (True, "", "accept"),
    ),
    "back to start": ("START start:\n    NEXT start\nEND end", "R", (False, "R", "loop")),
    "the front of a painted tape": (
        f"{HEAD}PAINTER_GREEN a:\n    NEXT b\nPULLER_YG b:\n    [Y] end\n    [G] NONE\nEND end",
        "YB",
        (True, "BG", "accept"),
    ),
    **{
        f"{kind} paints": (
            f"{HEAD}{kind} a:\n    NEXT end\nEND end",
            "BB",
            (True, f"BB{kind[8]}", "accept"),
        )
        for kind in ("PAINTER_RED", "PAINTER_BLUE", "PAINTER_YELLOW", "PAINTER_GREEN")
    },
}


@pytest.mark.parametrize("name", WORKS)
def test_what_parses_and_how_it_runs(name: str) -> None:
    source, tape, ends = WORKS[name]
    verdict = run(parse(source), tape)
    assert (verdict.finished, verdict.tape, verdict.reason) == ends
    if ends[2] in ("none", "unknown_node", "loop"):  # the proof sees it as the machine does
        assert resolve_all(parse(source), tape) == REJECT


def resolve_all(factory: Factory, tape: str) -> str:
    at = factory.start
    for front in (*tape, ""):
        at = resolve(factory, at, front)
    return at


def chained(visits: int, last: str = "end") -> str:
    """A program that visits so many nodes, START included, and removes nothing."""
    names = ["start", *(f"n{i}" for i in range(1, visits)), last]
    lines = ["START start:", f"    NEXT {names[1]}"]
    for name, after in itertools.pairwise(names[1:]):
        lines += [f"PULLER_YG {name}:", f"    [EMPTY] {after}"]
    return "\n".join([*lines, "END end"])


def test_a_thousand_visits_and_no_more() -> None:
    assert run(parse(chained(1000)), "R").reason == "accept"
    assert run(parse(chained(1001)), "R").reason == "loop"
    cases = ManufactoriaEnvironment(grading="cases")
    one = example(problems("contains_substring")[0])
    said = cases.evaluate(one, fenced(chained(1001))).feedback
    assert "expected to accept; the program ran in a loop: 1000 nodes were visited" in said
    # The proof knows no such limit, and its feedback does not contradict it.
    said = ManufactoriaEnvironment().evaluate(one, fenced(chained(1001))).feedback
    assert "on the tape (empty): expected to reject; the program accepted it" in said
    endless = f"{HEAD}PULLER_YG a:\n    [EMPTY] a\nEND end"
    said = ManufactoriaEnvironment().evaluate(one, fenced(endless)).feedback
    assert "on the tape R: expected to accept; the program ran in a loop" in said


@pytest.mark.parametrize(
    ("routes", "tape", "said"),
    [
        ("[B] end\n    [EMPTY] NONE", "R", "a, with front R, has no route [R]"),
        ("[R] NONE", "R", "a, with front R, takes its route [R] to NONE"),
        ("[R] end", "YR", "a, with front Y, has no route [EMPTY]"),
        ("[R] end\n    [EMPTY] NONE", "GR", "a, with front G, takes its route [EMPTY] to NONE"),
        ("[R] a", "R", "a, with the tape empty, has no route [EMPTY]"),
        ("[R] END", "R", "a leads to END, which is no node (the END node is named end)"),
    ],
)
def test_the_trace_says_which_route_rejected(routes: str, tape: str, said: str) -> None:
    factory = parse(f"{HEAD}PULLER_RB a:\n    {routes}\nEND end")
    assert said in refuted(problems("contains_substring")[0], factory, tape)  # R


def test_the_prompt_promises_what_the_parser_does() -> None:
    """Every sentence about targets, names and indents has a program in ERRORS or WORKS."""
    text = ManufactoriaEnvironment().examples("test")[0].prompt[0]["content"]
    for promise in (
        "START start: where the robot begins; one route, NEXT. Exactly one, and its name is start.",
        "right after the name, a colon",
        "indented by a tab or at least four spaces",
        "with a route to any other name the program does not parse, even if no tape takes it",
        "Only END in capitals may be written without such a node, and rejects the tape",
        "Visiting more than 1000 nodes, START included and END not, rejects the tape",
        "The limit on visits is there to end loops, and plays no part in the proof",
    ):
        assert promise in text
    shown = last_code_block(text)
    assert shown is not None
    assert [run(parse(shown), tape).finished for tape in ("", *"RBYG", "GR")] == [True] + [
        False
    ] * 5
    cases = ManufactoriaEnvironment(grading="cases").examples("test")[0].prompt[0]["content"]
    assert "plays no part in the proof" not in cases


# -- no program makes it fail ----------------------------------------------------------------------


def survives(source: str) -> None:
    try:
        factory = parse(source)
    except ParseError:
        return
    for tape in ("", "RBYG", "GG"):
        run(factory, tape)


@given(st.text(max_size=200))
def test_any_text(source: str) -> None:
    survives(source)


PIECES = [
    *("START", "PULLER_RB", "PULLER_YG", "PAINTER_RED", "END", "NEXT", "NONE", "[R]", "[EMPTY]"),
    *("end", "a", "b", ":", "\n", "    ", "\t", " ", "#", "é", "٣", "\x00", "\u2028", "[", "]"),
]


def test_ten_thousand_fuzzed_programs() -> None:
    rng = random.Random("fuzz")
    whole = [program(p.language()) for p in problems("contains_ordered")[::40]]
    for i in range(10_000):
        if i % 2:
            source = "".join(rng.choices(PIECES, k=rng.randint(0, 60)))
        else:
            characters = list(rng.choice(whole))
            for _ in range(rng.randint(1, 6)):
                at = rng.randrange(len(characters))
                characters[at : at + rng.randint(0, 9)] = rng.choices(PIECES, k=rng.randint(0, 2))
            source = "".join(characters)
        survives(source)
