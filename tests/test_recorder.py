"""The row of a step, by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from resd.loop.clock import Clock
from resd.loop.recorder import step_row
from resd.methods.base import StepReport
from resd.types import Completion, Example, Outcome, Rollout

EXAMPLE = Example("e", [{"role": "user", "content": "x"}])


def rollout(outcome: Outcome | None, length: int, cut: bool, answer: str | None = "a") -> Rollout:
    completion = Completion((1,) * length, "text", "length" if cut else "stop", answer=answer)
    return Rollout(EXAMPLE, (1,), completion, outcome)


def test_a_row_by_hand() -> None:
    rollouts = [
        rollout(Outcome(1.0, True, "", 4, 4, {"size": 1.0, "rare": 7.0}), 2, False),
        rollout(Outcome(0.25, False, "no", 1, 4, {"size": 4.0}), 4, True, None),
        rollout(Outcome(0.0, False, "no", 0, 4, {}), 6, True),
        rollout(None, 8, False),
    ]
    report = StepReport({"train/loss": 0.5}, Counter(skipped=2, nothing=0), "a lesson")
    row = step_row(3, 40, rollouts, report, Clock())
    assert row.pop("rollout/reward") == pytest.approx(1.25 / 3)
    assert row.pop("rollout/passed") == pytest.approx(1 / 3)
    assert row.pop("rollout/cases") == pytest.approx(1.25 / 3)
    assert row == {
        "step": 3,
        "rollouts": 40,
        "rollout/length": 5.0,
        "rollout/truncated": 0.5,
        "rollout/unfinished_thinking": 0.25,
        "env/size": 2.5,
        "env/rare": 7.0,
        "train/loss": 0.5,
        "count/skipped": 2,
        "time/step_s": 0,
    }


def test_a_step_without_rollouts_has_a_row() -> None:
    row = step_row(1, 0, [], StepReport(), Clock())
    assert row["rollout/reward"] == row["rollout/passed"] == row["rollout/length"] == 0.0


def test_the_seconds_of_the_phases_are_taken() -> None:
    clock = Clock()
    clock._seconds = {"generate": 1.5, "update": 0.25}
    row = step_row(1, 0, [], StepReport(), clock)
    times = {key: value for key, value in row.items() if key.startswith("time/")}
    assert times == {"time/step_s": 1.75, "time/generate_s": 1.5, "time/update_s": 0.25}
    assert clock.take() == {}
