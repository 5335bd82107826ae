"""Manufactoria as an `Environment`: families of problems, exact grading, feedback with a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from resd.errors import UserError
from resd.tasks.answers import NO_CODE_BLOCK, last_code_block
from resd.tasks.manufactoria import feedback
from resd.tasks.manufactoria.automata import PaintsError, counterexample, program
from resd.tasks.manufactoria.cases import exhaustive_length, search_tapes, test_tapes
from resd.tasks.manufactoria.families import ACCEPTORS, FAMILIES, HAS, Problem, problems
from resd.tasks.manufactoria.machine import MAX_VISITS, decisive_visits, run
from resd.tasks.manufactoria.parser import PAINTERS, Factory, ParseError, parse
from resd.tasks.manufactoria.prompt import prompt_text
from resd.types import Example, Outcome, Split

Grading = Literal["exact", "cases"]
_TRAIN_SHARE = 0.85
_PAINTER = {colour: kind for kind, colour in PAINTERS.items()}


class ManufactoriaEnvironment:
    """Programs in the language of Manufactoria (paper: Manufactoria-Has, App. G).

    Args:
        family: `has` (contains_substring, contains_ordered and contains_count: 874 problems), one
            of the families, or a list of them. All problems of the families are used, split 85 to
            15 by a seed of its own.
        grading: `exact`: a program passes if it is right for every tape, decided on automata; the
            proof is one more case beside the test cases. `cases`: the paper's rule, all test cases.

    Raises:
        UserError: there is no such family or grading.
    """

    description = "programs for a tape machine, proven right or refuted by the shortest tape"

    def __init__(self, family: str | Sequence[str] = "has", grading: Grading = "exact") -> None:
        named = [family] if isinstance(family, str) else list(family)
        families = [f for name in named for f in (HAS if name == "has" else (name,))]
        unknown = [name for name in families if name not in FAMILIES]
        if unknown or not families:
            known = ", ".join(("has", *FAMILIES))
            raise UserError(f"family must be one or more of {known}; found {family!r}")
        if grading not in get_args(Grading):
            raise UserError(f"grading must be exact or cases, found {grading!r}")
        self.grading: Grading = grading
        self._problems = [p for name in dict.fromkeys(families) for p in problems(name)]

    def examples(self, split: Split) -> Sequence[Example]:
        """The examples of a split: 742 and 132 for `has`."""
        shuffled = list(self._problems)
        random.Random("manufactoria split").shuffle(shuffled)
        cut = int(len(shuffled) * _TRAIN_SHARE)
        chosen = shuffled[:cut] if split == "train" else shuffled[cut:]
        return [
            Example(p.id, [{"role": "user", "content": prompt_text(p, self.grading)}], p)
            for p in chosen
        ]

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Grade the program in the last fenced block; one test case a tape, and one the proof."""
        problem: Problem = example.data
        tapes = test_tapes(problem)
        cases = len(tapes) + (self.grading == "exact")
        source = last_code_block(response)
        if source is None:
            return _failed(NO_CODE_BLOCK, 0, cases)
        try:
            factory = parse(source)
        except ParseError as error:
            return _failed(feedback.parse_error(error, source), 0, cases)
        right = sum(_is_right(problem, factory, tape) for tape in tapes)
        tape, unproven = self._refute(problem, factory, tapes)
        if tape is None and not unproven:
            return Outcome(1.0, True, cases_passed=cases, cases=cases)
        said = f"{right} of {len(tapes)} test tapes are right."
        if tape is None:
            text = f"{feedback.unproven(exhaustive_length(problem))} {said}"
        else:
            limit = MAX_VISITS
            if self.grading == "exact" and problem.family in ACCEPTORS and not unproven:
                limit = decisive_visits(factory, tape)  # the proof knows no other limit
            text = f"{feedback.refuted(problem, factory, tape, limit)}\n{said}"
        return _failed(text, right, cases)

    def _refute(
        self, problem: Problem, factory: Factory, tapes: Sequence[str]
    ) -> tuple[str | None, bool]:
        """A tape on which a program is wrong, and whether the lack of one proves nothing."""
        if self.grading == "cases":
            return _first_wrong(problem, factory, tapes), False
        if problem.family in ACCEPTORS:
            try:
                return counterexample(factory, problem.language()), False
            except PaintsError:
                return _first_wrong(problem, factory, search_tapes(problem)), True
        return _first_wrong(problem, factory, search_tapes(problem)), False

    def gold(self, example: Example) -> str:
        """A right program."""
        problem: Problem = example.data
        if problem.family in ACCEPTORS:
            return f"```\n{program(problem.language())}\n```"
        return f"```\n{_writer(problem)}\n```"

    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Programs that look at nothing."""
        text = "```\nSTART start:\n    NEXT {}\nEND end\n```"
        return {
            "reject all": lambda example: text.format("NONE"),
            "accept all": lambda example: text.format("end"),
        }


def _failed(text: str, right: int, cases: int) -> Outcome:
    return Outcome(0.0, False, text, cases_passed=right, cases=cases)


def _first_wrong(problem: Problem, factory: Factory, tapes: Iterable[str]) -> str | None:
    return next((tape for tape in tapes if not _is_right(problem, factory, tape)), None)


def _is_right(problem: Problem, factory: Factory, tape: str) -> bool:
    verdict = run(factory, tape)
    wanted = problem.output(tape)
    if verdict.finished != problem.language().accepts(tape):
        return False
    return wanted is None or verdict.tape == wanted


def _writer(problem: Problem) -> str:
    """Paint the sequence; to bring it to the front, mark the end first and turn the tape round."""
    turn = problem.family == "prepend_sequence"
    paint = ("G" if turn else "") + problem.sequence
    last = "read" if turn else "end"
    lines = ["START start:", "    NEXT p0"]
    for i, colour in enumerate(paint):
        after = f"p{i + 1}" if i + 1 < len(paint) else last
        lines += [f"{_PAINTER[colour]} p{i}:", f"    NEXT {after}"]
    if turn:
        lines += ["PULLER_RB read:", "    [R] red", "    [B] blue", "    [EMPTY] mark"]
        lines += ["PAINTER_RED red:", "    NEXT read", "PAINTER_BLUE blue:", "    NEXT read"]
        lines += ["PULLER_YG mark:", "    [G] end"]
    return "\n".join([*lines, "END end"])
