"""Registered experiments on the real loop and the real lab."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from bad_input import Capture

from resd.api import start_run
from resd.cli import main
from resd.config import load_config
from resd.errors import UserError
from resd.evidence.measure import measure
from resd.evidence.plan import plan
from resd.evidence.registry import load_experiments
from resd.evidence.tokens import word_marks
from resd.loop.view import MuteView
from resd.loop.writer import ModelWriter
from resd.runs import read_metrics

QUICK: dict[str, Any] = {"task_args.dialect": 5, "train.steps": 2, "train.batch_size": 4}
QUICK |= {"train.updates_per_batch": 1, "method.aggregation": "token_mean"}
QUICK |= {"evaluation.every": 0, "evaluation.samples": 1, "evaluation.max_examples": 4}


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run) if "train/loss" in row]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Figure 5 is made: every response's tokens are kept."""
    run = tmp_path_factory.mktemp("traced") / "run"
    traces = load_experiments()["fig5"].settings["traces"]
    values = {**QUICK, **{f"traces.{k}": v for k, v in traces.items()}, "output": str(run)}
    assert main(["train", *tiny.arguments(values)]) == 0
    return run


def test_traces_change_nothing_and_tokens_are_counted(
    traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int]] = []
    real = ModelWriter.__call__

    def write(self: Any, what: str, *args: Any, **kwargs: Any) -> Any:
        outputs = real(self, what, *args, **kwargs)
        written.extend((what, len(output.token_ids)) for output in outputs)
        return outputs

    monkeypatch.setattr(ModelWriter, "__call__", write)
    plain = tmp_path / "plain"
    values = {**QUICK, "traces": False, "output": str(plain)}
    assert main(["train", *tiny.arguments(values)]) == 0
    assert [r["train/loss"] for r in steps(plain)] == [r["train/loss"] for r in steps(traced)]
    for what in ("reflection", "curation"):
        counted = sum(row[f"tokens/{what}"] for row in steps(plain))
        assert counted == sum(number for kind, number in written if kind == what) > 0
    for row in steps(plain):
        assert row["tokens/rollout"] == pytest.approx(4 * row["rollout/length"])


def test_the_loss_of_the_words_is_the_loss_that_is_trained_on(traced: Path) -> None:
    shutil.rmtree(traced / "final")  # as `resd evidence` does
    by_word = measure(traced).by_word
    for row in steps(traced):
        words = [word for word in by_word if word["step"] == row["step"]]
        tokens = sum(word["tokens"] for word in words)
        assert tokens == row["tokens/rollout"]
        assert sum(word["loss"] for word in words) / tokens == pytest.approx(
            row["train/loss"], rel=1e-3
        )
    assert {word["wrong"] for word in by_word} == {True, False}
    assert -1 < measure(traced).at("wrong_share", "last") < 1


class Letters:
    """A tokenizer whose tokens are characters; 0 ends the response."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(map(chr, filter(None, ids)))


def test_a_word_is_wrong_if_another_belongs_in_its_place() -> None:
    def marks(text: str, gold: str) -> list[tuple[int, bool]]:
        return word_marks(Letters(), [*map(ord, text), 0], gold)

    right, wrong = (0, False), (1, True)
    assert marks("ab cd", "ab cd") == [right] * 3 + [(1, False)] * 2 + [(2, False)]
    assert marks("ab xy", "ab cd")[2:] == [right, wrong, wrong, (2, False)]
    assert marks("ab", "ab cd") == [right, right, wrong]  # it ends too early
    assert marks("ab cd ef", "ab cd")[-3:] == [(2, True), (2, True), (3, False)]


def test_wrong_words_need_a_task_that_knows_the_answers(tmp_path: Path, tiny_model: Path) -> None:
    values = tiny.settings(tiny_model, tmp_path / "run")
    assert main(["train", *tiny.arguments({**values, "train.steps": 1})]) == 0
    with pytest.raises(UserError, match="has no gold"):
        measure(tmp_path / "run")


def test_the_command_line_refuses_in_one_line(capsys: Capture, tmp_path: Path) -> None:
    out = ["--output", str(tmp_path / "out")]
    assert main(["evidence", "--only", "tabel2", *out]) == 2
    assert "did you mean table2" in capsys.readouterr().err
    assert main(["evidence", "--train.lr", "1", *out]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err
    assert main(["evidence", "--only", "table2", "--jobs", "0", *out]) == 2
    assert "at least 1 run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["evidence", "--list", *out]) == 0
    assert "table2" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_registered_variant_trains(tmp_path: Path) -> None:
    """One or two steps of each, in this process: no experiment stops a night's work."""
    experiments = load_experiments()
    planned = [item for name in experiments for item in plan(experiments, name, tmp_path, True)]
    runs = {item.run.path: item.run for item in planned if item.dialect == 5}
    for path, run in runs.items():
        overrides = [*run.overrides, ("train.steps", 1), ("evaluation.at_start", False)]
        start_run(load_config(None, overrides), MuteView())
        rows = [row for row in read_metrics(path) if "tokens/rollout" in row]
        assert len(rows) == len(run.config.stream or [1])
    assert len(runs) >= 45


@pytest.mark.slow
def test_quick_gives_a_table(tmp_path: Path) -> None:
    assert main(["evidence", "--quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evidence.json").read_text())
    # Others that share runs with these are reported as far as they go.
    for name in ("table2", "noise", "fig5"):
        experiment = found["experiments"][name]
        assert experiment["runs"] == experiment["wanted"] and not experiment["failures"]
        assert all(claim["effect"] is not None for claim in experiment["claims"])
        assert (tmp_path / f"figures/{name}.png").is_file()
