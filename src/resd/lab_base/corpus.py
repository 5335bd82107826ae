"""What the lab's base model is pretrained on: skills, over thousands of dialects.

Given any subset of facts in context, solve a request (and guess the rest from the prior); use raw
feedback as well as reflections; reflect; tag; curate; recite. A third of the playbooks are dirty:
they hold one to three wrong or conflicting entries, and the targets trust the feedback. Some
dialects have a house or a shift, some questions state facts, some messages are wrong. The prompts
come from the very templates that training uses, a part of them from the library's general ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from resd.context.playbook import Entry
from resd.context.reflection import Reflection
from resd.context.templates import Templates
from resd.lab_base.attempts import attempt
from resd.lab_base.drills import Drills, Mix, Segments
from resd.lab_base.targets import (
    GENERAL_LESSONS,
    WRONG_WORDS,
    counts,
    curation_target,
    lesson_of,
    question,
    reflection_target,
    review_target,
    solution,
)
from resd.lab_base.wording import reworded
from resd.tasks.lab.dialect import (
    DEVICES,
    LEVELS,
    ROOMS,
    SHIFTS,
    Dialect,
)
from resd.tasks.lab.environment import wrong_message
from resd.tasks.lab.interpreter import Finding, Request, interpret

HELD_OUT = 1000


class Corpus(Drills):
    """An endless, seeded stream of pretraining samples.

    A sample is a list of segments (text, taught): user turns are not taught, answers are.

    Args:
        seed: of the stream.
        templates: the lab's templates.
        turn: wraps a user message in the chat format, up to and with the assistant header.
        mix: how much of what.
    """

    def __init__(
        self,
        seed: int,
        templates: Templates,
        turn: Callable[[str], str],
        mix: Mix | None = None,
    ) -> None:
        super().__init__(seed, turn, mix)
        self.templates = templates
        self._others = reworded(self.rng) if self.mix.general else []
        # Evaluation dialects are never trained on.
        self._held_out = {Dialect.numbered(number) for number in range(HELD_OUT)}

    def sample(self, copying: float) -> Segments:
        """One sample; an echo or a recital with probability `copying`, else one of the skills."""
        rng = self.rng
        dialect = self.dialect()
        if rng.random() < copying:
            return self.echo() if rng.random() < 0.5 else self.recite(dialect)
        if self._chance(self.mix.lookups):
            return self.look_up(dialect)
        if self._chance(self.mix.shifts):
            return rng.choice((self.shift, self.reflect_on_shift, self.solve_shifted))(dialect)
        kind = rng.choices(
            (self.solve, self.reflect, self.curate, self.review), weights=(50, 26, 18, 6)
        )[0]
        return kind(dialect)

    def dialect(self) -> Dialect:
        """A dialect that is not held out; some have a shift, some a house."""
        while True:
            dialect = Dialect.sample(self.rng)
            if dialect not in self._held_out:
                return self.settled(dialect)

    def known(self) -> int:
        """How many facts a question states: mostly none."""
        return self.rng.randint(1, 5) if self.rng.random() < 0.2 else 0

    def wording(self) -> Templates:
        """The templates of a sample."""
        # (One number is drawn in any case.)
        return (
            self.rng.choice(self._others)
            if self.rng.random() < self.mix.general
            else self.templates
        )

    # -- the skills ------------------------------------------------------------------------

    def solve(self, dialect: Dialect) -> Segments:
        """Solve a request with some of playbook, trial, feedback, reflection and solution."""
        rng = self.rng
        requests, known = self.requests(), self.known()
        gold = solution(dialect, requests)
        mode = rng.random()
        playbook = [] if mode < 0.4 else self.playbook(dialect, complete=mode > 0.65)
        if playbook and self._chance(self.mix.unknown):
            needed = dialect.verb_of(requests[0].device)
            playbook = self.entries(
                dialect, [fact for fact in dialect.facts() if not fact.endswith(f" {needed}")]
            )
        trial, finding = "", None
        if rng.random() < (0.75 if mode < 0.4 else 0.6):
            trial, finding = self.failure(dialect, requests, known)
            if playbook and rng.random() < 0.1:
                finding = wrong_message(dialect, requests, trial, rng) or finding
        reflection = Reflection()
        if finding is not None and rng.random() < 0.5:
            reflection = Reflection(WRONG_WORDS[finding.kind], lesson_of(finding))
        text = self.wording().render(
            "teacher",
            question=question(requests, dialect, known),
            playbook=playbook,
            trial=trial,
            feedback=finding.feedback if finding else "",
            reflection=reflection,
            solution=gold if rng.random() < 0.06 else "",
        )
        segments = [(self.turn(text), False), (gold, True)]
        if playbook and rng.random() < 0.4:
            for _ in range(3):
                more = self.requests()
                text = question(more, dialect, known)
                segments += [(self.turn(text), False), (solution(dialect, more), True)]
        return segments

    def reflect(self, dialect: Dialect) -> Segments:
        """Write a reflection on a failure."""
        requests, known = self.requests(), self.known()
        playbook = self.playbook(dialect, complete=self.rng.random() < 0.3)
        return self._reflect(
            dialect, requests, known, playbook, *self.failure(dialect, requests, known)
        )

    def reflect_on_shift(self, dialect: Dialect) -> Segments:
        """Write a reflection that infers a shift, mostly one that the playbook does not hold.

        What the drills teach is not used here unless it is asked for here as well (LOG.md).
        """
        rng = self.rng
        dialect = replace(dialect, shift=rng.choice(SHIFTS))
        requests, known = self.requests(), self.known()
        trial, finding = self.failure(dialect, requests, known)
        while finding.kind != "shift":
            trial, finding = self.failure(dialect, requests, known)
        playbook = self.playbook(dialect, complete=False)
        if rng.random() < 0.8:
            playbook = [entry for entry in playbook if entry.content != finding.fact]
        return self._reflect(dialect, requests, known, playbook, trial, finding)

    def _reflect(
        self,
        dialect: Dialect,
        requests: Sequence[Request],
        known: int,
        playbook: Sequence[Entry],
        trial: str,
        finding: Finding,
    ) -> Segments:
        text = self.wording().render(
            "reflect",
            question=question(requests, dialect, known),
            playbook=playbook,
            trial=trial,
            feedback=finding.feedback,
        )
        return [(self.turn(text), False), (reflection_target(finding, playbook), True)]

    def solve_shifted(self, dialect: Dialect) -> Segments:
        """Solve four requests by a playbook that holds the shift."""
        dialect = replace(dialect, shift=self.rng.choice(SHIFTS))
        playbook, segments = self.playbook(dialect, complete=True), Segments()
        for number in range(4):
            requests = self.requests()
            text = question(requests, dialect)
            if number == 0:
                text = self.wording().render("teacher", question=text, playbook=playbook)
            segments += [(self.turn(text), False), (solution(dialect, requests), True)]
        return segments

    def curate(self, dialect: Dialect) -> Segments:
        """Curate a playbook after a reflection."""
        rng = self.rng
        playbook = self.playbook(dialect, complete=rng.random() < 0.3)
        lesson = self.lesson(dialect, playbook)
        if rng.random() < 0.08:
            lesson = rng.choice(list(GENERAL_LESSONS.values()))
        wrong = rng.choice(list(WRONG_WORDS.values())) if rng.random() < 0.5 else ""
        reflection = Reflection(wrong, lesson)
        text = self.wording().render(
            "curate", question="", playbook=playbook, reflection=reflection
        )
        return [(self.turn(text), False), (curation_target(lesson, playbook), True)]

    def review(self, dialect: Dialect) -> Segments:
        """Tag entries after a success."""
        requests, known = self.requests(), self.known()
        playbook = self.playbook(dialect, complete=self.rng.random() < 0.3)
        text = self.wording().render(
            "review",
            question=question(requests, dialect, known),
            playbook=playbook,
            solution=solution(dialect, requests),
        )
        return [(self.turn(text), False), (review_target(dialect, requests, playbook), True)]

    # -- their material --------------------------------------------------------------------

    def requests(self) -> list[Request]:
        """One to three requests, mostly one."""
        rng = self.rng
        number = rng.choices((1, 2, 3), weights=(70, 20, 10))[0]
        return [
            Request(rng.choice(DEVICES), rng.choice(ROOMS), rng.choice(LEVELS))
            for _ in range(number)
        ]

    def lesson(self, dialect: Dialect, playbook: Sequence[Entry]) -> str:
        """A true lesson; mostly one that the playbook lacks, if it lacks any."""
        known = {entry.content for entry in playbook}
        missing = [fact for fact in dialect.facts() if fact not in known]
        return self.rng.choice(missing if missing and self.rng.random() < 0.6 else dialect.facts())

    def failure(
        self, dialect: Dialect, requests: Sequence[Request], known: int = 0
    ) -> tuple[str, Finding]:
        """A response that fails, and what the interpreter says of it."""
        while True:
            executed = self.mix.executed
            lines = [attempt(self.rng, dialect, one, known, executed) for one in requests]
            if self.rng.random() < 0.03:
                lines.pop()
            trial = "\n".join(lines)
            finding = interpret(dialect, requests, trial).finding
            if finding is not None:
                return trial, finding

    def playbook(self, dialect: Dialect, *, complete: bool) -> list[Entry]:
        """Shuffled entries with rising ids; a third of the playbooks are dirty."""
        rng = self.rng
        facts = dialect.facts() if complete else self._subset(dialect)
        if rng.random() < self.mix.dirty:
            facts = facts + [self._wrong_fact(dialect) for _ in range(rng.randint(1, 3))]
            if not complete and rng.random() < 0.5:
                rng.shuffle(facts)
                facts = facts[: max(1, len(facts) - 2)]
        return self.entries(dialect, list(dict.fromkeys(facts)))

    def entries(self, dialect: Dialect, facts: Sequence[str]) -> list[Entry]:
        """Facts in any order, with rising ids."""
        rng, facts = self.rng, self._beside(dialect, facts)
        serials = sorted(rng.sample(range(1, rng.choice((40, 120, 999))), len(facts)))
        return [
            Entry(
                f"{'calc' if counts(fact) else 'code'}-{serial:05d}",
                fact,
                helpful=rng.randint(0, 20),
                harmful=rng.choice((0, 0, 0, 1, 2)),
            )
            for fact, serial in zip(facts, serials, strict=True)
        ]

    def _wrong_fact(self, dialect: Dialect) -> str:
        truth = dialect.facts()
        while True:
            shift = self.rng.choice(SHIFTS) if dialect.shift else 0
            other = replace(Dialect.sample(self.rng), shift=shift, house=dialect.house)
            fact = self.rng.choice(other.facts())
            if fact not in truth:
                return fact
