"""Calling an environment safely: what it does wrong is counted by reason, never fatal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from resd.tasks.base import Environment, Example, Outcome
from resd.tasks.registry import describe_error


@dataclass
class Scores:
    """Outcomes in order, None where the environment failed; failures by reason."""

    outcomes: list[Outcome | None] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    first_failure: str = ""


def score(
    environment: Environment, pairs: Sequence[tuple[Example, str]], workers: int = 1
) -> Scores:
    """Evaluate responses, in threads if asked for.

    Args:
        environment: the task.
        pairs: example and response.
        workers: threads; 1 evaluates in this one.
    """
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(lambda pair: _one(environment, *pair), pairs))
    else:
        results = [_one(environment, *pair) for pair in pairs]
    scores = Scores()
    for outcome, reason, detail in results:
        scores.outcomes.append(outcome)
        if outcome is None:
            scores.counts[reason] += 1
            scores.first_failure = scores.first_failure or f"{reason}: {detail}"
    return scores


def _one(
    environment: Environment, example: Example, response: str
) -> tuple[Outcome | None, str, str]:
    try:
        outcome = environment.evaluate(example, response)
    except Exception as error:
        return None, "env_raised", f"{describe_error(error)} on example {example.id}"
    problem = _problem(outcome)
    if problem:
        return None, problem[0], f"{problem[1]} on example {example.id}"
    return outcome, "", ""


def _problem(outcome: Any) -> tuple[str, str] | None:
    if not isinstance(outcome, Outcome):
        found = type(outcome).__name__
        return "env_wrong_type", f"evaluate must return a resd.Outcome, found {found}"
    if not isinstance(outcome.reward, int | float) or not math.isfinite(outcome.reward):
        return "reward_not_finite", f"reward {outcome.reward!r}"
    if not isinstance(outcome.feedback, str):
        return "env_wrong_type", f"feedback must be a string, found {outcome.feedback!r:.80}"
    cases, passed = outcome.cases, outcome.cases_passed
    if not isinstance(cases, int) or cases < 1 or not (passed is None or 0 <= passed <= cases):
        return "env_wrong_type", f"cases_passed {passed!r} of cases {cases!r}"
    if outcome.passed not in (True, False):
        return "env_wrong_type", f"passed must be True or False, found {outcome.passed!r:.80}"
    return None
