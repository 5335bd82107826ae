"""Tests of the task: pytest runs them in a few seconds, without a model."""

from __future__ import annotations

import inspect

from resd.tasks.check import run_checks
from resd.tasks.starter.scheduler import Scheduler

TASK = f"{inspect.getfile(Scheduler)}:Scheduler"


def test_the_environment_is_sound() -> None:
    failed = [check for check in run_checks(TASK) if check.state == "fail"]
    assert not failed


def test_feedback_names_what_is_wrong() -> None:
    environment = Scheduler()
    example = environment.examples("test")[0]
    outcome = environment.evaluate(example, "backup on web every 2 hours")
    assert not outcome.passed
    assert "three parts" in outcome.feedback
    assert environment.evaluate(example, environment.gold(example)).passed
