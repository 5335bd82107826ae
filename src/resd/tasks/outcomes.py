"""One evaluation, whatever the environment does: a plain outcome, or why there is none."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resd.tasks.base import Environment
from resd.tasks.registry import describe_error
from resd.text import one_line
from resd.types import Example, Outcome

FEEDBACK_LIMIT = 65536  # characters kept of one feedback
REWARD_LIMIT = 1e12  # its square, summed over a batch, is still a float32
_METRIC_LIMIT = 1e38  # trackers keep float32
_MAX_METRICS, _MAX_NAME = 200, 120
# What no tokenizer, file or terminal is the better for; tabs and line ends stay.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")

# Counted outcomes that stand, each said once a run in these words.
ODDITIES = {
    "passed_without_reward": "an outcome has passed=True and no positive reward; methods that "
    "learn from rewards and methods that learn from passed will disagree",
    "full_reward_not_passed": "an outcome has a reward of 1 or more and passed=False; a response "
    "counts as solved by passed alone",
    "passed_with_failed_cases": "an outcome has passed=True and cases that failed; passed means "
    "that every case passes",
    "all_cases_not_passed": "an outcome has passed=False though every case passed",
    "reward_outside_0_to_1": "a reward lies outside 0 to 1; 1.0 is meant for a right response",
    "feedback_cut": f"feedback of more than {FEEDBACK_LIMIT} characters was cut in its middle",
    "metric_not_finite": "a metric that is not finite, or beyond float32, was left out",
    "metrics_dropped": f"an outcome has more than {_MAX_METRICS} metrics; the rest was left out",
}


@dataclass(frozen=True)
class Verdict:
    """What came of one evaluation.

    Attributes:
        outcome: plain and checked; None if the environment failed.
        reason: the failure's kind, by which it is counted; empty if there is an outcome.
        detail: the failure in one printable line.
        oddities: keys of `ODDITIES` that hold for the outcome.
    """

    outcome: Outcome | None
    reason: str = ""
    detail: str = ""
    oddities: tuple[str, ...] = ()


class _Malformed(Exception):
    """An outcome that breaks its contract, with the reason it is counted under."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def judge(
    environment: Environment, example: Example, response: str, *, interruptible: bool = False
) -> Verdict:
    """Evaluate one response.

    Args:
        environment: the task.
        example: given to the environment as it is; who wants it unharmed passes a copy.
        response: the model's text.
        interruptible: let a KeyboardInterrupt through: it may be the user's, in the main thread.
    """
    try:
        return checked(environment.evaluate(example, response))
    except _Malformed as error:
        return Verdict(None, error.reason, one_line(f"{error} on example {example.id}"))
    # A grader that calls sys.exit(), or closes a generator, must not end the run.
    except BaseException as error:
        if interruptible and isinstance(error, KeyboardInterrupt):
            raise
        text = f"{describe_error(error)} on example {example.id}"
        return Verdict(None, "env_raised", one_line(text))


def checked(outcome: Any) -> Verdict:
    """The outcome with plain Python values, whatever library or subclass made them.

    Raises:
        _Malformed: it breaks its contract.
    """
    if not isinstance(outcome, Outcome):
        if inspect.iscoroutine(outcome):
            outcome.close()
        found = type(outcome).__name__
        raise _Malformed("env_wrong_type", f"evaluate must return a resd.Outcome, found {found}")
    reward = _reward(outcome.reward)
    passed = _plain(outcome.passed)
    if not (isinstance(passed, int) and passed in (0, 1)):
        raise _wrong("passed must be True or False", passed)
    cases, cases_passed = _cases(outcome)
    feedback, was_cut = _feedback(outcome.feedback)
    metrics, odd = _metrics(outcome.metrics)
    plain = Outcome(reward, bool(passed), feedback, cases_passed, cases, metrics)
    if was_cut:
        odd.append("feedback_cut")
    return Verdict(plain, oddities=(*odd, *_contradictions(plain)))


def _contradictions(outcome: Outcome) -> list[str]:
    reward, passed = outcome.reward, outcome.passed
    found = []
    if passed and reward <= 0:
        found.append("passed_without_reward")
    if not passed and reward >= 1:
        found.append("full_reward_not_passed")
    if outcome.cases_passed is not None:
        if passed and outcome.cases_passed < outcome.cases:
            found.append("passed_with_failed_cases")
        if not passed and outcome.cases_passed == outcome.cases:
            found.append("all_cases_not_passed")
    if not 0 <= reward <= 1:
        found.append("reward_outside_0_to_1")
    return found


def _reward(value: Any) -> float:
    value = _plain(value)
    if not isinstance(value, int | float):
        raise _wrong("reward must be a number", value)
    try:
        reward = float(value)
    except OverflowError:
        reward = math.inf
    if not math.isfinite(reward):
        raise _Malformed("reward_not_finite", f"reward must be finite, found {reward!r}")
    if abs(reward) > REWARD_LIMIT:
        text = f"reward must lie within {REWARD_LIMIT:g} of zero, found {reward:g}"
        raise _Malformed("reward_too_large", text)
    return reward


def _cases(outcome: Outcome) -> tuple[int, int | None]:
    cases, passed = _plain(outcome.cases), _plain(outcome.cases_passed)
    if not (isinstance(cases, int) and cases >= 1):
        raise _wrong("cases must be an integer >= 1", cases)
    if passed is None:
        return int(cases), None
    if not (isinstance(passed, int) and 0 <= passed <= cases):
        raise _wrong(f"cases_passed must be an integer from 0 to cases = {int(cases)}", passed)
    return int(cases), int(passed)


def _feedback(value: Any) -> tuple[str, bool]:
    """Feedback as a plain string of bounded length, and whether it was cut."""
    if not isinstance(value, str):
        raise _wrong("feedback must be a string", value)
    text = str.__str__(value)  # a subclass may lie about its length and truth
    too_long = len(text) > FEEDBACK_LIMIT
    if too_long:
        head, tail = FEEDBACK_LIMIT * 2 // 3, FEEDBACK_LIMIT // 4  # the rest is for the mark
        left_out = len(text) - head - tail
        text = f"{text[:head]}\n[... {left_out} characters left out ...]\n{text[-tail:]}"
    return _clean(text), too_long


def _metrics(metrics: Any) -> tuple[dict[str, float], list[str]]:
    if not isinstance(metrics, Mapping):
        raise _wrong("metrics must be a dict", metrics)
    plain: dict[str, float] = {}
    odd = []
    for name, value in metrics.items():
        number = _plain(value)
        if not isinstance(name, str) or not isinstance(number, int | float):
            text = f"metrics must map names to numbers, found {name!r:.40}: {value!r:.40}"
            raise _Malformed("env_wrong_type", text)
        try:
            number = float(number)
        except OverflowError:
            number = math.inf
        if not abs(number) <= _METRIC_LIMIT:  # NaN too
            odd.append("metric_not_finite")
        elif len(plain) == _MAX_METRICS:
            odd.append("metrics_dropped")
            break
        else:
            plain[_clean(one_line(str.__str__(name)))[:_MAX_NAME] or "unnamed"] = number
    return plain, list(dict.fromkeys(odd))


def _clean(text: str) -> str:
    """Without control characters; a lone surrogate, which no file can hold, is marked."""
    return text if text.isprintable() else _SURROGATE.sub("\ufffd", _CONTROL.sub("", text))


def _wrong(wanted: str, found: Any) -> _Malformed:
    return _Malformed("env_wrong_type", f"{wanted}, found {found!r:.80}")


def _plain(value: Any) -> Any:
    """A scalar of NumPy or torch as a Python number; anything else as it is."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    return value
