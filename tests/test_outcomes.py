"""Outcomes of every kind become plain ones, or failures by kind; oddities are said once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from resd import Example, Outcome
from resd.tasks.base import Environment
from resd.tasks.outcomes import FEEDBACK_LIMIT, Verdict, checked, judge
from resd.tasks.registry import load_examples
from resd.tasks.scoring import Scorer, score

EXAMPLE = Example("e", [{"role": "user", "content": "x"}])


class Says:
    def __init__(self, outcome: Any = None, examples: Any = None) -> None:
        self.outcome, self._examples = outcome, examples

    def examples(self, split: str) -> Any:
        return self._examples()

    def evaluate(self, example: Example, response: str) -> Any:
        return self.outcome


class Liar(str):
    def __bool__(self) -> bool:
        raise ValueError

    def __len__(self) -> int:
        return 0

    def __str__(self) -> str:
        return "lie"

    def isprintable(self) -> bool:
        return True


class Grown(float):
    def __float__(self) -> float:
        return 2.0


def verdict(*words: Any, **named: Any) -> Verdict:
    return judge(Says(Outcome(*words, **named)), EXAMPLE, "")


@pytest.mark.parametrize("reward", [1e39, 1e300, -1e13, 1.1e12, 10**30])
def test_a_reward_that_overflows_is_a_failure(reward: float) -> None:
    found = verdict(reward, False)
    assert (found.outcome, found.reason) == (None, "reward_too_large")


@pytest.mark.parametrize("reward", [float("nan"), float("-inf"), 10**400, np.float32("nan")])
def test_a_reward_that_is_not_finite_is_a_failure(reward: float) -> None:
    assert verdict(reward, False).reason == "reward_not_finite"


@pytest.mark.parametrize(
    ("reward", "wanted"),
    [
        (True, 1.0),
        (2e9, 2e9),
        (-5, -5.0),
        (np.float16(0.5), 0.5),
        (np.bool_(True), 1.0),
        (np.array(0.25), 0.25),
    ],
)
def test_a_number_of_any_kind_is_a_float(reward: Any, wanted: float) -> None:
    outcome = verdict(reward, np.bool_(False), metrics={"a": reward}).outcome
    assert outcome is not None
    assert (outcome.reward, outcome.passed, outcome.metrics) == (wanted, False, {"a": wanted})
    assert [type(v) for v in (outcome.reward, outcome.passed)] == [float, bool]


@pytest.mark.parametrize(
    ("words", "oddity"),
    [
        ((0.0, True), "passed_without_reward"),
        ((1.0, False), "full_reward_not_passed"),
        ((1.0, True, "", 1, 2), "passed_with_failed_cases"),
        ((0.5, False, "", 2, 2), "all_cases_not_passed"),
        ((-0.1, False), "reward_outside_0_to_1"),
        ((0.0, False, "x" * (FEEDBACK_LIMIT + 1)), "feedback_cut"),
        ((0.0, False, "", None, 1, {"a": float("nan")}), "metric_not_finite"),
        ((0.0, False, "", None, 1, {"a": 10**400}), "metric_not_finite"),
        ((0.0, False, "", None, 1, {str(i): i for i in range(201)}), "metrics_dropped"),
    ],
)
def test_an_oddity_stands_is_counted_and_said_once(words: Any, oddity: str) -> None:
    assert verdict(*words).oddities == (oddity,)
    scorer = Scorer(Says(Outcome(*words)))
    first, second = (scorer.score([(EXAMPLE, "")] * 3) for _ in range(2))
    assert first.counts == second.counts == {oddity: 3}
    assert len(first.warnings) == 1 and oddity in first.warnings[0]
    assert second.warnings == []
    assert first.first_failure == "" and None not in first.outcomes


def test_what_is_usual_is_not_odd() -> None:
    for words in ((1.0, True), (0.0, False), (0.5, False, "no", 1, 2), (1.0, True, "", 2, 2)):
        assert score(Says(Outcome(*words)), [(EXAMPLE, "")]).counts == {}


def test_feedback_is_a_plain_clean_bounded_string() -> None:
    outcome = verdict(0.0, False, Liar("a\ud800\x00\x1b[2J\tb\n")).outcome
    assert outcome is not None
    assert type(outcome.feedback) is str
    assert outcome.feedback == "a\ufffd[2J\tb\n"
    outcome = verdict(0.0, False, Liar("a" * 10**6 + "z")).outcome
    assert outcome is not None
    head, _, rest = outcome.feedback.partition("\n[... ")
    count, _, tail = rest.partition(" characters left out ...]\n")
    assert len(head) + int(count) + len(tail) == 10**6 + 1
    assert tail.endswith("az") and len(outcome.feedback) <= FEEDBACK_LIMIT
    assert checked(outcome).outcome == outcome


def test_metric_names_of_any_kind() -> None:
    names = ["step", "a/b\n\ud800", Liar("mean"), "", "x" * 1000, "\x1b[2J"]
    outcome = verdict(0.0, False, metrics={name: 1.0 for name in names}).outcome
    assert outcome is not None
    assert [*outcome.metrics] == ["step", "a/b", "mean", "unnamed", "x" * 120, "[2J"]
    json.dumps(outcome.metrics, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        {},
        Outcome("1", True),
        Outcome(1.0, "yes"),
        Outcome(1.0, True, b"x"),
        Outcome(1.0, 2),
        Outcome(0.0, False, metrics={1: 1.0}),
        Outcome(0.0, False, metrics={"a": "b"}),
        Outcome(0.0, False, "", 3, 2),
        Outcome(0.0, False, "", 1, 0),
        Outcome(1j, False),
    ],
)
def test_the_wrong_type_is_a_failure(outcome: Any) -> None:
    found = judge(Says(outcome), EXAMPLE, "")
    assert (found.outcome, found.reason) == (None, "env_wrong_type")
    assert found.detail.endswith("on example e")


def test_examples_may_come_from_a_generator_with_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from resd.tasks import registry

    def endless() -> Any:
        number = 0
        while True:
            number += 1
            yield Example(f"{number}", EXAMPLE.prompt)

    environment: Environment = Says(
        examples=lambda: (Example(f"{i}", EXAMPLE.prompt) for i in "ab")
    )
    assert [e.id for e in load_examples(environment, "train", "t")] == ["a", "b"]
    monkeypatch.setattr(registry, "MOST_EXAMPLES", 1000)
    with pytest.raises(registry.UserError, match="more than 1,000 examples") as error:
        load_examples(Says(examples=endless), "train", "t")
    assert "\n" not in str(error.value)
