"""The gates that a base model must pass before it ships, measured on held-out dialects."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from resd.context.curation import parse_curation
from resd.context.playbook import Entry
from resd.context.reflection import Reflection, parse_reflection
from resd.context.templates import Templates
from resd.lab_base.corpus import HELD_OUT, Corpus
from resd.lab_base.targets import curation_target, lesson_of, question, reflection_target
from resd.lab_base.tokenizer import turn
from resd.lab_base.wording import lab_templates
from resd.tasks.lab.dialect import HOUSES, SHIFTS, Dialect
from resd.tasks.lab.interpreter import Finding, Request, interpret, slot_of

THRESHOLDS = {
    "playbook": 0.95,
    "raw_feedback": 0.95,
    "reflection": 0.90,
    "curation": 0.90,
    "house": 0.95,
    "inference": 0.90,
    "known": 0.95,
    "general_playbook": 0.90,
    "general_reflection": 0.90,
    "general_curation": 0.90,
}
# Measured beside them.
WITHOUT_THRESHOLD = ("shifted", "two_houses")
MAX_WITHOUT_CONTEXT = 0.001
Complete = Callable[[Sequence[str]], list[str]]


class HeldOut(Corpus):
    """Samples over the held-out dialects only."""

    def dialect(self) -> Dialect:
        """One of those that no base model was trained on."""
        return Dialect.numbered(self.rng.randrange(HELD_OUT))


@dataclass(frozen=True)
class Case:
    """One prompt of a gate, and what its judge has to know; plain data."""

    prompt: str
    truth: tuple[Any, ...]


def measure_gates(complete: Complete, number: int, seed: int = 0) -> dict[str, float]:
    """Measure every gate on `number` prompts.

    Args:
        complete: greedy answers to prompts that are in the chat format already.
        number: prompts per gate.
        seed: of dialects and requests.

    Returns:
        Fractions between 0 and 1, by gate; `reflection_tags`, `shifted` and `two_houses` have no
        threshold.
    """
    world = HeldOut(seed, lab_templates(), turn)
    gates: dict[str, float] = {}
    for name in (*THRESHOLDS, *WITHOUT_THRESHOLD):
        world.templates = Templates() if name.startswith("general_") else lab_templates()
        cases = make_cases(name.removeprefix("general_"), world, number)
        answers = complete([turn(case.prompt) for case in cases])
        pairs = list(zip(cases, answers, strict=True))
        judged = name.removeprefix("general_")
        gates[name] = sum(JUDGES[judged](*case.truth, answer) for case, answer in pairs) / number
        if name == "reflection":
            tagged = sum(_tags(case.truth[1], answer) for case, answer in pairs)
            gates["reflection_tags"] = tagged / number
    return gates


def make_cases(gate: str, world: HeldOut, number: int) -> list[Case]:
    """Prompts of one of `CASES`, in the words of the world's templates."""
    return [CASES[gate](world) for _ in range(number)]


# -- the prompts ---------------------------------------------------------------------------------


def _playbook(world: HeldOut) -> Case:
    dialect = world.dialect()
    return _by_facts(world, dialect, dialect.facts())


def _house(world: HeldOut) -> Case:
    dialect = replace(world.dialect(), house=world.rng.choice(HOUSES))
    return _by_facts(world, dialect, dialect.facts())


def _shifted(world: HeldOut) -> Case:
    """The playbook holds the shift, by which each level has to be written."""
    dialect = replace(world.dialect(), shift=world.rng.choice(SHIFTS))
    return _by_facts(world, dialect, dialect.facts())


def _two_houses(world: HeldOut) -> Case:
    """All of two houses, of which the question names one."""
    house, other = world.rng.sample(HOUSES, 2)
    dialect = replace(world.dialect(), house=house)
    return _by_facts(
        world, dialect, [*dialect.facts(), *replace(world.dialect(), house=other).facts()]
    )


def _known(world: HeldOut) -> Case:
    """The question states the conventions, the playbook has the verbs."""
    dialect = world.dialect()
    return _by_facts(world, dialect, dialect.facts()[5:], known=5)


def _by_facts(world: HeldOut, dialect: Dialect, facts: Sequence[str], known: int = 0) -> Case:
    requests = world.requests()
    facts = world.rng.sample(facts, len(facts))
    entries = [Entry(f"code-{i:05d}", fact) for i, fact in enumerate(facts, start=1)]
    text = world.templates.render("teacher", question(requests, dialect, known), entries)
    return Case(text, (dialect, requests))


def _raw_feedback(world: HeldOut) -> Case:
    while True:
        dialect, requests = world.dialect(), world.requests()[:1]
        trial, finding = world.failure(dialect, requests)
        if finding.fact is not None:
            text = world.templates.render(
                "teacher", question(requests, dialect), trial=trial, feedback=finding.feedback
            )
            return Case(text, (dialect, requests[0], finding))


def _reflection(world: HeldOut) -> Case:
    return _reflect(world, world.dialect(), world.requests(), lambda finding: True)


def _inference(world: HeldOut) -> Case:
    """The shift has to be inferred from what was written and what came of it."""
    dialect = replace(world.dialect(), shift=world.rng.choice(SHIFTS))
    return _reflect(world, dialect, world.requests()[:1], lambda found: found.kind == "shift")


def _reflect(
    world: HeldOut,
    dialect: Dialect,
    requests: Sequence[Request],
    wanted: Callable[[Finding], bool],
) -> Case:
    playbook = world.playbook(dialect, complete=world.rng.random() < 0.3)
    trial, finding = world.failure(dialect, requests)
    while not wanted(finding):
        trial, finding = world.failure(dialect, requests)
    question_ = question(requests, dialect)
    text = world.templates.render("reflect", question_, playbook, trial, finding.feedback)
    return Case(text, (finding, parse_reflection(reflection_target(finding, playbook)).tags))


def _curation(world: HeldOut) -> Case:
    dialect = world.dialect()
    playbook = world.playbook(dialect, complete=world.rng.random() < 0.3)
    lesson = world.lesson(dialect, playbook)
    text = world.templates.render("curate", "", playbook, reflection=Reflection("", lesson))
    return Case(text, (parse_curation(curation_target(lesson, playbook)).operations,))


CASES: dict[str, Callable[[HeldOut], Case]] = {
    "playbook": _playbook,
    "raw_feedback": _raw_feedback,
    "reflection": _reflection,
    "curation": _curation,
    "house": _house,
    "inference": _inference,
    "shifted": _shifted,
    "known": _known,
    "two_houses": _two_houses,
}

# -- the judges ----------------------------------------------------------------------------------


def _solves(dialect: Dialect, requests: Sequence[Request], answer: str) -> bool:
    return interpret(dialect, requests, answer).passed


def uses(dialect: Dialect, request: Request, finding: Finding, answer: str) -> bool:
    """Whether an answer uses what the feedback taught; the rest of it may be wrong.

    A wrong verb teaches what that verb drives: to use that is not to say it again.
    """
    words = answer.split()
    right = dialect.command(request.device, request.room, request.level).split()
    if finding.kind in ("open", "close"):
        place = 0 if finding.kind == "open" else -1
        return bool(words) and words[place] == right[place]
    if len(words) != len(right):
        return False
    if finding.kind == "order":
        slots = [slot_of(word) for word in words[1:-1]]
        return tuple(slots) == dialect.order
    if finding.kind == "verb":
        assert finding.fact is not None
        return finding.fact.split()[-1] not in words
    wanted = right[1 + dialect.order.index("level" if finding.kind == "level" else "room")]
    if finding.kind == "room":
        return any(word.startswith(dialect.mark) for word in words[1:-1])
    return wanted in words[1:-1]


def _reflects(finding: Finding, tags: Any, answer: str) -> bool:
    return parse_reflection(answer).what_to_do == lesson_of(finding)


def _tags(tags: Any, answer: str) -> bool:
    return set(parse_reflection(answer).tags) == set(tags)


def _curates(operations: Any, answer: str) -> bool:
    parsed = parse_curation(answer)
    return not parsed.rejected and parsed.operations == operations


JUDGES: dict[str, Callable[..., bool]] = {
    "playbook": _solves,
    "raw_feedback": uses,
    "reflection": _reflects,
    "curation": _curates,
    "house": _solves,
    "two_houses": _solves,
    "inference": _reflects,
    "shifted": _solves,
    "known": _solves,
}


def success_without_context(complete: Complete, number: int, seed: int = 0) -> float:
    """Fraction of fresh single requests solved without any context, on held-out dialects."""
    rng = random.Random(seed)
    world = HeldOut(seed, lab_templates(), turn)
    cases = []
    for _ in range(number):
        cases.append((Dialect.numbered(rng.randrange(HELD_OUT)), world.requests()[:1]))
    answers = complete([turn(question(requests, dialect)) for dialect, requests in cases])
    right = [interpret(d, r, a).passed for (d, r), a in zip(cases, answers, strict=True)]
    return sum(right) / number


def describe_gates(gates: dict[str, float]) -> tuple[str, bool]:
    """A table of gates and thresholds, and whether all are met."""
    lines, good = [], True
    for name, value in gates.items():
        limit = THRESHOLDS.get(name)
        if name == "without_context":
            met, wanted = value <= MAX_WITHOUT_CONTEXT, f"at most {MAX_WITHOUT_CONTEXT}"
        elif limit is not None:
            met, wanted = value >= limit, f"at least {limit}"
        else:
            met, wanted = True, "no gate"
        good = good and met
        lines.append(f"{name:20} {value:8.4f}  {wanted:15} {'met' if met else 'NOT MET'}")
    return "\n".join(lines), good
