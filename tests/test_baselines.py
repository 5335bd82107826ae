"""Trivial strategies and notes of an environment stand beside every result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from resd import Example
from resd.cli import main

Words = Callable[..., list[str]]


class Noted(tiny.TinyWorld):
    """A world that knows trivial strategies and has something to say."""

    notes = ("the sandbox\nis off",)

    def baselines(self) -> dict[str, Callable[[Example], str]]:
        return {"same word": lambda example: "lamp", "its id": lambda example: example.id}


class Broken(tiny.TinyWorld):
    def baselines(self) -> dict[str, Callable[[Example], str]]:
        return {"lost": lambda example: example.nothing}  # type: ignore[attr-defined]


def fractions(answer: Callable[[Example], str]) -> tuple[float, float]:
    world = tiny.TinyWorld()
    outcomes = [world.evaluate(e, answer(e)) for e in world.examples("test")[:4]]
    mean = sum(o.passed for o in outcomes) / 4
    return mean, sum(o.case_fraction for o in outcomes) / 4


def test_a_run_reports_them(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_words(task=f"{__file__}:Noted")) == 0
    printed = capsys.readouterr()
    assert "the sandbox" in printed.err
    assert (tmp_path / "run" / "notes.txt").read_text() == "the sandbox is off\n"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    evaluations = [row for row in rows if "eval/mean@2" in row]
    assert len(evaluations) == 3
    mean, cases = fractions(lambda example: example.id)
    for row in evaluations:
        assert row["baseline/its id"] == pytest.approx(mean)
        assert row["baseline_cases/its id"] == pytest.approx(cases)
    mean, cases = fractions(lambda example: "lamp")
    assert f"same word {mean:.3f}, cases {cases:.3f}" in printed.out


def test_an_evaluation_and_a_comparison_show_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = f"{__file__}:Noted"
    words = ["eval", str(tiny_model), "--task", task, "--samples", "1"]
    assert main([*words, "--output", str(tmp_path / "answers")]) == 0
    assert "(trivial: same word" in capsys.readouterr().out
    values = tiny.settings(tiny_model, tmp_path / "run", "grpo", task=task)
    del values["output"], values["method.name"]
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    words = ["compare", "--methods", "grpo", "--seeds", "0", "--jobs", "1", *sets]
    assert main([*words, "--output", str(tmp_path / "c")]) == 0
    assert "| (its id)" in (tmp_path / "c" / "table.md").read_text()


def test_a_strategy_that_fails_is_the_user_s_mistake(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_words(task=f"{__file__}:Broken")) == 2
    assert "baseline 'lost' failed: AttributeError" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
