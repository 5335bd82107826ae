"""What goes wrong while a run runs: a skip that is counted, or a line and a run that can go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Capture, Words, method, one_line, outcome, trained

from resd.cli import main
from resd.engines import Completion, HFEngine
from resd.runs import read_metrics


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("raise ValueError('at times')", "env_raised"),
        ("sys.exit(1)", "env_raised"),
        ("return None", "env_wrong_type"),
        ("return Outcome(math.nan, False)", "reward_not_finite"),
        ("return Outcome(0.0, False, cases=1, cases_passed=2)", "env_wrong_type"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_environment_that_fails_at_times_is_counted(
    bad: str,
    reason: str,
    workers: int,
    train_words: Words,
    env: Callable[[str], str],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    task = env(
        method(
            "evaluate",
            f"if example.id in ('train-1', 'test-2') and response: {bad}\n"
            "        return super().evaluate(example, response)",
        )
    )
    words = train_words(task=task, train__steps=2, rollout__env_workers=workers)
    counts = trained(words, tmp_path / "run")
    error = capsys.readouterr().err
    assert counts[f"count/{reason}"] == 2
    assert f"warning: step 1: {reason}" in error
    assert "Traceback" not in error
    rows = [row for row in read_metrics(tmp_path / "run") if "eval/env_failed" in row]
    assert {row["eval/env_failed"] for row in rows} == {2}  # one of four problems, two samples


@pytest.mark.parametrize("when", ["rollout", "evaluation"])
def test_an_environment_that_fails_on_everything_stops_the_run_and_it_can_go_on(
    when: str, train_words: Words, env: Callable[[str], str], tmp_path: Path, capsys: Capture
) -> None:
    split = {"rollout": "train", "evaluation": "test"}[when]
    task = env(
        method(
            "evaluate",
            f"import pathlib\n        if example.id.startswith('{split}') and response and "
            f"pathlib.Path({str(tmp_path / 'down')!r}).exists(): raise OSError('server down')\n"
            "        return super().evaluate(example, response)",
        )
    )
    whole = train_words(output=tmp_path / "whole", task=task, train__steps=2)
    assert main(whole) == 0
    (tmp_path / "down").touch()
    capsys.readouterr()
    run = tmp_path / "run"
    assert main(train_words(task=task, train__steps=2)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert "the environment failed on every response" in last
    assert "server down" in last
    assert f"--resume {run}" in last
    (tmp_path / "down").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    for name in ("final/model.safetensors", "playbook.json", "done.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupt_is_said_and_the_run_can_go_on(
    train_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(self: Any, batch: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("resd.loop.trainer.Trainer._one_step", interrupted)
        assert main(train_words(train__steps=1)) == 130
    assert "--resume" in one_line(capsys)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_numbers_of_other_libraries_are_numbers(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    body = (
        "import numpy as np, torch\n        return Outcome(np.float32(0.5), np.bool_(False), 'no', "
        "np.int64(1), torch.tensor(2), {'a': np.float16(1), 'b': torch.tensor(2.0)})"
    )
    counts = trained(
        train_words(task=env(method("evaluate", body)), train__steps=1), tmp_path / "run"
    )
    assert not [key for key in counts if "env" in key or "reward" in key]
    row = next(row for row in read_metrics(tmp_path / "run") if "rollout/reward" in row)
    assert (row["rollout/reward"], row["rollout/cases"]) == (0.5, 0.5)
    assert (row["env/a"], row["env/b"]) == (1.0, 2.0)


def test_a_metric_that_is_not_finite_is_left_out_and_counted(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    task = env(outcome("0.0, False, 'no', metrics={'bad': math.nan, 'good': 1}"))
    counts = trained(train_words(task=task, train__steps=1), tmp_path / "run")
    assert counts["count/metric_not_finite"] == 4
    row = next(row for row in read_metrics(tmp_path / "run") if "rollout/reward" in row)
    assert row["env/good"] == 1.0
    assert "env/bad" not in row


@pytest.mark.parametrize("body", ["raise ValueError('x')", "return None", "return {'a': 'b'}"])
def test_a_playbook_score_that_fails_is_a_warning(
    body: str, train_words: Words, env: Callable[[str], str], tmp_path: Path, capsys: Capture
) -> None:
    task = env(f"\nclass Env(Env):\n    def score_playbook(self, contents):\n        {body}\n")
    trained(train_words(task=task, train__steps=1), tmp_path / "run")
    assert "score_playbook failed" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_skipped_and_counted(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    long = "'x ' * 3000 if i == 1 else 'y'"
    task = env(
        method("example", f"return Example(f'{{i}}', [{{'role': 'user', 'content': {long}}}])")
    )
    run = tmp_path / "run"
    assert trained(train_words(task=task), run)["count/prompt_too_long"] == 4  # once a step
    rows = [row for row in read_metrics(run) if "eval/skipped" in row]
    assert {(row["eval/skipped"], row["eval/problems"]) for row in rows} == {(1, 3)}


@pytest.mark.parametrize("name", ["resd", "sdpo", "sdpo_ss", "grpo"])
@pytest.mark.parametrize("ids", [(), (1,)])
def test_empty_responses(
    ids: tuple[int, ...],
    name: str,
    train_words: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that ends at once, with the end token or (another engine) without any."""
    monkeypatch.setattr(
        HFEngine,
        "generate",
        lambda self, requests, on_done=None: [Completion(ids, "", "stop")] * len(requests),
    )
    counts = trained(train_words(name), tmp_path / "run")
    expected = "count/nothing_to_say" if name == "grpo" else "count/empty_response"
    assert bool(counts.get(expected)) == (not ids or name == "grpo")
