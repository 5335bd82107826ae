"""What the lab's base model is pretrained on: skills, over thousands of dialects.

Given any subset of facts in context, solve a request (and guess the rest from the prior); use raw
feedback as well as reflections; reflect; tag; curate; recite. A third of the playbooks are dirty:
they hold one to three wrong or conflicting entries, and the targets trust the feedback. The
prompts come from the very templates that training uses.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

from resd.context.playbook import Entry
from resd.context.reflection import Reflection
from resd.context.templates import Templates
from resd.tasks.lab.dialect import (
    CLOSERS,
    DEVICES,
    LEVELS,
    MARKS,
    NOTATIONS,
    OPENERS,
    ORDERS,
    ROOMS,
    SPELLINGS,
    VERBS,
    Dialect,
    contradicts,
)
from resd.tasks.lab.environment import LabEnvironment
from resd.tasks.lab.interpreter import Finding, Request, interpret

HELD_OUT = 1000
WRONG_WORDS = {
    "open": "opener",
    "close": "closer",
    "shape": "shape",
    "order": "order",
    "room": "mark",
    "verb": "verb",
    "place": "place",
    "level": "level",
}
GENERAL_LESSONS = {
    "shape": "one room, one verb, one level",
    "place": "take the room of the request",
}
_ECHO_WORDS = (
    *(f" {word}" for word in (*DEVICES, *ROOMS, *VERBS, *OPENERS, *CLOSERS)),
    *(f" {mark}" for mark in MARKS),
    *(str(digit) for digit in range(10)),
    *(f" {spelling}" for spelling in SPELLINGS),
    *("\n", "\n", "verb:", "code-00", "calc-00"),
)
Segments = list[tuple[str, bool]]


def compact(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def lesson_of(finding: Finding) -> str:
    """What a perfect reflector says to do."""
    return finding.fact or GENERAL_LESSONS[finding.kind]


def reflection_target(finding: Finding, playbook: Sequence[Entry]) -> str:
    """A perfect reflection: what follows from the feedback, and tags by it."""
    tags = []
    for entry in playbook:
        if finding.fact is not None and entry.content == finding.fact:
            tags.append({"id": entry.id, "tag": "helpful"})
        elif finding.fact is not None and contradicts(entry.content, finding.fact):
            tags.append({"id": entry.id, "tag": "harmful"})
    return compact(
        {
            "what_went_wrong": WRONG_WORDS[finding.kind],
            "what_to_do": lesson_of(finding),
            "tags": tags,
        }
    )


def curation_target(lesson: str, playbook: Sequence[Entry]) -> str:
    """A perfect curation: add what is missing, replace what is contradicted."""
    if lesson in GENERAL_LESSONS.values():
        return compact({"operations": []})
    known = any(entry.content == lesson for entry in playbook)
    operations: list[dict[str, str]] = []
    for entry in playbook:
        if contradicts(entry.content, lesson):
            if known:
                operations.append({"op": "REMOVE", "id": entry.id})
            else:
                operations.append({"op": "UPDATE", "id": entry.id, "content": lesson})
                known = True
    if not known:
        section = "calc" if lesson.startswith("level:") else "code"
        operations.append({"op": "ADD", "section": section, "content": lesson})
    return compact({"operations": operations})


def review_target(dialect: Dialect, requests: Sequence[Request], playbook: Sequence[Entry]) -> str:
    """Perfect tags after a success: what the solution shows of verbs, and what it refutes."""
    shown = [f for f in dialect.facts() if not f.startswith("verb:")]
    shown += [f"verb: {r.device} {dialect.verb_of(r.device)}" for r in requests]
    verbs = shown[5:]
    tags = []
    for entry in playbook:
        if entry.content in verbs:
            tags.append({"id": entry.id, "tag": "helpful"})
        elif any(contradicts(entry.content, fact) for fact in shown):
            tags.append({"id": entry.id, "tag": "harmful"})
    return compact({"tags": tags})


class Corpus:
    """An endless, seeded stream of pretraining samples.

    A sample is a list of segments (text, taught): user turns are not taught, answers are.

    Args:
        seed: of the stream.
        templates: the lab's templates.
        turn: wraps a user message in the chat format, up to and with the assistant header.
        lookups: fraction of lookup drills among the skills' samples.
    """

    def __init__(
        self,
        seed: int,
        templates: Templates,
        turn: Callable[[str], str],
        lookups: float = 0.0,
    ) -> None:
        self.rng = random.Random(seed)
        self.templates = templates
        self.turn = turn
        self.lookups = lookups
        # Evaluation dialects are never trained on.
        self._held_out = {Dialect.numbered(number) for number in range(HELD_OUT)}

    def sample(self, copying: float) -> Segments:
        """One sample; an echo or a recital with probability `copying`, else one of the skills."""
        rng = self.rng
        dialect = self.dialect()
        if rng.random() < copying:
            return self.echo() if rng.random() < 0.5 else self.recite(dialect)
        if self.lookups and rng.random() < self.lookups:
            return self.look_up(dialect)
        kind = rng.choices(
            (self.solve, self.reflect, self.curate, self.review), weights=(50, 26, 18, 6)
        )[0]
        return kind(dialect)

    def dialect(self) -> Dialect:
        """A dialect that is not held out."""
        while True:
            dialect = Dialect.sample(self.rng)
            if dialect not in self._held_out:
                return dialect

    def look_up(self, dialect: Dialect) -> Segments:
        """One playbook, then turn by turn a device in and its verb out.

        Eight lookups a sample: within whole commands, one lookup each, this skill came last and
        late (LOG.md).
        """
        notes = "\n".join(self.rng.sample(dialect.facts(), len(dialect.facts())))
        segments: Segments = []
        for device in self.rng.sample(DEVICES, len(DEVICES)):
            text = f"look up\n{notes}\nthe {device}" if not segments else f"the {device}"
            segments += [(self.turn(text), False), (f" {dialect.verb_of(device)}", True)]
        return segments

    # -- the skills ------------------------------------------------------------------------

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
            facts = [fact for fact in dialect.facts() if fact.startswith("verb:")]
            kept = set(self.rng.sample(facts, self.rng.randint(2, len(facts))))
            facts = [fact for fact in facts if fact in kept]
        shuffled = self.rng.sample(facts, len(facts))
        notes = "recite\n" + "\n".join(shuffled)
        return [(self.turn(notes), False), ("\n".join(facts), True)]

    def solve(self, dialect: Dialect) -> Segments:
        """Solve a request with some of playbook, trial, feedback, reflection and solution."""
        rng = self.rng
        requests = self.requests()
        gold = solution(dialect, requests)
        mode = rng.random()
        playbook = [] if mode < 0.4 else self.playbook(dialect, complete=mode > 0.65)
        trial, finding = "", None
        if rng.random() < (0.75 if mode < 0.4 else 0.6):
            trial, finding = self.failure(dialect, requests)
        reflection = Reflection()
        if finding is not None and rng.random() < 0.5:
            reflection = Reflection(WRONG_WORDS[finding.kind], lesson_of(finding))
        text = self.templates.render(
            "teacher",
            question=question(requests),
            playbook=playbook,
            trial=trial,
            feedback=finding.feedback if finding else "",
            reflection=reflection,
            solution=gold if rng.random() < 0.06 else "",
        )
        segments = [(self.turn(text), False), (gold, True)]
        if playbook and rng.random() < 0.3:
            for _ in range(2):
                more = self.requests()
                segments += [(self.turn(question(more)), False), (solution(dialect, more), True)]
        return segments

    def reflect(self, dialect: Dialect) -> Segments:
        """Write a reflection on a failure."""
        requests = self.requests()
        playbook = self.playbook(dialect, complete=self.rng.random() < 0.3)
        trial, finding = self.failure(dialect, requests)
        text = self.templates.render(
            "reflect",
            question=question(requests),
            playbook=playbook,
            trial=trial,
            feedback=finding.feedback,
        )
        return [(self.turn(text), False), (reflection_target(finding, playbook), True)]

    def curate(self, dialect: Dialect) -> Segments:
        """Curate a playbook after a reflection."""
        rng = self.rng
        playbook = self.playbook(dialect, complete=rng.random() < 0.3)
        lesson = self.lesson(dialect, playbook)
        if rng.random() < 0.08:
            lesson = rng.choice(list(GENERAL_LESSONS.values()))
        reflection = Reflection("", lesson)
        text = self.templates.render(
            "curate", question="", playbook=playbook, reflection=reflection
        )
        return [(self.turn(text), False), (curation_target(lesson, playbook), True)]

    def review(self, dialect: Dialect) -> Segments:
        """Tag entries after a success."""
        requests = self.requests()
        playbook = self.playbook(dialect, complete=self.rng.random() < 0.3)
        text = self.templates.render(
            "review",
            question=question(requests),
            playbook=playbook,
            solution=solution(dialect, requests),
        )
        return [(self.turn(text), False), (review_target(dialect, requests, playbook), True)]

    # -- their material --------------------------------------------------------------------

    def requests(self) -> list[Request]:
        """One to three requests, mostly one."""
        rng = self.rng
        number = rng.choices((1, 2, 3), weights=(78, 14, 8))[0]
        return [
            Request(rng.choice(DEVICES), rng.choice(ROOMS), rng.choice(LEVELS))
            for _ in range(number)
        ]

    def lesson(self, dialect: Dialect, playbook: Sequence[Entry]) -> str:
        """A true lesson; mostly one that the playbook lacks, if it lacks any."""
        known = {entry.content for entry in playbook}
        missing = [fact for fact in dialect.facts() if fact not in known]
        return self.rng.choice(missing if missing and self.rng.random() < 0.6 else dialect.facts())

    def failure(self, dialect: Dialect, requests: Sequence[Request]) -> tuple[str, Finding]:
        """A response that fails, and what the interpreter says of it."""
        while True:
            lines = [self._attempt(dialect, request) for request in requests]
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
        if rng.random() < 1 / 3:
            facts = facts + [self._wrong_fact(dialect) for _ in range(rng.randint(1, 3))]
            if not complete and rng.random() < 0.5:
                rng.shuffle(facts)
                facts = facts[: max(1, len(facts) - 2)]
        facts = list(dict.fromkeys(facts))
        rng.shuffle(facts)
        serials = sorted(rng.sample(range(1, rng.choice((40, 120, 999))), len(facts)))
        return [
            Entry(f"{'calc' if fact.startswith('level') else 'code'}-{serial:05d}", fact)
            for fact, serial in zip(facts, serials, strict=True)
        ]

    def _subset(self, dialect: Dialect) -> list[str]:
        keep = self.rng.random() ** 0.7
        return [fact for fact in dialect.facts() if self.rng.random() < keep]

    def _wrong_fact(self, dialect: Dialect) -> str:
        truth = dialect.facts()
        while True:
            fact = self.rng.choice(Dialect.sample(self.rng).facts())
            if fact not in truth:
                return fact

    def _attempt(self, dialect: Dialect, request: Request) -> str:
        """A student's attempt, at any stage of learning; some are garbage."""
        rng = self.rng
        if rng.random() < 0.5:
            # A student that has learnt all conventions up to some point.
            learnt = rng.randint(0, 6)
            right = [i < learnt or rng.random() < 0.3 for i in range(6)]
        else:
            skill = rng.random()
            right = [rng.random() < skill for _ in range(6)]
        guess = Dialect(
            opener=dialect.opener if right[0] else rng.choice(OPENERS),
            closer=dialect.closer if right[1] else rng.choice(CLOSERS),
            order=dialect.order if right[2] else rng.choice(ORDERS),
            mark=dialect.mark if right[3] else rng.choice(MARKS),
            verbs=dialect.verbs if right[4] else tuple(rng.sample(VERBS, len(VERBS))),
            notation=dialect.notation if right[5] else rng.choice(tuple(NOTATIONS)),
        )
        room = request.room if rng.random() < 0.98 else rng.choice(ROOMS)
        line = guess.command(request.device, room, request.level)
        return self._garble(line) if rng.random() < 0.06 else line

    def _garble(self, line: str) -> str:
        rng = self.rng
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


def question(requests: Sequence[Request]) -> str:
    """The student's prompt."""
    return "\n".join(request.text() for request in requests)


def solution(dialect: Dialect, requests: Sequence[Request]) -> str:
    """The right response."""
    return "\n".join(dialect.command(r.device, r.room, r.level) for r in requests)


def lab_templates() -> Templates:
    """The lab's own templates."""
    return Templates([LabEnvironment.templates])


def vocabulary() -> list[str]:
    """Words that every tokenizer of the lab should know whole."""
    marks = [f"{mark}{room}" for mark in MARKS for room in ROOMS]
    return [*DEVICES, *ROOMS, *VERBS, *OPENERS, *CLOSERS, *marks, *NOTATIONS, *SPELLINGS]
