"""Before a model is loaded: adapters, attention, memory, disk; the dry run."""

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
from bad_input import Capture, Words

from resd.cli import main
from resd.config import RunConfig, load_config
from resd.models import check
from resd.models.memory import Memory
from resd.runs.disk import disk


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"model__lora__target_modules": ["nowhere"]}, "nowhere matches no module of the model"),
        ({"model__lora__target_modules": "nowhere"}, "model.lora does not fit the model"),
        ({"model__lora__target_modules": ["q_proj", "lm_head"]}, "the head cannot carry"),
        ({"model__lora__target_modules": ".*(q_proj|lm_head)"}, "the head cannot carry"),
        ({"model__lora__dropout": 0.1}, "model.lora.dropout is 0.1"),
        ({"model__attention": "spda"}, "model.attention: unknown 'spda'; did you mean sdpa"),
        ({"model__attention": "flash_attention_2"}, "computes in bfloat16 alone"),
        (
            {"model__attention": "flash_attention_2", "model__compute_dtype": "bfloat16"},
            "runs on a GPU alone",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    over: dict[str, Any], said: str, refused: Callable[..., str]
) -> None:
    assert said in refused(model__device="cpu", **over)


def test_an_attention_is_used(train_words: Words, tmp_path: Path, monkeypatch: Any) -> None:
    from resd.models import load

    seen = []
    whole = load.load_whole

    def watched(*args: Any) -> Any:
        model = whole(*args)
        seen.append(model.config._attn_implementation)
        return model

    monkeypatch.setattr(load, "load_whole", watched)
    assert main(train_words("grpo", model__attention="eager", train__steps=1)) == 0
    assert seen[0] == "eager"


def test_a_flash_attention_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(check, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setitem(check._ATTENTION, "flash_attention_2", "no_such_package")
    words = [("model.attention", "flash_attention_2"), ("model.compute_dtype", "bfloat16")]
    with pytest.raises(check.UserError, match="needs the package no_such_package"):
        check.check_attention(load_config(None, words))


def test_a_model_that_is_too_large_is_refused_or_warned_of(
    refused: Callable[..., str],
    train_words: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(check, "host_memory", lambda: 10**5)
    line = refused()
    assert "weights, gradients, optimiser and teacher" in line
    assert "the cpu has" in line
    monkeypatch.undo()
    monkeypatch.setattr(check, "host_memory", lambda: 10**5)
    assert main(train_words(model__check_memory=False, train__steps=1)) == 0
    assert "warning: model.path: weights, gradients" in capsys.readouterr().err
    config = load_config(None, list(tiny.settings(Path("lab"), tmp_path / "run").items()))
    base = Memory(config).estimate(device="cpu").certain
    monkeypatch.setattr(check, "host_memory", lambda: base + 10**6)
    (warning,) = check.check_model(config)
    assert "a step may need" in warning
    # Processes on one host share its memory.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(check, "host_memory", lambda: 10**12)
    assert check.check_model(config) == []
    assert check.usable_device(config)[1] == 2


def test_too_little_disk_is_warned_of(
    train_words: Words, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert main([*train_words(), "--dry-run"]) == 0
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setattr(check, "free_disk", lambda place: 10)
    assert main([*train_words(), "--dry-run"]) == 0
    assert "lower checkpoint.keep" in capsys.readouterr().out


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.host_memory() == min(check.host_memory() or 0, 1 << 50)
    monkeypatch.setattr(Path, "read_text", lambda self: "4096\n")
    assert check.host_memory() == 4096
    monkeypatch.setattr(Path, "read_text", lambda self: "max\n")
    assert (check.host_memory() or 0) > 4096


def test_a_dry_run_checks_and_leaves_nothing(
    train_words: Words, nothing_loads: None, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*train_words(), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for words in (
        "memory of one process",
        "at most",
        "4 steps on 8 examples",
        "Nothing was loaded",
    ):
        assert words in text
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/taken").touch()
    assert main([*train_words(), "--dry-run"]) == 2
    assert main(["train", "--resume", str(tmp_path / "run"), "--dry-run"]) == 2
    assert main(["eval", "lab", "--dry-run"]) == 2


def test_a_dry_run_speaks_for_all_processes(
    train_words: Words, nothing_loads: None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    started = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**started, "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([*train_words(), "--dry-run"]) == 0
    assert "each of 4 processes" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "3")
    assert main([*train_words(), "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"model__compute_dtype": "bfloat16"},
        {"model__lora__rank": 64},
        {"model__lora__rank": 64, "model__compute_dtype": "bfloat16"},
        {"method__teacher__kind": "frozen"},
    ],
)
def test_the_disk_is_what_a_run_writes(
    over: dict[str, Any], train_words: Words, tmp_path: Path
) -> None:
    words = train_words("sdpo", checkpoint__keep=2, checkpoint__keep_evaluated=2, **over)
    assert main(words) == 0
    config: RunConfig = load_config(tmp_path / "run/config.toml")
    sizes = Memory(config).sizes
    said = disk(config, sizes.bare, sizes.trained, sizes.b, sizes.trained_b, sizes.wide)
    for name, folder in (("checkpoints", "checkpoints"), ("evaluated students", "evaluated")):
        found = list((tmp_path / "run" / folder).glob("step-*"))
        assert len(found) == 2
        shards = folder == "checkpoints"
        written = sum(bytes_of_shards(p) if shards else bytes_of(p) for p in found)
        # One more while it is written.
        assert said[name] * 2 / 3 == pytest.approx(written, rel=0.01 if shards else 0.2)
    written = bytes_of(tmp_path / "run/final") + bytes_of(tmp_path / "run/best")
    assert said["final and best"] == pytest.approx(written, rel=0.2)


def bytes_of_shards(checkpoint: Path) -> int:
    """Bytes of a checkpoint's tensors: a tiny model's lie in files that are a fifth envelopes."""
    return sum(t.nbytes for t in tiny.tensors_of(checkpoint / "tensors").values())


def bytes_of(place: Path) -> int:
    """Bytes of tensors: what a large model's directory mostly is."""
    plain = (".json", ".jinja", ".txt", ".md")
    files = [file for file in place.rglob("*") if file.is_file() and file.suffix not in plain]
    return sum(file.stat().st_size for file in files)


# The other cases of the benchmark stand in LOG.md.
MEASURED = [
    "full",
    "full, no teacher of its own",
    "full, checkpointing",
    "full, bfloat16",
    "LoRA, bfloat16, checkpointing",
    "experts",
]


@pytest.mark.slow
def test_whole_runs_stay_within_a_fifth_of_the_estimate() -> None:
    benchmark = Path(__file__).resolve().parents[1] / "benchmarks/memory.py"
    done = subprocess.run(
        [sys.executable, str(benchmark), "--json", *MEASURED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["case"] for row in rows] == MEASURED
    for row in rows:
        assert row["estimate"] == pytest.approx(row["measured"], rel=0.2), row["case"]
