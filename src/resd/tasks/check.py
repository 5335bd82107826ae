"""What an environment must hold before a model learns from it: `resd tasks check`.

A task that can be gamed will be gamed, and feedback that gives the answer away teaches copying.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from resd.errors import UserError
from resd.tasks.answers import last_code_block
from resd.tasks.base import Environment
from resd.tasks.copies import copied, was_changed
from resd.tasks.hostile import hostile_responses, near_misses
from resd.tasks.outcomes import judge
from resd.tasks.registry import TaskSpec, describe_error, load_environment, load_examples
from resd.tasks.scoring import Scorer, Scores, score
from resd.text import approximate_tokens, holds_phrase
from resd.types import Example, Outcome

State = Literal["ok", "warn", "fail"]
CountTokens = Callable[[Example], int]
Pair = tuple[Example, str]

HANG_SECONDS = 60.0
LONG_FEEDBACK = 4000
SHORT_SECRET = 4  # characters; a default secret below that stands in any text
_SAMPLE = 4  # examples that hostile responses are tried on, spread over both splits
_DIGEST_EXAMPLES = 50


@dataclass(frozen=True)
class Check:
    """One property, whether it holds, and what was seen."""

    name: str
    state: State
    detail: str


@dataclass
class _Subject:
    """An environment under test."""

    task: str
    args: Mapping[str, Any]
    seed: int
    environment: Environment
    examples: list[Example]
    golds: dict[str, str] = field(default_factory=dict)  # by `_key`
    sample: list[Example] = field(default_factory=list)
    failures: list[tuple[Example, str, str, Outcome]] = field(default_factory=list)


class _Hung(Exception):
    """An evaluation did not return."""


def run_checks(
    task: str,
    args: Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    limit: int | None = None,
    workers: int | None = None,
    count_tokens: CountTokens | None = None,
) -> Iterator[Check]:
    """Check a task; yields each result as soon as it is known.

    Args:
        task: as in `resd train --task`.
        args: the task's own arguments.
        seed: of the run.
        limit: gold answers of at most so many examples a split are scored; all by default.
        workers: threads of the thread-safety check and of scoring golds; all cores, at least 4.
        count_tokens: tokens of an example's prompt; by default an estimate of four bytes each.

    Raises:
        UserError: the task cannot be loaded, or has no examples.
    """
    args = dict(args or {})
    workers = workers or max(4, os.cpu_count() or 1)
    environment = load_environment(task, args, seed)
    train = load_examples(environment, "train", task)
    test = load_examples(environment, "test", task)
    subject = _Subject(task, args, seed, environment, [*train[:limit], *test[:limit]])
    subject.sample = _spread(train, _SAMPLE) + _spread(test, _SAMPLE)
    yield _examples(train, test)
    yield _lengths(train, test, count_tokens)
    try:
        yield _gold(subject, workers)
        yield _hostile(subject)
        yield _near(subject)
        yield _feedback(subject)
        yield _secrets(subject)
        yield _untouched(subject)
        with Scorer(environment, mode="thread") as scorer:
            yield _same(subject, "deterministic", scorer, "in another order") or _two_calls(subject)
        with Scorer(environment, workers=workers, mode="thread", seconds=HANG_SECONDS) as scorer:
            how = f"by {workers} threads"
            yield _same(subject, "thread-safe", scorer, how) or _fine("thread-safe", subject, how)
        yield _workers(subject)
    except _Hung as error:
        yield Check("returns", "fail", str(error))
        return
    yield _other_process(subject)


# -- the checks ----------------------------------------------------------------------------------


def _examples(train: list[Example], test: list[Example]) -> Check:
    shared = {_text(example) for example in train} & {_text(example) for example in test}
    detail = f"{len(train)} train, {len(test)} test"
    if shared:
        return Check("examples", "warn", f"{detail}; {len(shared)} prompts stand in both splits")
    return Check("examples", "ok", f"{detail}, no prompt in both")


def _lengths(train: list[Example], test: list[Example], count: CountTokens | None) -> Check:
    parts = []
    for name, split in (("train", train), ("test", test)):
        counts = [count(e) if count else approximate_tokens(_text(e)) for e in split]
        parts.append(f"{name} {min(counts)} to {max(counts)}, median {statistics.median(counts):g}")
    unit = "tokens" if count else "tokens (estimated; name a --model for its own count)"
    return Check("prompt lengths", "ok", f"{'; '.join(parts)} {unit}")


def _gold(subject: _Subject, workers: int) -> Check:
    gold = getattr(subject.environment, "gold", None)
    if gold is None:
        return Check("gold scores 1.0", "warn", "no gold(example): nothing shows it can be solved")
    pairs: list[Pair] = []
    for example in subject.examples + subject.sample:
        try:
            answer = gold(example)
        except (Exception, SystemExit) as error:
            text = f"gold() failed: {describe_error(error)} on example {example.id}"
            return Check("gold scores 1.0", "fail", text)
        if not isinstance(answer, str | None):
            text = f"gold() must return text or None, found {answer!r:.80} on {example.id}"
            return Check("gold scores 1.0", "fail", text)
        if answer is not None and _key(example) not in subject.golds:
            subject.golds[_key(example)] = answer
            pairs.append((example, answer))
    if not pairs:
        return Check("gold scores 1.0", "warn", "gold() knows no answer")
    scores = score(subject.environment, pairs, workers)
    wrong = [
        f"{example.id}: {_described(outcome, scores)}"
        for (example, _), outcome in zip(pairs, scores.outcomes, strict=True)
        if outcome is None
        or not (outcome.passed and outcome.reward == 1.0 and outcome.case_fraction == 1.0)
    ]
    if wrong:
        text = f"{len(wrong)} of {len(pairs)} do not; {wrong[0]}"
        return Check("gold scores 1.0", "fail", text)
    without = len({_key(e) for e in subject.examples}) - len(subject.golds)
    missing = f"; {without} examples have none" if without > 0 else ""
    return Check("gold scores 1.0", "ok", f"{len(pairs)} of {len(pairs)}{missing}")


def _hostile(subject: _Subject) -> Check:
    pairs, kinds = [], []
    for example in subject.sample:
        gold = subject.golds.get(_key(example))
        for kind, response in hostile_responses(example, gold).items():
            pairs.append((example, response))
            kinds.append(kind)
    scores = _scored_patiently(subject.environment, pairs, kinds)
    problems = []
    for (example, response), kind, outcome in zip(pairs, kinds, scores.outcomes, strict=True):
        if outcome is None:
            problems.append(f"{kind}: {scores.first_failure}")
        elif outcome.passed or outcome.reward >= 0.5 or outcome.case_fraction == 1.0:
            problems.append(f"{kind}, example {example.id}: {_described(outcome, scores)}")
        else:
            subject.failures.append((example, kind, response, outcome))
    if problems:
        text = f"{len(problems)} of {len(pairs)} crash or score; {problems[0]}"
        return Check("hostile answers", "fail", text)
    best = max((o.reward for *_, o in subject.failures), default=0.0)
    return Check("hostile answers", "ok", f"{len(pairs)} fail, highest reward {best:g}")


def _near(subject: _Subject) -> Check:
    pairs, kinds = [], []
    for example in subject.sample:
        gold = subject.golds.get(_key(example))
        for kind, response in near_misses(gold).items() if gold is not None else ():
            pairs.append((example, response))
            kinds.append(kind)
    if not pairs:
        return Check("near misses", "warn", "no gold answers to damage")
    scores = _scored_patiently(subject.environment, pairs, kinds)
    passed = 0
    for (example, response), kind, outcome in zip(pairs, kinds, scores.outcomes, strict=True):
        if outcome is None:
            return Check("near misses", "fail", f"{kind}: {scores.first_failure}")
        passed += outcome.passed
        if not outcome.passed:
            subject.failures.append((example, kind, response, outcome))
    text = f"{len(pairs)} damaged gold answers, {passed} of them still right"
    return Check("near misses", "warn" if passed == len(pairs) else "ok", text)


def _feedback(subject: _Subject) -> Check:
    silent = Counter(kind for _, kind, _, o in subject.failures if not o.feedback.strip())
    if silent:
        text = f"empty after a failure on: {', '.join(list(silent)[:5])}"
        return Check("feedback", "fail", text)
    lengths = [len(outcome.feedback) for *_, outcome in subject.failures] or [0]
    distinct = len({outcome.feedback for *_, outcome in subject.failures})
    text = f"never empty, at most {max(lengths)} characters, {distinct} different"
    if max(lengths) > LONG_FEEDBACK:
        return Check("feedback", "warn", f"{text}; every prompt of the teacher pays for it")
    return Check("feedback", "warn" if distinct < 2 else "ok", text)


def _secrets(subject: _Subject) -> Check:
    name = "gold stays hidden"
    if getattr(subject.environment, "reveals_gold", False):
        return Check(name, "ok", "the settings show it on purpose")
    checked = 0
    for example, kind, response, outcome in subject.failures:
        try:
            secrets = _secrets_of(subject, example)
        except (Exception, SystemExit) as error:
            text = f"secrets() failed: {describe_error(error)} on example {example.id}"
            return Check(name, "fail", text)
        for secret in secrets:
            checked += 1
            if holds_phrase(outcome.feedback, secret) and not holds_phrase(response, secret):
                text = f"feedback on {kind!r}, example {example.id}, holds {secret!r:.80}"
                return Check(name, "fail", text)
    if not checked:
        text = "nothing to look for: gold() or secrets() would say what must not be given away"
        return Check(name, "warn", text)
    return Check(name, "ok", f"in none of {len(subject.failures)} feedbacks")


def _untouched(subject: _Subject) -> Check:
    """Workers and threads get copies; a program that calls `evaluate` itself does not."""
    name = "examples unchanged"
    for example, kind, response, _ in subject.failures:
        given = copied(example)
        judge(subject.environment, given, response)
        if was_changed(example, given):
            text = f"evaluate() changed it on {kind!r}, example {example.id}"
            return Check(name, "fail", text)
    return Check(name, "ok", f"after {len(subject.failures)} evaluations")


def _same(subject: _Subject, name: str, scorer: Scorer, how: str) -> Check | None:
    """The failures once more, backwards; what differs from the first time, if anything does."""
    pairs = [(example, response) for example, _, response, _ in reversed(subject.failures)]
    scores = scorer.score(pairs)
    again = zip(reversed(scores.outcomes), reversed(scores.failures), strict=True)
    for (example, kind, _, first), (second, why) in zip(subject.failures, again, strict=True):
        if first != second:
            text = f"{kind!r}, example {example.id}: alone {first}, {how} {second or why}"
            return Check(name, "fail", text[:500])
    return None


def _fine(name: str, subject: _Subject, how: str) -> Check:
    return Check(name, "ok", f"{len(subject.failures)} evaluations {how}")


def _two_calls(subject: _Subject) -> Check:
    for split in ("train", "test"):
        twice = [load_examples(subject.environment, split, subject.task) for _ in range(2)]
        if [_text(e) for e in twice[0]] != [_text(e) for e in twice[1]]:
            return Check("deterministic", "fail", f"examples({split!r}) differ between two calls")
    return _fine("deterministic", subject, "twice, in two orders")


def _workers(subject: _Subject) -> Check:
    """As a run evaluates by default: by processes that load the task themselves."""
    name, how = "worker processes", "by 2 processes that load the task themselves"
    spec = TaskSpec(subject.task, subject.args, subject.seed)
    try:
        with Scorer(subject.environment, spec, workers=2, seconds=HANG_SECONDS) as scorer:
            return _same(subject, name, scorer, how) or _fine(name, subject, how)
    except UserError as error:
        return Check(name, "fail", str(error))


def _other_process(subject: _Subject) -> Check:
    """Another process, another hash seed: the same examples, golds and feedback."""
    name = "same in another process"
    program = "import sys; from resd.tasks.check import digest; print(digest(*sys.argv[1:]))"
    words = [subject.task, json.dumps(dict(subject.args)), str(subject.seed)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=10 * HANG_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name, "fail", "it did not end")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check(name, "fail", f"it fails there: {last[:300]}")
    here = digest(*words)
    theirs = done.stdout.strip().splitlines()[-1:]
    if theirs != [here]:
        return Check(name, "fail", "examples, gold answers or feedback depend on the hash seed")
    return Check(name, "ok", "examples, gold answers and feedback")


def digest(task: str, args: str, seed: str) -> str:
    """What a task generates and says, in one hash; `args` is JSON."""
    environment = load_environment(task, json.loads(args), int(seed))
    gold = getattr(environment, "gold", None) or (lambda example: None)
    found = hashlib.sha256()
    for split in ("train", "test"):
        examples = load_examples(environment, split, task)
        for example in examples:
            found.update(f"{example.id}\n{_text(example)}\n".encode())
        for example in _spread(examples, _DIGEST_EXAMPLES):
            found.update(f"{gold(example)}\n".encode("utf-8", "replace"))
        for example in _spread(examples, 2):
            for response in hostile_responses(example, gold(example)).values():
                outcome = score(environment, [(example, response)]).outcomes[0]
                found.update(repr(outcome).encode("utf-8", "replace"))
    return found.hexdigest()


# -- helpers -------------------------------------------------------------------------------------


def _scored_patiently(
    environment: Environment, pairs: Sequence[Pair], kinds: Sequence[str]
) -> Scores:
    """Score one by one, each in a thread that may be left behind.

    Raises:
        _Hung: one of them did not return in time.
    """
    whole = Scores()
    scorer = Scorer(environment, mode="thread", seconds=HANG_SECONDS)
    for pair, kind in zip(pairs, kinds, strict=True):
        scores = scorer.score([pair])
        if scores.counts["env_timeout"]:
            raise _Hung(
                f"evaluate() did not return in {HANG_SECONDS:g} s on {kind!r}, example {pair[0].id}"
            )
        whole.outcomes += scores.outcomes
        whole.failures += scores.failures
    return whole


def _secrets_of(subject: _Subject, example: Example) -> list[str]:
    secrets = getattr(subject.environment, "secrets", None)
    if secrets is not None:
        return [secret for secret in secrets(example) if secret.strip()]
    gold = subject.golds.get(_key(example))
    if gold is None:
        return []
    texts = [gold.strip(), (last_code_block(gold) or "").strip()]
    return [text for text in texts if len(text) >= SHORT_SECRET]


def _described(outcome: Outcome | None, scores: Scores) -> str:
    if outcome is None:
        return scores.first_failure
    passed = "passed" if outcome.passed else "not passed"
    cases = f"{outcome.case_fraction:.0%} of the cases"
    feedback = " ".join(outcome.feedback.split())[:120]
    return f"{passed}, reward {outcome.reward:g}, {cases}{f', {feedback!r}' if feedback else ''}"


def _spread(examples: Sequence[Example], number: int) -> list[Example]:
    if len(examples) <= number:
        return list(examples)
    return [examples[i * (len(examples) - 1) // (number - 1)] for i in range(number)]


def _key(example: Example) -> str:
    return f"{example.id}\n{_text(example)}"


def _text(example: Example) -> str:
    return "\n".join(message["content"] for message in example.prompt)
