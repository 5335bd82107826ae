"""Kill -9 and full disks at any moment: the resumed run ends as the other, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

Plan = dict[str, Any]
CarryOut = Callable[..., list[dict[str, Any]]]
HERE = Path(__file__).parent


def plan(
    cases: Any, method: str = "resd", unit: str = "write", fault: str = "kill", **over: Any
) -> Plan:
    """What to do to a run: see `kill_runs.py`; keywords replace settings of the run."""
    return {"cases": cases, "method": method, "unit": unit, "fault": fault, "over": over}


@pytest.fixture
def carry_out(tiny_model: Path, tmp_path: Path) -> CarryOut:
    """Carry out plans in one process, and see that no case failed."""

    def carry(*plans: Plan) -> list[dict[str, Any]]:
        for number, item in enumerate(plans):
            place = tmp_path / f"plan{number}"
            place.mkdir()
            over = item.pop("over")
            over.setdefault("rollout__env_mode", "thread")
            item["settings"] = tiny.eventful_settings(tiny_model, place, item["method"], **over)
            item["place"] = str(place)
        file = tmp_path / "plans.json"
        file.write_text(json.dumps(plans))
        done = subprocess.run(
            [sys.executable, str(HERE / "kill_runs.py"), str(file)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        reports: list[dict[str, Any]] = json.loads(done.stdout)
        assert [report["failed"] for report in reports] == [[] for _ in plans]
        return reports

    return carry


def spread(number: int) -> list[list[float]]:
    """Points all over the run."""
    return [[(i + 0.5) / number] for i in range(number)]


class TestKilled:
    def test_between_writes(self, carry_out: CarryOut) -> None:
        """RESD with an EMA teacher, a confirmed playbook, a bounded buffer and early stop."""
        (report,) = carry_out(plan("some"))
        assert report["cases"] >= 5
        assert report["ticks"] > 100

    @pytest.mark.slow
    def test_between_all_kinds_of_writes(self, carry_out: CarryOut) -> None:
        (report,) = carry_out(plan("kinds"))
        assert report["cases"] >= 30

    @pytest.mark.slow
    def test_between_all_writes(self, carry_out: CarryOut) -> None:
        carry_out(plan("all"))

    @pytest.mark.slow
    def test_before_every_system_call(self, carry_out: CarryOut) -> None:
        carry_out(plan("all", unit="system_call"))


class TestKilledOtherwise:
    @pytest.mark.slow
    def test_resumptions_methods_and_system_calls(self, carry_out: CarryOut) -> None:
        lora = {"model__lora__rank": 4, "train__lr": 0.05}
        sparse = {
            "checkpoint__every": 2,
            "checkpoint__keep": 3,
            "checkpoint__keep_evaluated": 2,
            "method__teacher__kind": "frozen",
            "method__reflector": "teacher",
        }
        carry_out(
            plan([["renamed step"], ["before trashing step"], ["written done.json"]]),
            plan([[0.3, 1], [0.5, 5, 4, 0.2], [0.97, 2, 2]], rollout__env_mode="process"),
            plan([[1], [3], [5], *spread(5)], unit="system_call"),
            plan([[0.3], [0.6], [0.8, 0.1]], **sparse),
            plan([[0.15], [0.5], [0.85, 0.1]], **lora),
            plan([[0.55], [0.8, 0.1]], "sdpo"),
            plan([[0.55]], "sdpo_ss"),
            plan([[0.55], [0.8, 0.1]], "grpo"),
            plan(
                [[0.4], [0.7, 0.1]],
                "handoff",
                method__switch__rule="schedule",
                method__switch__after=2,
            ),
        )

    @pytest.mark.slow
    def test_resumptions_from_what_is_written_in_the_background(self, carry_out: CarryOut) -> None:
        over = {"checkpoint__background": True}
        carry_out(plan(spread(12), **over), plan([[0.3, 0.2], [0.7, 0.1]], "sdpo", **over))

    @pytest.mark.slow
    def test_with_anchors(self, carry_out: CarryOut) -> None:
        """Around the writing of the answers, and later."""
        anchors = {"weight": 1.0, "number": 6, "batch": 3, "max_new_tokens": 4}
        over = {f"method__anchors__{key}": value for key, value in anchors.items()}
        written = [["before anchors.json"], ["written anchors.json"], ["replaced anchors.json"]]
        carry_out(plan([*written, [0.6]], "sdpo", **over))


class TestDiskFull:
    def test_at_writes(self, carry_out: CarryOut) -> None:
        """One line, exit code 2, and the run goes on from there once there is room."""
        carry_out(plan(spread(4), fault="full"))

    @pytest.mark.slow
    def test_twice(self, carry_out: CarryOut) -> None:
        carry_out(plan([[0.4, 2], [0.6, 0.2]], fault="full"))

    @pytest.mark.slow
    def test_at_all_writes(self, carry_out: CarryOut) -> None:
        carry_out(plan("all", fault="full"))
