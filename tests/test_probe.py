"""The probe: what each section does for the right answer, with another example's as control."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import Capture, one_line

from resd.cli import main
from resd.config import load_config
from resd.context import Entry, Reflection, Sections
from resd.loop.probe import Gain, Probed, _shuffled, gold_answers
from resd.loop.probe import probe as probe_of
from resd.measure import loaded, probe_model

GOLD = """
class Env(Env):
    def gold(self, example):
        return example.prompt[0]["content"]
"""


@pytest.fixture(scope="module")
def lab() -> Probed:
    return probe_model([("task", "lab"), ("model.path", "lab")], 8)


def test_the_lab_can_be_taught_by_lessons(lab: Probed) -> None:
    playbook, together = lab.gains["playbook"], lab.gains["together"]
    assert lab.bare < -8 and lab.bare_right == 0.0 and lab.passed == 0.0
    assert playbook.right == 1.0
    assert together.right >= 0.7
    assert playbook.mean == pytest.approx(-lab.bare, abs=0.3)
    assert playbook.above > 3 > lab.gains["feedback"].mean > 0
    assert {gain.examples for gain in lab.gains.values()} == {8}
    assert lab.verdict().startswith("Yes: what the teacher sees (together)")
    assert "Memory and reflection add" in lab.verdict()


def test_the_numbers_are_those_of_the_model_itself() -> None:
    """The gain of the lessons, from whole logits of one example at a time."""
    config = load_config(None, [("task", "lab"), ("model.path", "lab")])
    with loaded(config) as (setup, model, sampler):
        pairs = gold_answers(setup.environment, "lab", 3)
        found = probe_of(setup, model, sampler, pairs)
        lessons = [
            Entry(f"misc-{i:05d}", text) for i, text in enumerate(setup.environment.lessons())
        ]  # type: ignore[attr-defined]
        gains = []
        for example, answer in pairs:
            shown = setup.builder.teacher(example, Sections(lessons))
            assert shown is not None
            answer_ids = setup.tokenizer(answer, add_special_tokens=False)["input_ids"]
            sums = []
            for messages in (shown, list(example.prompt)):
                ids = torch.tensor([[*setup.chat.encode(messages), *answer_ids]])
                with torch.no_grad():
                    logits = model(ids).logits[0, -len(answer_ids) - 1 : -1].log_softmax(-1)
                sums.append(float(logits.gather(1, torch.tensor(answer_ids)[:, None]).sum()))
            gains.append(sums[0] - sums[1])
    assert found.gains["playbook"].mean == pytest.approx(sum(gains) / 3, abs=1e-3)


def test_everyone_gets_what_is_anothers() -> None:
    lessons = [Entry("a-1", "lamp zap"), Entry("a-2", "fan buzz"), Entry("a-3", "one")]
    own = [
        Sections(lessons, f"t{i}", f"f{i}", Reflection(f"w{i}", f"d{i}"), f"s{i}") for i in range(3)
    ]
    own[1] = Sections(lessons, solution="s1")  # it passed: no failure to show
    others = _shuffled(own)
    for i, other in enumerate(others):
        assert other.solution == f"s{(i + 1) % 3}"
        assert [entry.content for entry in other.playbook] == ["lamp buzz", "fan one", "zap"]
    assert [other.feedback for other in others] == ["f2", "f2", "f0"]
    assert [other.reflection.what_to_do for other in others] == ["d2", "d2", "d0"]


def gain(mean: float, above: float) -> Gain:
    return Gain(mean, 0.1, 0.5, mean - above, above, 0.1, 8)


@pytest.mark.parametrize(
    ("bare_right", "gains", "says"),
    [
        (1.0, {"together": gain(3.0, 2.0)}, "Nothing to teach"),
        (0.0, {}, "Cannot tell"),
        (0.0, {"together": gain(0.1, 1.0)}, "No: what the teacher sees (together)"),
        (0.0, {"together": gain(-2.0, 1.0)}, "does not make the right answer likelier (-2.00"),
        (0.0, {"feedback": gain(3.0, 0.1)}, "Hardly: what the teacher sees (feedback) makes"),
        (0.0, {"together": gain(3.0, 2.0), "feedback": gain(1.0, 1.0)}, "add 2.00 nats"),
        (0.0, {"together": gain(3.0, 2.0), "feedback": gain(4.0, 1.0)}, "better by 1.00 nats"),
    ],
)
def test_the_verdict(bare_right: float, gains: dict[str, Gain], says: str) -> None:
    assert says in Probed(-9.0, bare_right, 0.0, gains, ()).verdict()


def test_the_command(tiny_model: Path, env: Callable[[str], str], capsys: Capture) -> None:
    """A task without lessons, settings of a run, JSON."""
    words = ["probe", env(GOLD), str(tiny_model), "--examples", "3"]
    for limit in ("rollout.max_new_tokens", "method.reflection_tokens", "method.curation_tokens"):
        words += [f"--{limit}", "8"]
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert "playbook" not in found["gains"]
    assert found["gains"]["feedback"]["examples"] == 3
    assert any("has no lessons()" in note for note in found["notes"])
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "feedback and trial" in out and found["verdict"] in out


@pytest.mark.parametrize(
    ("body", "more", "says"),
    [
        ("", [], "has no gold(example): the probe needs the right answers"),
        ("    def gold(self, example): return None", [], "knows the answer of 0 examples"),
        ("    def gold(self, example): raise KeyError('x')", [], "gold() failed: KeyError"),
        (GOLD, ["--examples", "1"], "--examples must be at least 2"),
        (GOLD, ["--train.lrr", "1"], "unknown key train.lrr"),
        (GOLD, ["--method.name", "grpo"], "the probe is of resd"),
    ],
)
def test_what_it_refuses(
    body: str,
    more: list[str],
    says: str,
    tiny_model: Path,
    env: Callable[[str], str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a model is loaded."""

    def load(config: Any) -> None:
        raise AssertionError("a model was loaded before the refusal")

    monkeypatch.setattr("resd.models.load.load_model", load)
    bad = body if body in ("", GOLD) else f"\nclass Env(Env):\n{body}\n"
    assert main(["probe", env(bad), str(tiny_model), *more]) == 2
    assert says in one_line(capsys)
