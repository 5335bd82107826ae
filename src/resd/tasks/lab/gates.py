"""The gates that a base model must pass before it ships, measured on held-out dialects."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from resd.context.curation import parse_curation
from resd.context.reflection import Reflection, parse_reflection
from resd.tasks.lab.corpus import (
    HELD_OUT,
    Corpus,
    curation_target,
    lab_templates,
    lesson_of,
    question,
    reflection_target,
)
from resd.tasks.lab.dialect import Dialect
from resd.tasks.lab.interpreter import Finding, Request, check_command, interpret
from resd.tasks.lab.tokenizer import turn

THRESHOLDS = {
    "complete_playbook": 0.95,
    "raw_feedback": 0.95,
    "reflection": 0.90,
    "curation": 0.90,
}
MAX_WITHOUT_CONTEXT = 0.001
Complete = Callable[[Sequence[str]], list[str]]


class _HeldOut(Corpus):
    """Samples over the held-out dialects only."""

    def dialect(self) -> Dialect:
        return Dialect.numbered(self.rng.randrange(HELD_OUT))


def measure_gates(complete: Complete, number: int, seed: int = 0) -> dict[str, float]:
    """Measure every gate on `number` prompts.

    Args:
        complete: greedy answers to prompts that are in the chat format already.
        number: prompts per gate.
        seed: of dialects and requests.

    Returns:
        Fractions between 0 and 1, by gate; `reflection_tags` has no threshold.
    """
    world = _HeldOut(seed, lab_templates(), turn)
    return {
        "complete_playbook": _complete_playbook(world, complete, number),
        "raw_feedback": _raw_feedback(world, complete, number),
        **_reflection(world, complete, number),
        "curation": _curation(world, complete, number),
    }


def _complete_playbook(world: _HeldOut, complete: Complete, number: int) -> float:
    cases, prompts = [], []
    for _ in range(number):
        dialect, requests = world.dialect(), world.requests()
        facts = dialect.facts()
        world.rng.shuffle(facts)
        entries = [_entry(i, fact) for i, fact in enumerate(facts, start=1)]
        text = world.templates.render("teacher", question(requests), entries)
        cases.append((dialect, requests))
        prompts.append(turn(text))
    answers = complete(prompts)
    right = [interpret(d, r, a).passed for (d, r), a in zip(cases, answers, strict=True)]
    return sum(right) / number


def _raw_feedback(world: _HeldOut, complete: Complete, number: int) -> float:
    cases, prompts = [], []
    while len(prompts) < number:
        dialect, requests = world.dialect(), world.requests()[:1]
        trial, finding = world.failure(dialect, requests)
        if finding.fact is None:
            continue
        text = world.templates.render(
            "teacher", question(requests), trial=trial, feedback=finding.feedback
        )
        cases.append((dialect, requests[0], finding))
        prompts.append(turn(text))
    answers = complete(prompts)
    return sum(uses(*case, a) for case, a in zip(cases, answers, strict=True)) / number


def uses(dialect: Dialect, request: Request, finding: Finding, answer: str) -> bool:
    """Whether an answer uses what the feedback taught.

    The rest of the answer may be wrong: everything else of the dialect is replaced by what the
    answer did, as far as the interpreter gets.
    """
    words = answer.split()
    if finding.kind == "open":
        return words[:1] == [dialect.opener]
    if finding.kind == "close":
        return words[-1:] == [dialect.closer]
    again = check_command(dialect, request, answer)
    return again is None or again.kind not in (finding.kind, "shape") and not (
        # An earlier complaint would hide whether the taught fact was used.
        _STAGES.index(again.kind) < _STAGES.index(finding.kind)
    ) or (finding.kind == "verb" and again.kind == "verb" and again.fact != finding.fact)


_STAGES = ("open", "close", "shape", "order", "room", "verb", "place", "level")


def _reflection(world: _HeldOut, complete: Complete, number: int) -> dict[str, float]:
    cases, prompts = [], []
    for _ in range(number):
        dialect, requests = world.dialect(), world.requests()
        playbook = world.playbook(dialect, complete=world.rng.random() < 0.3)
        trial, finding = world.failure(dialect, requests)
        text = world.templates.render(
            "reflect", question(requests), playbook, trial, finding.feedback
        )
        cases.append((finding, parse_reflection(reflection_target(finding, playbook)).tags))
        prompts.append(turn(text))
    reflections = [parse_reflection(answer) for answer in complete(prompts)]
    pairs = list(zip(cases, reflections, strict=True))
    return {
        "reflection": sum(r.what_to_do == lesson_of(f) for (f, _), r in pairs) / number,
        "reflection_tags": sum(set(r.tags) == set(tags) for (_, tags), r in pairs) / number,
    }


def _curation(world: _HeldOut, complete: Complete, number: int) -> float:
    wanted, prompts = [], []
    for _ in range(number):
        dialect = world.dialect()
        playbook = world.playbook(dialect, complete=world.rng.random() < 0.3)
        lesson = world.lesson(dialect, playbook)
        text = world.templates.render("curate", "", playbook, reflection=Reflection("", lesson))
        wanted.append(parse_curation(curation_target(lesson, playbook)).operations)
        prompts.append(turn(text))
    answers = complete(prompts)
    parsed = [parse_curation(answer) for answer in answers]
    right = [
        not p.rejected and p.operations == w for p, w in zip(parsed, wanted, strict=True)
    ]
    return sum(right) / number


def success_without_context(complete: Complete, number: int, seed: int = 0) -> float:
    """Fraction of fresh single requests solved without any context, on held-out dialects."""
    rng = random.Random(seed)
    world = _HeldOut(seed, lab_templates(), turn)
    cases = []
    for _ in range(number):
        cases.append((Dialect.numbered(rng.randrange(HELD_OUT)), world.requests()[:1]))
    answers = complete([turn(question(requests)) for _, requests in cases])
    right = [interpret(d, r, a).passed for (d, r), a in zip(cases, answers, strict=True)]
    return sum(right) / number


def _entry(serial: int, fact: str):  # type: ignore[no-untyped-def]
    from resd.context.playbook import Entry

    return Entry(f"code-{serial:05d}", fact)
