"""The gates that a base model must pass before it ships, measured on held-out dialects."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from resd.context.curation import parse_curation
from resd.context.playbook import Entry
from resd.context.reflection import Reflection, parse_reflection
from resd.lab_base.corpus import (
    HELD_OUT,
    Corpus,
    curation_target,
    lab_templates,
    lesson_of,
    question,
    reflection_target,
)
from resd.lab_base.tokenizer import turn
from resd.tasks.lab.dialect import Dialect
from resd.tasks.lab.interpreter import Finding, Request, interpret, slot_of

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
        entries = [Entry(f"code-{i:05d}", fact) for i, fact in enumerate(facts, start=1)]
        text = world.templates.render("teacher", question(requests), entries)
        cases.append((dialect, requests))
        prompts.append(turn(text))
    answers = complete(prompts)
    right = [interpret(d, r, a).passed for (d, r), a in zip(cases, answers, strict=True)]
    return sum(right) / number


def _raw_feedback(world: _HeldOut, complete: Complete, number: int) -> float:
    cases: list[tuple[Dialect, Request, Finding]] = []
    prompts: list[str] = []
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
    right = [not p.rejected and p.operations == w for p, w in zip(parsed, wanted, strict=True)]
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
