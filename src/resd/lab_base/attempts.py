"""What a student of the lab tries, from its first guesses to its last mistakes."""

from __future__ import annotations

import random

from resd.tasks.lab.dialect import (
    CLOSERS,
    DEVICES,
    MARKS,
    NOTATIONS,
    OPENERS,
    ORDERS,
    ROOMS,
    SHIFTS,
    VERBS,
    Dialect,
)
from resd.tasks.lab.interpreter import Request


def attempt(
    rng: random.Random, dialect: Dialect, request: Request, known: int, executed: float
) -> str:
    """A student's attempt, at any stage of learning; some are garbage.

    Args:
        rng: draws it.
        dialect: what is right.
        request: what is asked.
        known: how many facts the question states.
        executed: fraction of attempts that only execution can find fault with.
    """
    if rng.random() < 0.5:
        # A student that has learnt all conventions up to some point.
        learnt = rng.randint(0, 7)
        right = [i < learnt or rng.random() < 0.3 for i in range(7)]
    else:
        skill = rng.random()
        right = [rng.random() < skill for _ in range(7)]
    if executed > 0.0 and rng.random() < executed:
        right = [True] * 4 + [rng.random() < 0.7, rng.random() < 0.5, rng.random() < 0.3]
    stated = rng.random() < 0.9
    # In the order of the facts, but for the verbs, which nobody states.
    right = [it or (stated and i < known) for i, it in enumerate(right)]
    guess = Dialect(
        opener=dialect.opener if right[0] else rng.choice(OPENERS),
        closer=dialect.closer if right[1] else rng.choice(CLOSERS),
        mark=dialect.mark if right[2] else rng.choice(MARKS),
        order=dialect.order if right[3] else rng.choice(ORDERS),
        notation=dialect.notation if right[4] else rng.choice(tuple(NOTATIONS)),
        verbs=dialect.verbs if right[5] else tuple(rng.sample(VERBS, len(VERBS))),
        shift=dialect.shift if right[6] else rng.choice((0, *SHIFTS) if dialect.shift else (0,)),
    )
    room = request.room if rng.random() < 0.98 else rng.choice(ROOMS)
    line = guess.command(request.device, room, request.level)
    return _garbled(rng, line) if rng.random() < 0.06 else line


def _garbled(rng: random.Random, line: str) -> str:
    words = line.split()
    place = rng.randrange(len(words))
    kind = rng.randrange(5)
    if kind == 0:
        del words[place]
    elif kind == 1:
        words.insert(place, rng.choice(words))
    elif kind == 2:
        words[place] = rng.choice((*VERBS, *DEVICES, *ROOMS, *OPENERS, *CLOSERS, *MARKS))
    elif kind == 3:
        other = rng.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    else:
        words = words[:place]
    return " ".join(words)
