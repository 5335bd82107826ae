"""Drills: one skill many times a sample, because within whole samples it came late or never.

What they taught, and which did not help, stands in LOG.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from resd.tasks.lab.dialect import (
    CLOSERS,
    DEVICES,
    HOUSES,
    LEVELS,
    MARKS,
    OPENERS,
    ROOMS,
    SHIFTS,
    SPELLINGS,
    VERBS,
    Dialect,
)

_ECHO_WORDS = (
    *(f" {word}" for word in (*DEVICES, *ROOMS, *VERBS, *OPENERS, *CLOSERS, *HOUSES)),
    *(f" {mark}" for mark in MARKS),
    *(str(digit) for digit in range(10)),
    *(f" {spelling}" for spelling in SPELLINGS),
    *("\n", "\n", "verb:", "code-00", "calc-00"),
)
Segments = list[tuple[str, bool]]


@dataclass(frozen=True)
class Mix:
    """What a corpus holds how much of, each a fraction.

    Attributes:
        lookups: of the skills' samples, lookup drills.
        two_houses: of those, drills in two houses at once.
        shifts: of the skills' samples, what a shift follows from and what comes of it: drills,
            reflections that infer it, requests that a known one solves, a third each.
        general: of the skills' samples, those in the words of the library's general templates.
        executed: of the failing commands, those that only execution finds fault with.
        dirty: of the playbooks, those with wrong entries.
        beside: of a house's playbooks, those with another house's facts as well.
        unknown: of the playbooks to solve with, those that lack just the verb that is needed.
    """

    lookups: float = 0.0
    two_houses: float = 0.0
    shifts: float = 0.0
    general: float = 0.0
    executed: float = 0.0
    dirty: float = 1 / 3
    beside: float = 0.4
    unknown: float = 0.0


class Drills:
    """Copying, lookups and shifts, and the material that they share with the skills.

    Args:
        seed: of the samples.
        turn: wraps a user message in the chat format, up to and with the assistant header.
        mix: how much of what.
    """

    def __init__(self, seed: int, turn: Callable[[str], str], mix: Mix | None) -> None:
        self.rng = random.Random(seed)
        self.turn = turn
        self.mix = mix or Mix()

    def echo(self) -> Segments:
        """Random words in, the same words out.

        Every answer token teaches "find what came before, and what followed it there". Without
        this, lookup by key had not formed after 700 batches of recitals (LOG.md).
        """
        rng = self.rng
        words = [rng.choice(_ECHO_WORDS) for _ in range(rng.randint(6, 30))]
        text = "".join(words)
        return [(self.turn("echo" + text), False), (text, True)]

    def recite(self, dialect: Dialect) -> Segments:
        """Facts in, the same facts in canonical order out: teaches key lookup."""
        facts = self._subset(dialect)
        if self.rng.random() < 0.5:
            facts = [fact for fact in dialect.facts() if "verb:" in fact]
            kept = set(self.rng.sample(facts, self.rng.randint(2, len(facts))))
            facts = [fact for fact in facts if fact in kept]
        shuffled = self.rng.sample(facts, len(facts))
        notes = "recite\n" + "\n".join(shuffled)
        return [(self.turn(notes), False), ("\n".join(facts), True)]

    def look_up(self, dialect: Dialect) -> Segments:
        """One playbook, then turn by turn a device in and its verb out.

        Eight lookups a sample: within whole commands, one lookup each, this skill came last and
        late (LOG.md).
        """
        if self._chance(self.mix.two_houses):
            return self._look_up_in_two(dialect)
        notes = "\n".join(self._beside(dialect, dialect.facts()))
        segments: Segments = []
        for device in self.rng.sample(DEVICES, len(DEVICES)):
            text = f"the {device}"
            if not segments:
                text = "\n".join(["look up", notes, *dialect.heading(), text])
            segments += [(self.turn(text), False), (f" {dialect.verb_of(device)}", True)]
        return segments

    def _look_up_in_two(self, dialect: Dialect) -> Segments:
        """Both houses' verbs in any order, and each turn names one of them."""
        rng = self.rng
        both = [
            replace(d, house=house)
            for d, house in zip((dialect, Dialect.sample(rng)), rng.sample(HOUSES, 2), strict=True)
        ]
        verbs = [fact for d in both for fact in d.facts() if "verb:" in fact]
        notes = "\n".join(["look up", *rng.sample(verbs, len(verbs))])
        segments: Segments = []
        for _ in range(10):
            asked, device = rng.choice(both), rng.choice(DEVICES)
            text = "\n".join([*([] if segments else [notes]), *asked.heading(), f"the {device}"])
            segments += [(self.turn(text), False), (f" {asked.verb_of(device)}", True)]
        return segments

    def shift(self, dialect: Dialect) -> Segments:
        """Turn by turn: what was written and came of it, the shift; or a shift, what to write.

        From reflections alone, one in a hundred samples, the inference never formed (LOG.md).
        """
        rng = self.rng
        dialect = replace(dialect, shift=rng.choice(SHIFTS))
        infers, segments = rng.random() < 0.6, Segments()
        for _ in range(10):
            level = rng.choice(LEVELS)
            if infers:
                other = replace(dialect, shift=rng.choice(SHIFTS))
                meant, device = other.meant(level), rng.choice(DEVICES)
                tried, result = other.write(level), f"stands at {meant}"
                if rng.random() < 0.5:
                    # As a whole command, and the whole message.
                    tried = other.command(device, rng.choice(ROOMS), meant)
                    wanted = rng.choice([n for n in LEVELS if n != meant])
                    result = f"the {device} {result}, wanted {wanted}"
                text, answer = f"tried: {tried}\nresult: {result}", f"shift: {other.shift}"
            else:
                text, answer = f"to {level}", dialect.write(dialect.shifted(level))
            first = [f"level: {dialect.notation}", f"shift: {dialect.shift}"]
            lines = ["shift", *([] if infers else first)] if not segments else []
            segments += [(self.turn("\n".join([*lines, text])), False), (answer, True)]
        return segments

    # -- the material ----------------------------------------------------------------------

    def settled(self, dialect: Dialect) -> Dialect:
        """The dialect, now and then with a shift or in a house."""
        rng = self.rng
        shift = rng.choice(SHIFTS) if rng.random() < 0.2 else 0
        return replace(dialect, shift=shift, house=rng.choice(HOUSES) if rng.random() < 0.3 else "")

    def _chance(self, share: float) -> bool:
        """What never happens draws no number: a corpus stays what it was without it."""
        return share > 0.0 and self.rng.random() < share

    def _beside(self, dialect: Dialect, facts: Sequence[str]) -> list[str]:
        """Facts in any order; of a house, now and then beside those of another one."""
        rng = self.rng
        if dialect.house and rng.random() < self.mix.beside:
            house = rng.choice([name for name in HOUSES if name != dialect.house])
            other = replace(self.settled(Dialect.sample(rng)), house=house)
            facts = [*facts, *self._subset(other)]
        return rng.sample(facts, len(facts))

    def _subset(self, dialect: Dialect) -> list[str]:
        keep = self.rng.random() ** 0.7
        return [fact for fact in dialect.facts() if self.rng.random() < keep]
