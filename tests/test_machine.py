"""`resd doctor` without a run: a line for each thing, and 1 only where nothing can be trained."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from bad_input import Capture, one_line

from resd.cli import machine, main
from resd.cli.machine import Finding
from resd.sandbox import SandboxUnavailable

NAMES = ["python", "torch", "libraries", "device", "precision", "engine", "sandbox", "trackers"]
NAMES += ["disk"]


def found(capsys: Capture, code: int = 0) -> dict[str, Finding]:
    assert main(["doctor", "--json"]) == code
    rows = [Finding(**row) for row in json.loads(capsys.readouterr().out)]
    return {row.name: row for row in rows}


def test_a_line_for_each_thing(capsys: Capture) -> None:
    import torch

    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[: len(NAMES)]] == NAMES
    assert {line.split()[0] for line in lines[: len(NAMES)]} <= {"ok", "warn", "off"}
    assert torch.__version__ in lines[1]
    assert lines[len(NAMES) + 1] == "Ready: resd train"


def test_without_torch_nothing_can_be_trained(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = found(capsys, 1)
    assert rows["torch"].state == "fail"
    assert "pip install 'torch==" in rows["torch"].detail
    assert {"sandbox", "disk"} <= rows.keys()
    assert "precision" not in rows
    assert main(["doctor"]) == 1
    assert "Nothing can be trained here." in capsys.readouterr().out


def test_without_a_library_nothing_can_be_trained(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = machine.find_spec
    monkeypatch.setattr(machine, "find_spec", lambda n: None if n == "peft" else there(n))
    assert found(capsys, 1)["libraries"].detail == "not installed: pip install peft"


def test_a_layer_that_does_not_move(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim.AdamW.step", lambda self: None)
    assert "a step moves no weight" in found(capsys, 1)["torch"].detail


def raising(error: Exception) -> Any:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def test_what_is_missing_says_what_to_do(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_speed_of_bfloat16", raising(RuntimeError("not implemented")))
    monkeypatch.setattr("resd.sandbox.make_sandbox", raising(SandboxUnavailable("no seccomp")))
    monkeypatch.setattr("resd.engines.vllm_ready.installed_version", lambda: "0.12.0")
    monkeypatch.setattr(machine, "find_spec", lambda name: name != "wandb" or None)
    monkeypatch.setattr("shutil.disk_usage", raising(OSError("gone")))
    rows = found(capsys)
    for name, state, said in (
        ("precision", "warn", "leave model.compute_dtype at float32"),
        ("sandbox", "warn", "no seccomp"),
        ("engine", "warn", "vLLM 0.12.0 is not one of 0.31 and 0.32: pip install"),
        ("trackers", "ok", "not installed: wandb (pip install 'resd[trackers]')"),
        ("disk", "warn", "cannot be told: OSError: gone"),
    ):
        assert rows[name].state == state, rows[name]
        assert said in rows[name].detail
    monkeypatch.setattr("resd.engines.vllm_ready.installed_version", lambda: "0.32.1")
    assert found(capsys)["engine"] == Finding(
        "engine", "ok", "hf, and vLLM 0.32.1: --engine.kind vllm"
    )


@pytest.mark.parametrize(
    ("ratio", "state", "said"),
    [
        (0.5, "warn", "0.50 times as fast: leave model.compute_dtype at float32"),
        (1.0, "ok", "1.00 times as fast"),
        (2.0, "ok", "2.00 times as fast: try --model.compute_dtype bfloat16"),
    ],
)
def test_the_speed_of_bfloat16(
    ratio: float, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_speed_of_bfloat16", lambda device: ratio)
    finding = machine._precision()
    assert finding.state == state
    assert finding.detail.endswith(said)


def test_what_is_of_a_run_wants_one(capsys: Capture) -> None:
    for words in (["--markdown"], ["--processes", "2"]):
        assert main(["doctor", *words]) == 2
        assert "of a run: name it" in one_line(capsys)
