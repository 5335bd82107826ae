"""Manufactoria: exact grading, and programs that must or must not pass."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resd import Example
from resd.errors import UserError
from resd.tasks.manufactoria import Factory, ManufactoriaEnvironment, parse, run
from resd.tasks.manufactoria.automata import Dfa, PaintsError, counterexample
from resd.tasks.manufactoria.cases import test_tapes as tapes_of
from resd.tasks.manufactoria.families import ACCEPTORS, FAMILIES, HAS, WRITERS, Problem, problems


def fenced(source: str) -> str:
    return f"```\n{source}\n```"


def example(problem: Problem) -> Example:
    return Example(problem.id, [{"role": "user", "content": "-"}], problem)


def short_tapes(longest: int) -> list[str]:
    every = (itertools.product("RBYG", repeat=n) for n in range(longest + 1))
    return ["".join(tape) for tapes in every for tape in tapes]


# -- exact grading -------------------------------------------------------------------------------


def chain(s: str, name: str, order: tuple[str, str]) -> str:
    """By hand, for a subsequence: wait for each colour, drop what is in between."""
    lines = ["START start:", f"\tNEXT {name}0", ""]
    for i, colour in enumerate(s):
        after = f"{name}{i + 1}" if i + 1 < len(s) else "end"
        for j, kind in enumerate(order):
            here = f"{name}{i}" + "x" * j
            lines.append(f"{kind} {here}:   # colour {i}")
            empty = f"{name}{i}x" if j == 0 else "NONE"
            for own in kind[-2:]:
                lines.append(f"\t[{own}] {after if own == colour else f'{name}{i}'}")
            lines.append(f"\t[EMPTY] {empty}")
    return "\n".join([*lines, "END end"])


def window(s: str, name: str, order: tuple[str, str]) -> str:
    """By hand, for consecutive colours: a node for each text that may still become `s`."""
    nodes = [s[:i] for i in range(len(s))]
    lines = ["END end", f"START start:\n      NEXT {name}_"]
    for read in reversed(nodes):
        for j, kind in enumerate(order):
            lines.append(f"{kind} {name}_{read}{'_2' * j}:")
            for own in kind[-2:]:
                text = read + own
                while text != s and text not in nodes:
                    text = text[1:]
                lines.append(f"      [{own}] {'end' if text == s else f'{name}_{text}'}")
            if j == 0:
                lines.append(f"      [EMPTY] {name}_{read}_2")
    return "\n".join(lines)


def counters(s: str, name: str, order: tuple[str, str]) -> str:
    """By hand, for counts: a node for each set of numbers still missing."""
    need = tuple(s.count(c) for c in "RBYG")
    place = lambda left: name + "_".join(map(str, left))  # noqa: E731
    lines = ["START start:", f"    NEXT {place(need)}"]
    for left in itertools.product(*(range(n + 1) for n in need)):
        if not any(left):
            continue
        for j, kind in enumerate(order):
            lines.append(f"{kind} {place(left)}{'b' * j}:")
            for own in kind[-2:]:
                less = list(left)
                less["RBYG".index(own)] = max(0, less["RBYG".index(own)] - 1)
                lines.append(f"    [{own}] {place(less) if any(less) else 'end'}")
            lines.append(f"    [EMPTY] {'NONE' if j else place(left) + 'b'}")
    return "\n".join([*lines, "END end"])


BY_HAND = {"contains_ordered": chain, "contains_substring": window, "contains_count": counters}


def by_hand(problem: Problem, rng: random.Random) -> str:
    order = rng.choice([("PULLER_RB", "PULLER_YG"), ("PULLER_YG", "PULLER_RB")])
    return BY_HAND[problem.family](problem.sequence, rng.choice(["n", "State7", "_q"]), order)


def varied(number: int) -> list[Problem]:
    rng = random.Random("varied")
    return [p for family in HAS for p in rng.sample(problems(family), number)]


@pytest.mark.parametrize("grading", ["exact", "cases"])
def test_programs_by_hand_pass(grading: str) -> None:
    environment = ManufactoriaEnvironment(grading=grading)  # type: ignore[arg-type]
    rng = random.Random("by hand")
    for problem in varied(20):
        outcome = environment.evaluate(example(problem), fenced(by_hand(problem, rng)))
        assert outcome.passed, (problem, outcome.feedback)
        assert outcome.case_fraction == 1.0


def mutated(source: str, rng: random.Random) -> str:
    """One route leads elsewhere, or is gone."""
    lines = source.split("\n")
    routes = [i for i, line in enumerate(lines) if line[:1] in " \t" and "[" in line]
    names = [line.split()[1].rstrip(":") for line in lines if line[:1] not in " \t#" and line]
    at = rng.choice(routes)
    if rng.random() < 0.2:
        del lines[at]
    else:
        lines[at] = lines[at].rsplit(" ", 1)[0] + " " + rng.choice([*names, "NONE"])
    return "\n".join(lines)


def shortest_wrong(factory: Factory, language: Dfa, tapes: list[str]) -> str | None:
    return next((t for t in tapes if run(factory, t).finished != language.accepts(t)), None)


def test_a_thousand_mutants() -> None:
    """Whether a mutant differs is found by running it on every short tape."""
    environment, rng = ManufactoriaEnvironment(), random.Random("mutants")
    pool = [p for p in varied(60) if len(p.sequence) <= 3]
    tapes = short_tapes(5)
    differing = 0
    while differing < 1000:
        problem = rng.choice(pool)
        source = mutated(by_hand(problem, rng), rng)
        factory, language = parse(source), problem.language()
        wrong = shortest_wrong(factory, language, tapes)
        outcome = environment.evaluate(example(problem), fenced(source))
        if wrong is not None:
            differing += 1
            assert not outcome.passed
            assert outcome.case_fraction < 1
            found = counterexample(factory, language)
            assert found is not None
            assert len(found) == len(wrong)  # no shorter one exists
            assert run(factory, found).finished != language.accepts(found)
        elif not outcome.passed:  # it differs on longer tapes only
            found = counterexample(factory, language)
            assert found is not None
            assert run(factory, found).finished != language.accepts(found)


@settings(max_examples=300)
@given(st.integers(0, 10**9))
def test_the_verdict_agrees_with_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    targets = [*names, "end", "NONE", "END"]
    lines = ["START start:", f"    NEXT {rng.choice(names)}"]
    for name in names:
        kind = rng.choice(["PULLER_RB", "PULLER_YG"])
        lines.append(f"{kind} {name}:")
        for route in (*kind[-2:], "EMPTY"):
            if rng.random() < 0.85:
                lines.append(f"    [{route}] {rng.choice(targets)}")
    factory: Factory = parse("\n".join([*lines, "END end"]))
    problem = rng.choice(problems(rng.choice(ACCEPTORS))[:20])
    language = problem.language()
    wrong = shortest_wrong(factory, language, short_tapes(4))
    found = counterexample(factory, language)
    if wrong is not None:
        assert found is not None
        assert len(found) == len(wrong)
    if found is not None:
        assert run(factory, found).finished != language.accepts(found)


PAINTING = """START start:
    NEXT a
PULLER_RB a:
    [R] p
    [B] a
    [EMPTY] b
PULLER_YG b:
    [Y] a
    [G] {green}
PAINTER_GREEN p:
    NEXT end
END end"""


def test_a_program_that_paints_is_refuted_or_not_proven() -> None:
    environment = ManufactoriaEnvironment()
    problem = problems("contains_substring")[0]  # R
    right, wrong = PAINTING.format(green="a"), PAINTING.format(green="p")
    outcome = environment.evaluate(example(problem), fenced(right))
    assert not outcome.passed
    assert "cannot be proven right" in outcome.feedback
    assert outcome.case_fraction < 1
    with pytest.raises(PaintsError):
        counterexample(parse(right), problem.language())
    cases = ManufactoriaEnvironment(grading="cases")
    assert cases.evaluate(example(problem), fenced(right)).passed
    outcome = environment.evaluate(example(problem), fenced(wrong))
    assert "Wrong on the tape G: expected to reject" in outcome.feedback
    # A painter that no tape reaches does no harm.
    unreached = PAINTING.format(green="a").replace("[R] p", "[R] end")
    assert environment.evaluate(example(problem), fenced(unreached)).passed


# -- the environment -----------------------------------------------------------------------------


def test_sizes_and_split() -> None:
    assert [len(problems(f)) for f in HAS] == [340, 340, 194]
    environment = ManufactoriaEnvironment()
    train, test = environment.examples("train"), environment.examples("test")
    assert (len(train), len(test)) == (742, 132)
    assert not {e.id for e in train} & {e.id for e in test}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grading", ["exact", "cases"])
def test_gold_passes_and_trivial_programs_do_not(family: str, grading: str) -> None:
    environment = ManufactoriaEnvironment(family, grading)  # type: ignore[arg-type]
    for one in environment.examples("test")[:12]:
        outcome = environment.evaluate(one, environment.gold(one))
        assert outcome.passed, outcome.feedback
        tapes = len(tapes_of(one.data))
        assert outcome.cases_passed == outcome.cases == tapes + (grading == "exact")
        for answer in environment.baselines().values():
            assert not environment.evaluate(one, answer(one)).passed


def test_a_failure_still_counts_the_tapes_that_are_right() -> None:
    for grading, cases in (("exact", 21), ("cases", 20)):
        environment = ManufactoriaEnvironment(grading=grading)  # type: ignore[arg-type]
        one = environment.examples("test")[0]
        outcome = environment.evaluate(one, environment.baselines()["reject all"](one))
        assert (outcome.reward, outcome.cases_passed, outcome.cases) == (0.0, 10, cases)
        assert outcome.feedback.endswith("\n10 of 20 test tapes are right.")


@pytest.mark.parametrize("family", HAS)
def test_cases_are_balanced(family: str) -> None:
    for problem in problems(family):
        accepted = [problem.language().accepts(tape) for tape in tapes_of(problem)]
        assert (len(accepted), sum(accepted)) == (20, 10)


def test_a_writer_that_is_wrong_on_long_tapes_only() -> None:
    environment = ManufactoriaEnvironment(list(WRITERS))
    problem = problems("append_sequence")[5]
    wrong = "START start:\n    NEXT a\nPAINTER_RED a:\n    NEXT end\nEND end"
    outcome = environment.evaluate(example(problem), fenced(wrong))
    assert "and leave" in outcome.feedback


def test_a_writer_must_accept_too() -> None:
    environment = ManufactoriaEnvironment(list(WRITERS), "cases")
    one = example(problems("append_sequence")[0])  # R
    source = "START start:\n    NEXT a\nPAINTER_RED a:\n    NEXT {}\nEND end"
    assert environment.evaluate(one, fenced(source.format("end"))).passed
    outcome = environment.evaluate(one, fenced(source.format("NONE")))
    assert (outcome.passed, outcome.cases_passed) == (False, 0)
    assert "a, with the tape empty, takes its route NEXT to NONE" in outcome.feedback


def test_feedback_shows_the_shortest_tape_and_the_way() -> None:
    environment = ManufactoriaEnvironment()
    problem = next(p for p in problems("contains_substring") if p.sequence == "RR")
    source = """START start:
    NEXT one
PULLER_RB one:
    [R] two
    [B] one
    [EMPTY] skip
PULLER_YG skip:
    [Y] one
    [G] one
PULLER_RB two:
    [R] end
END end"""
    text = environment.evaluate(example(problem), fenced(source)).feedback
    assert "Wrong on the tape RBRR: expected to accept" in text
    assert "two, with front B, has no route [B]" in text
    assert "start (R) -> one (R) -> two (B) -> NONE" in text
    assert "of 20 test tapes are right" in text


def test_a_parse_error_stands_alone() -> None:
    environment = ManufactoriaEnvironment()
    one = environment.examples("test")[0]
    text = environment.evaluate(one, fenced("START start:\n  NEXT a\nEND end")).feedback
    assert text.startswith("The program does not parse: line 2: found 2 spaces of indent")
    assert "test tapes" not in text
    assert "2 |   NEXT a" in text


@pytest.mark.parametrize(
    "arguments",
    [{"family": "nope"}, {"family": []}, {"grading": "x"}, {"family": ["has", "nope"]}],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ManufactoriaEnvironment(**arguments)


@given(st.text(max_size=100))
def test_no_response_raises_or_passes(text: str) -> None:
    environment = ManufactoriaEnvironment()
    one = example(problems("contains_count")[7])
    for response in (text, fenced(text), f"<think>{text}"):
        outcome = environment.evaluate(one, response)
        assert not outcome.passed
        assert 0 < len(outcome.feedback) < 1500
