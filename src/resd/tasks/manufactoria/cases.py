"""Test cases: balanced, and chosen to tell the right program from the usual wrong ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import lru_cache

from resd.tasks.manufactoria.automata import (
    Dfa,
    difference,
    shortest_accepted,
    shortest_rejected,
)
from resd.tasks.manufactoria.families import WRITERS, Problem, mistakes
from resd.tasks.manufactoria.parser import COLOURS

CASES = 20
_EXHAUSTIVE = {2: 8, 4: 5}  # length to which all tapes are tried, by size of the alphabet
_LONG, _LONG_LENGTH = 20, 60
_TRIES = 400


@lru_cache(maxsize=2048)
def test_tapes(problem: Problem) -> tuple[str, ...]:
    """At most `CASES` tapes, half of them to be accepted where the language has so many."""
    if problem.family in WRITERS:
        tapes = itertools.chain(_all_tapes(problem.alphabet, 1), long_tapes(problem, CASES))
        return tuple(itertools.islice(dict.fromkeys(tapes), CASES))
    language = problem.language()
    sides: dict[bool, list[str]] = {True: [], False: []}
    for tape in dict.fromkeys(_candidates(problem, language)):
        side = sides[language.accepts(tape)]
        if len(side) < CASES // 2:
            side.append(tape)
    chosen = sides[True] + sides[False]
    return tuple(sorted(chosen, key=lambda tape: (len(tape), [COLOURS.index(c) for c in tape])))


def search_tapes(problem: Problem) -> Iterator[str]:
    """Tapes on which a program that paints is tried: all short ones, then some long ones."""
    alphabet = problem.alphabet
    yield from _all_tapes(alphabet, _EXHAUSTIVE[len(alphabet)])
    yield from long_tapes(problem, _LONG)


def exhaustive_length(problem: Problem) -> int:
    """The length up to which `search_tapes` holds every tape."""
    return _EXHAUSTIVE[len(problem.alphabet)]


def long_tapes(problem: Problem, number: int) -> Iterator[str]:
    """Seeded tapes of up to 60 colours."""
    rng = random.Random(f"tapes {problem.id}")
    for i in range(number):
        length = 2 + i * (_LONG_LENGTH - 2) // max(1, number - 1)
        yield "".join(rng.choices(problem.alphabet, k=length))


def _all_tapes(alphabet: str, longest: int) -> Iterator[str]:
    for length in range(longest + 1):
        yield from map("".join, itertools.product(alphabet, repeat=length))


def _candidates(problem: Problem, language: Dfa) -> Iterator[str]:
    """The empty tape, what separates the usual mistakes, then random tapes of both kinds."""
    yield ""
    yield problem.sequence
    for wrong in mistakes(problem):
        tape = difference(language, wrong)
        if tape is not None:
            yield tape
    rng = random.Random(f"cases {problem.id}")
    for i in range(_TRIES):
        tape = "".join(rng.choices(COLOURS, k=rng.randint(0, 4 + i // 30)))
        yield tape
        yield _continued(language, tape, accept=i % 2 == 0)


def _continued(language: Dfa, tape: str, accept: bool) -> str:
    """A tape made longer until it is accepted, or rejected; as it is where that cannot be."""
    state = 0
    for colour in tape:
        state = language.moves[state][COLOURS.index(colour)]
    search = shortest_accepted if accept else shortest_rejected
    return tape + (search(language, state) or "")
