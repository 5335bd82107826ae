"""The row of a step, by hand; what is written of a step, and what is not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from resd.config import TracesConfig
from resd.loop.clock import Clock
from resd.loop.evaluate import Evaluation
from resd.loop.recorder import Recorder, step_row
from resd.methods.base import StepReport
from resd.runs.atomic import StorageError
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
        "rollout/names_hints": 0.0,
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
    clock._seconds = {"generate": 1.5, "update": 0.25004999}
    row = step_row(1, 0, [], StepReport(), clock)
    times = {key: value for key, value in row.items() if key.startswith("time/")}
    # To a tenth of a millisecond.
    assert times == {"time/step_s": 1.75, "time/generate_s": 1.5, "time/update_s": 0.25}
    assert clock.take() == {}


# -- what is written -------------------------------------------------------------------------------


class Run:
    """A run's directory that remembers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.written: list[Any] = []

    def log(self, row: Any) -> None:
        self.written.append(row)

    def trace(self, what: str, step: int, records: list[Any]) -> None:
        if self.error is not None:
            raise self.error
        self.written.append((what, step, list(records)))

    def save_artifacts(self, artifacts: Any) -> None:
        self.written.append(artifacts)


def recorder(run: Run, warn: Any, keep: bool = True) -> Recorder:
    return Recorder(run, TracesConfig(keep=keep), str, main=True, warn=warn)  # type: ignore[arg-type]


def test_a_step_is_written_and_its_traces_are_its_own() -> None:
    run, said = Run(), list[str]()
    made = recorder(run, said.append)
    made.trace("reflect", "e", output="why")
    passed = rollout(Outcome(1.0, True, "well", 4, 4, {}), 2, False)
    made.step(3, [passed, rollout(None, 2, False)], {"step": 3}, {"playbook.md": "x"})
    made.step(4, [], {"step": 4}, {})
    first, traced, artifacts, second, nothing, none = run.written
    assert (first, second) == ({"step": 3}, {"step": 4})
    assert (artifacts, none) == ({"playbook.md": "x"}, {})
    assert nothing == ("step", 4, [])
    assert traced[:2] == ("step", 3)
    reflection, good, failed = traced[2]
    assert reflection == {"kind": "reflect", "example": "e", "output": "why"}
    names = ("kind", "example", "response", "passed", "feedback", "reward")
    assert [good[name] for name in names] == ["rollout", "e", "text", True, "well", 1.0]
    assert [failed[name] for name in names] == ["rollout", "e", "text", False, None, None]
    assert not said


def test_answers_of_an_evaluation_are_written() -> None:
    run = Run()
    answers = [rollout(Outcome(0.0, False, "no"), 2, False) for _ in range(9)]
    numbers = dict.fromkeys(("mean", "best", "case_mean", "case_best", "truncated"), 0.0)
    whole = dict.fromkeys(("samples", "problems", "skipped", "failed"), 1)
    result = Evaluation(**numbers, **whole, first_answers={"": answers})  # type: ignore[arg-type]
    recorder(run, pytest.fail).evaluated(7, result)
    ((what, step, records),) = run.written
    assert (what, step, len(records)) == ("evaluation", 7, TracesConfig().answers)
    assert {(r["kind"], r["response"]) for r in records} == {("answer", "text")}
    recorder(run, pytest.fail, keep=False).evaluated(8, result)
    assert len(run.written) == 1


def test_without_traces_there_are_none() -> None:
    run = Run()
    made = recorder(run, pytest.fail, keep=False)
    made.trace("reflect", "e")
    made.step(1, [rollout(None, 2, False)], {"step": 1}, {})
    assert run.written == [{"step": 1}, {}]


@pytest.mark.parametrize("error", [StorageError("full"), ValueError("odd"), TypeError("odd")])
def test_traces_that_fail_are_given_up_and_said_once(error: Exception) -> None:
    run, said = Run(error), list[str]()
    made = recorder(run, said.append)
    for step in (1, 2):
        made.step(step, [rollout(None, 2, False)], {"step": step}, {"a": "b"})
    assert said == [f"no more traces from step 1 on: {error}"]
    assert run.written == [{"step": 1}, {"a": "b"}, {"step": 2}, {"a": "b"}]
