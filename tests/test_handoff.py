"""RESD until rewards carry a signal, then GRPO: the rule, who is at work, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from fakes import rollout
from safetensors.torch import load_file
from tiny import arguments, save_model, settings

from resd.cli import main
from resd.config import HandoffConfig, load_config
from resd.methods.base import StepReport
from resd.runs.rows import read_metrics


def made(**switch: Any) -> Any:
    return fakes.method("handoff", success_tags=False, switch=switch, grpo={"rollouts": 4})


def batch(*groups: Sequence[int]) -> list[Any]:
    """Rollouts of examples, a group each: 1 passed, 0 failed (and nothing to reflect on)."""
    return [
        rollout(str(number), feedback="", passed=bool(passed))
        for number, group in enumerate(groups)
        for passed in group
    ]


def steps(method: Any, *batches: list[Any]) -> list[int]:
    """How many responses a prompt the method wants after each of the batches."""
    found = []
    for each in batches:
        report = StepReport()
        method.learn(each, report)
        found.append(method.rollouts)
    return found


HALF = batch([1], [0], [1], [0])
NONE = batch([0], [0], [0], [0])
ALL = batch([1], [1], [1], [1])


def test_it_hands_over_once_a_whole_window_shows_success_and_spread() -> None:
    assert steps(made(window=3), HALF, HALF, HALF) == [1, 1, 4]
    assert steps(made(window=3), HALF, NONE, NONE, HALF, HALF) == [1, 1, 1, 1, 4]


def test_without_success_or_without_failure_it_does_not() -> None:
    """Half of 4 passed: 1 - 2 / 16 of the groups would have spread. All passed: none would."""
    assert steps(made(window=1), NONE, ALL) == [1, 1]
    assert steps(made(window=1, spread=0.87), HALF) == [4]
    assert steps(made(window=1, spread=0.88), HALF) == [1]
    assert steps(made(window=1, passed=0.51), HALF) == [1]


def test_rollouts_of_one_prompt_say_themselves_how_often_groups_spread() -> None:
    lucky = batch([1, 1], [0, 0])  # each prompt always passes, or never
    assert steps(made(window=1, passed=0.5, spread=0.1), lucky) == [1]
    mixed = batch([1, 0], [0, 1])
    assert steps(made(window=1, passed=0.5, spread=0.87), mixed) == [4]


def test_reflection_returns_when_success_is_lost() -> None:
    lost = batch([0, 0, 0, 0], [0, 0, 0, 0])
    spread = batch([1, 0, 0, 0], [0, 0, 0, 0])
    method = made(window=2, back=0.05)
    assert steps(method, HALF, HALF, spread, spread, lost, lost, HALF) == [1, 4, 4, 4, 4, 1, 1]
    # What made it switch does not count again: one bad batch is not a window of two.
    method = made(window=2, back=0.3)
    assert steps(method, HALF, HALF, lost, ALL, lost, lost) == [1, 4, 4, 4, 4, 1]
    never = made(window=2, back=0.0)
    assert steps(never, HALF, HALF, lost, lost, lost) == [1, 4, 4, 4, 4]


def test_a_schedule_counts_steps() -> None:
    assert steps(made(rule="schedule", after=3), NONE, NONE, NONE, NONE) == [1, 1, 4, 4]


def test_a_new_task_is_reflected_on_again() -> None:
    method = made(rule="schedule", after=2)
    assert steps(method, NONE, NONE) == [1, 4]
    method.begin_task("next", first=False)
    assert [method.rollouts, *steps(method, NONE, NONE)] == [1, 1, 4]
    measured = made(window=2)
    assert steps(measured, HALF) == [1]
    measured.begin_task("next", first=False)
    assert steps(measured, HALF, HALF) == [1, 4]


def test_each_method_does_its_own_work() -> None:
    """Before the switch a teacher, afterwards advantages; the switch takes effect with a step."""
    method = made(window=1)
    report = StepReport()
    fed = [rollout("a", "x", "wrong"), rollout("b", "y", passed=True)]
    method.services.write = fakes.nobody_writes
    method.config.switch.passed = 0.5
    method._resd.learn = lambda batch, report: fakes_notes(batch)
    notes = method.learn(fed, report)
    assert report.metrics["handoff/by_rewards"] == 0.0
    first = method.samples(fed, notes, report)
    assert all(sample.teacher_ids for sample in first)
    assert (method.aggregation, method.updates_per_batch) == ("sample_mean", None)
    assert method.rollouts == 4
    group = batch([1, 0, 0, 0])
    report = StepReport()
    notes = method.learn(group, report)
    assert report.metrics["handoff/by_rewards"] == 1.0
    second = method.samples(group, notes, report)
    assert [sample.advantage > 0 for sample in second] == [True, False, False, False]
    assert not any(sample.teacher_ids for sample in second)
    assert (method.aggregation, method.updates_per_batch) == ("token_mean", 1)
    assert method.score(second) is None


def fakes_notes(batch: Sequence[Any]) -> Any:
    from resd.methods.base import Notes

    return Notes([None] * len(batch))


def test_what_is_remembered_goes_on_from_any_step() -> None:
    order = [HALF, NONE, HALF, HALF, batch([0] * 4), batch([0] * 4), HALF, HALF]
    whole = steps(made(window=2, back=0.1), *order)
    assert len(set(whole)) == 2
    for cut in range(len(order)):
        first, second = made(window=2, back=0.1), made(window=2, back=0.1)
        before = steps(first, *order[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + steps(second, *order[cut:]) == whole


def test_the_teacher_follows_while_it_rests() -> None:
    method = fakes.method("handoff", teacher={"kind": "ema", "rate": 0.5})
    method._by_rewards = True
    weights = {name: torch.ones_like(t) for name, t in method.services.weights.items()}
    before = {name: t.clone() for name, t in method.tensors().items()}
    method.after_update(weights)
    assert any(not torch.equal(t, before[name]) for name, t in method.tensors().items())


def test_it_starts_from_what_a_preset_tuned_for_resd() -> None:
    handoff = load_config(None, [("method.name", "handoff")])
    resd = load_config(None, [])
    assert isinstance(handoff.method, HandoffConfig)
    for key in ("reflection_tokens", "success_tags", "reflector", "teacher", "playbook"):
        assert getattr(handoff.method, key) == getattr(resd.method, key)
    assert handoff.method.grpo.clip_high == 0.2
    assert handoff.method.most_rollouts == 8


def test_two_sets_of_anchors_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--method.name", "handoff", "--method.grpo.anchors.weight", "1"]
    assert main(words) == 2
    assert "anchors of a hand-off are set by method.anchors" in capsys.readouterr().err


LUCKY = '''
from hashlib import blake2b
from resd import Example, Outcome

class Env:
    """Passes by lot, whatever is said."""

    def examples(self, split):
        return [Example(f"{split}{i}", [{"role": "user", "content": f"do {i}"}]) for i in range(4)]

    def evaluate(self, example, response):
        lot = blake2b((example.id + response).encode(errors="replace")).digest()[0] % 2
        return Outcome(float(lot), bool(lot), "" if lot else "wrong")
'''


def test_a_run_hands_over_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    (tmp_path / "lucky.py").write_text(LUCKY)

    def run(name: str, **over: Any) -> Path:
        values = settings(model, tmp_path / name, "handoff", **over)
        values["task"] = f"{tmp_path / 'lucky.py'}:Env"
        values |= {"method.switch.window": 2, "method.grpo.rollouts": 4, "checkpoint.every": 1}
        assert main(["train", *arguments(values)]) == 0
        return tmp_path / name

    once = run("once", train__steps=6)
    rows = [row for row in read_metrics(once) if "rollout/reward" in row]
    work = [row["handoff/by_rewards"] for row in rows]
    assert work == sorted(work)
    assert set(work) == {0.0, 1.0}
    seen = [0, *(row["rollouts"] for row in rows)]
    sizes = [b - a for a, b in pairwise(seen)]
    assert [size == max(sizes) for size in sizes] == [w == 1.0 for w in work]
    for cut in (1, int(work.index(1.0)), 5):
        place = run(f"cut {cut}", train__steps=cut)
        assert main(["train", "--resume", str(place), "--train.steps", "6"]) == 0
        a, b = (load_file(p / "final" / "model.safetensors") for p in (once, place))
        assert all(torch.equal(a[key], b[key]) for key in a)
