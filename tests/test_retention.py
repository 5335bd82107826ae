"""Retention: what has nothing to do with the task, beside every evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bad_input import Capture, Words, one_line

from resd.cli import main
from resd.context.curation import parse_curation
from resd.interval import wilson
from resd.lab_base.targets import compact, solution
from resd.report.results import read_result
from resd.report.table import make_rows, notes
from resd.runs import read_metrics
from resd.tasks.lab import LabEnvironment
from resd.tasks.skills.makers import GROUPS

KEPT = """
class Env(Env):
    def retention(self):
        made = [Example(f"k-{i}", [{"role": "user", "content": f"keep {i}"}], "kept")
                for i in range(5)]
        return {"all": made, "none": made[:2]}
    def evaluate(self, example, response):
        if example.data == "kept":
            good = example.id in ("k-0", "k-1", "k-4")
            return Outcome(reward=float(good), passed=good)
        return super().evaluate(example, response)
"""


def test_every_evaluation_measures_it(
    train_words: Words, env: Callable[[str], str], tmp_path: Path, capsys: Capture
) -> None:
    words = train_words(task=env(KEPT), train__steps=2, evaluation__retention=3)
    assert main(words) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if "eval/mean@2" in row]
    assert [row["step"] for row in rows] == [0, 2]
    for row in rows:
        assert row["eval/retention/all"] == pytest.approx(2 / 3)  # of the first three
        assert row["eval/retention/none"] == 1.0
    assert "(kept: all 0.67, none 1.00)" in capsys.readouterr().out
    result = read_result(tmp_path / "run", 0)
    assert result.retention == {"all": pytest.approx(2 / 3), "none": 1.0}
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["eval/retention/none"] == 1.0


def test_it_may_be_measured_at_both_ends_alone(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    over = {"evaluation__retention": 3, "evaluation__retention_at": "ends"}
    words = train_words(task=env(KEPT), train__steps=3, evaluation__every=1, **over)
    assert main(words) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if "eval/mean@2" in row]
    having = [row["step"] for row in rows if "eval/retention/all" in row]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and having == [0, 3]


def test_it_is_a_column_of_a_comparison(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    from resd.compare.variants import Variant
    from resd.report.results import Summary

    assert main(train_words(task=env(KEPT), train__steps=1, evaluation__retention=3)) == 0
    result = read_result(tmp_path / "run", 0)
    summary = Summary(Variant("a", {}), "t", "m", (result,), {})
    names, rows = make_rows([summary])
    assert rows[0][names.index("kept: all")] == "0.667"
    assert any(note.startswith("kept:") for note in notes([summary]))


def test_off_by_default(train_words: Words, env: Callable[[str], str], tmp_path: Path) -> None:
    assert main(train_words(task=env(KEPT), train__steps=1)) == 0
    assert not any("retention" in key for row in read_metrics(tmp_path / "run") for key in row)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('no')", "retention() failed: ValueError: no"),
        ("return {'a': []}", "retention()['a'] returned no example"),
        ("return {'a': [3]}", "retention()['a'][0]: expected a resd.Example"),
        ("return [1]", "retention() failed"),
        (
            "return {'a': [Example('x', [{'role': 'user', 'content': 'y ' * 90}])]}",
            "holds no prompt of at most",
        ),
    ],
)
def test_groups_that_make_no_sense_are_refused(
    body: str, says: str, refused: Callable[..., str], env: Callable[[str], str]
) -> None:
    bad = f"\nclass Env(Env):\n    def retention(self):\n        {body}\n"
    over = {"evaluation__retention_tokens": 16, "model__max_context": 100}
    assert says in refused(task=env(bad), evaluation__retention=1, **over)


def test_a_task_without_groups_keeps_the_general_skills(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    """They are judged by their own rules: the task's environment would fail on their examples."""
    fails = """
class Env(Env):
    def evaluate(self, example, response):
        assert example.prompt[0]["content"].startswith("set lamp"), example
        return super().evaluate(example, response)
"""
    over = {"evaluation__retention": 2, "evaluation__retention_tokens": 4}
    assert main(train_words(task=env(fails), train__steps=1, **over)) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if "eval/mean@2" in row]
    for row in rows:
        kept = {key.rpartition("/")[2]: v for key, v in row.items() if "retention" in key}
        assert list(kept) == list(GROUPS)
        assert all(share in (0.0, 0.5, 1.0) for share in kept.values())
        assert row["eval/env_failed"] == 0


def test_the_command_counts_and_gives_intervals(tiny_model: Path, capsys: Capture) -> None:
    assert main(["retention", str(tiny_model), "--limit", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["skills"]
    assert list(found) == [*GROUPS, "all"]
    assert found["all"]["problems"] == 2 * len(GROUPS)
    assert found["all"]["passed"] == sum(found[name]["passed"] for name in GROUPS)
    for row in found.values():
        assert row["low"] <= row["fraction"] == row["passed"] / row["problems"] <= row["high"]


def test_the_command_measures_a_run(train_words: Words, tmp_path: Path, capsys: Capture) -> None:
    assert main(train_words(train__steps=1)) == 0
    capsys.readouterr()
    assert main(["retention", str(tmp_path / "run"), "--limit", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["group", "solved"]
    assert [line.split()[0] for line in lines[1:]] == [*GROUPS, "all"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--limit", "0"], "--limit must be at least 1"),
        (["--lm-eval", "arc_easy"], "pip install 'resd[lm-eval]'"),
    ],
)
def test_what_the_command_refuses(
    tiny_model: Path, words: list[str], says: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resd.cli.retention.find_spec", lambda name: None)
    assert main(["retention", str(tiny_model), *words]) == 2
    assert says in one_line(capsys)


def test_tasks_of_lm_eval(
    tiny_model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with its interface: the real one loads data from a hub."""
    asked: dict[str, Any] = {}

    def evaluate(**given: Any) -> Any:
        asked.update(given)
        row = {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25}
        return {"results": {"arc_easy": row}}

    module = ModuleType("lm_eval")
    module.simple_evaluate = evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", module)
    monkeypatch.setattr("resd.cli.retention.find_spec", lambda name: object())
    words = ["retention", str(tiny_model), "--limit", "1", "--lm-eval", "arc_easy"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["lm_eval"]
    assert found == {"arc_easy/acc": 0.5, "arc_easy/acc_norm": 0.25}
    assert asked == {
        "model": "hf",
        "model_args": f"pretrained={tiny_model}",
        "tasks": ["arc_easy"],
        "limit": 1,
    }
    module.simple_evaluate = lambda **given: {}["x"]  # type: ignore[attr-defined]
    assert main(words) == 2
    assert "lm-eval failed: KeyError" in one_line(capsys)


@pytest.mark.parametrize(
    ("passed", "number", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (8, 20, 0.2188, 0.6134),
    ],
)
def test_the_interval_is_wilsons(passed: int, number: int, low: float, high: float) -> None:
    """Values of the usual tables."""
    assert wilson(passed, number) == pytest.approx((low, high), abs=1e-4)


def test_an_environment_that_fails_on_all_of_it_stops_the_run(
    train_words: Words, env: Callable[[str], str], capsys: Capture
) -> None:
    broken = KEPT.replace("good = example.id in", "raise KeyError('x')  #")
    words = train_words(task=env(broken), train__steps=1, evaluation__retention=2)
    assert main(words) == 2
    assert "failed on every answer of retention group 'all'" in capsys.readouterr().err


def test_the_lab_keeps_its_gates() -> None:
    world = LabEnvironment(0)
    groups = world.retention()
    assert list(groups) == [
        *("playbook", "raw_feedback", "reflection", "curation", "house", "inference", "known")
    ]
    for example in groups["playbook"][:20]:
        dialect, requests = example.data["truth"]
        assert world.evaluate(example, solution(dialect, requests)).passed
        assert not world.evaluate(example, "yo").passed
    for example in groups["reflection"][:20]:
        lesson = example.data["truth"][0].fact
        if lesson is not None:
            right = compact({"what_went_wrong": "x", "what_to_do": lesson, "tags": []})
            assert world.evaluate(example, right).passed
        assert not world.evaluate(example, "{}").passed
    for example in groups["curation"][:20]:
        (operations,) = example.data["truth"]
        empty: Any = compact({"operations": []})
        assert world.evaluate(example, empty).passed is (
            parse_curation(empty).operations == operations
        )
        assert not world.evaluate(example, "no").passed
