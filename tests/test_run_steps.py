"""Which steps of a run evaluate and save, who is left out, and the summary at the end."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Capture, Words, method

from resd.cli import main
from resd.loop.trainer import Trainer
from resd.runs import read_metrics


def went(words: list[str], run: Path) -> list[dict[str, Any]]:
    assert main(words) == 0
    return read_metrics(run)


def evaluated(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows if "eval/problems" in row]


@pytest.mark.parametrize(
    ("every", "at_start", "steps"),
    [(2, True, [0, 2, 3]), (0, True, [0, 3]), (1, False, [1, 2, 3]), (9, False, [3])],
)
def test_when_a_run_evaluates(
    every: int, at_start: bool, steps: list[int], train_words: Words, tmp_path: Path
) -> None:
    over = {"evaluation__every": every, "evaluation__at_start": at_start, "train__steps": 3}
    assert evaluated(went(train_words("sdpo", **over), tmp_path / "run")) == steps


def test_when_a_run_saves(
    train_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    real = Trainer._checkpoint

    def checkpoint(self: Trainer) -> None:
        saved.append(self.progress.step)
        real(self)

    monkeypatch.setattr(Trainer, "_checkpoint", checkpoint)
    went(train_words("sdpo", checkpoint__every=2, train__steps=5), tmp_path / "run")
    assert saved == [0, 2, 4, 5]


def test_a_run_that_broke_off_before_its_first_checkpoint_begins_again(
    train_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Trainer) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_checkpoint", interrupted)
        assert main(train_words("sdpo", train__steps=1)) == 130
    assert evaluated(read_metrics(run)) == [0]
    assert evaluated(went(["train", "--resume", str(run)], run)) == [0, 1]


PASSES_ONE = method(
    "evaluate", "return Outcome(float(example.id == 'train-1'), example.id == 'train-1', 'no')"
)


@pytest.mark.parametrize(("early_stop", "rollouts"), [(True, [4, 3, 4, 3]), (False, [4] * 4)])
def test_who_passed_is_left_out_until_the_next_batch(
    early_stop: bool,
    rollouts: list[int],
    train_words: Words,
    env: Callable[[str], str],
    tmp_path: Path,
) -> None:
    words = train_words("sdpo", task=env(PASSES_ONE), train__early_stop=early_stop)
    rows = [row for row in went(words, tmp_path / "run") if "rollout/length" in row]
    totals = [row["rollouts"] for row in rows]
    assert [b - a for a, b in zip([0, *totals], totals, strict=False)] == rollouts


def test_the_summary_of_a_run(
    train_words: Words, env: Callable[[str], str], tmp_path: Path, capsys: Capture
) -> None:
    bad = method(
        "evaluate",
        "if example.id == 'train-1' and response: raise ValueError('at times')\n"
        "        return super().evaluate(example, response)",
    )
    rows = went(train_words("sdpo", task=env(bad), train__steps=3), tmp_path / "run")
    counted: Counter[str] = Counter()
    for row in rows:
        counted.update({k[6:]: v for k, v in row.items() if k.startswith("count/")})
    assert counted["env_raised"] == 3
    summary = json.loads((tmp_path / "run" / "done.json").read_text())
    # Nothing passes: the evaluations are equal, and the first of equals is the best.
    assert summary == {"steps": 3, "best_step": 0, "rollouts": 12, "counts": dict(counted)}
    assert re.search(r"done: .*best step 0", capsys.readouterr().out)


def test_a_run_says_once_that_its_loss_sees_little_of_the_teacher(
    train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    for top_k, times in ((1, 1), (1024, 0)):
        over = {"method__top_k": top_k, "method__support": "student", "train__steps": 2}
        assert main(train_words("sdpo", tmp_path / f"run{top_k}", **over)) == 0
        assert capsys.readouterr().err.count("cannot be taught") == times
