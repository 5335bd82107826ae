"""Calling an environment safely: what it does wrong is counted by reason, never fatal."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from resd.tasks.base import Environment
from resd.tasks.registry import describe_error
from resd.types import Example, Outcome


@dataclass
class Scores:
    """Outcomes in order, None where the environment failed; failures by reason."""

    outcomes: list[Outcome | None] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    first_failure: str = ""


class _Malformed(Exception):
    """An outcome that breaks its contract, with the reason it is counted under."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


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
        if reason:
            scores.counts[reason] += 1
        if outcome is None:
            scores.first_failure = scores.first_failure or f"{reason}: {detail}"
    return scores


def _one(
    environment: Environment, example: Example, response: str
) -> tuple[Outcome | None, str, str]:
    """The outcome, or None; a reason to count, if there is one; and what happened."""
    try:
        outcome = _checked(environment.evaluate(example, response))
    except _Malformed as error:
        return None, error.reason, f"{error} on example {example.id}"
    # A grader that calls sys.exit() must not end the run.
    except (Exception, SystemExit) as error:
        return None, "env_raised", f"{describe_error(error)} on example {example.id}"
    finite = {k: v for k, v in outcome.metrics.items() if math.isfinite(v)}
    if len(finite) < len(outcome.metrics):
        plain = Outcome(
            outcome.reward,
            outcome.passed,
            outcome.feedback,
            outcome.cases_passed,
            outcome.cases,
            finite,
        )
        return plain, "metric_not_finite", ""
    return outcome, "", ""


def _checked(outcome: Any) -> Outcome:
    """The outcome with plain Python numbers, whatever library made them.

    Raises:
        _Malformed: it breaks its contract.
    """
    if not isinstance(outcome, Outcome):
        if inspect.iscoroutine(outcome):
            outcome.close()
        found = type(outcome).__name__
        raise _Malformed("env_wrong_type", f"evaluate must return a resd.Outcome, found {found}")
    reward, passed = _plain(outcome.reward), _plain(outcome.passed)
    cases, cases_passed = _plain(outcome.cases), _plain(outcome.cases_passed)
    if not isinstance(reward, int | float):
        raise _Malformed("env_wrong_type", f"reward must be a number, found {reward!r:.80}")
    if not math.isfinite(reward):
        raise _Malformed("reward_not_finite", f"reward must be finite, found {float(reward)!r}")
    if not (isinstance(passed, int) and passed in (0, 1)):
        raise _Malformed("env_wrong_type", f"passed must be True or False, found {passed!r:.80}")
    if not isinstance(outcome.feedback, str):
        text = f"feedback must be a string, found {outcome.feedback!r:.80}"
        raise _Malformed("env_wrong_type", text)
    if not (isinstance(cases, int) and cases >= 1):
        raise _Malformed("env_wrong_type", f"cases must be an integer >= 1, found {cases!r:.80}")
    if cases_passed is not None and not (
        isinstance(cases_passed, int) and 0 <= cases_passed <= cases
    ):
        raise _Malformed(
            "env_wrong_type",
            f"cases_passed must be an integer from 0 to cases = {int(cases)}, "
            f"found {cases_passed!r:.80}",
        )
    return Outcome(
        reward=float(reward),
        passed=bool(passed),
        feedback=outcome.feedback,
        cases_passed=None if cases_passed is None else int(cases_passed),
        cases=int(cases),
        metrics=_metrics(outcome.metrics),
    )


def _metrics(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise _Malformed("env_wrong_type", f"metrics must be a dict, found {metrics!r:.80}")
    plain = {}
    for name, value in metrics.items():
        number = _plain(value)
        if not isinstance(name, str) or not isinstance(number, int | float):
            text = f"metrics must map names to numbers, found {name!r:.40}: {value!r:.40}"
            raise _Malformed("env_wrong_type", text)
        plain[name] = float(number)
    return plain


def _plain(value: Any) -> Any:
    """A scalar of NumPy or torch as a Python number; anything else as it is."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    return value
