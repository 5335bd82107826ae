"""Tab completion and the help of one setting: what is offered, and what is said of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import Capture, one_line

from resd.cli import main
from resd.cli.completion import SCRIPTS
from resd.cli.setting import help_of, walk
from resd.cli.settings import settings
from resd.config import METHODS, RunConfig, preset_names
from resd.config.run import ENGINES
from resd.tasks.registry import ADAPTERS, BUILT_IN


def offered(capsys: Capture, *words: str) -> list[str]:
    assert main(["completion", "--for", *words]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), {"train", "eval", "push", "completion"}),
        (("tr",), {"train", "traces"}),
        (("traces", ""), {"export"}),
        (("tasks", "check", "bou"), {"bouncing"}),
        (("tasks", "check", "--task_args.x", ""), set()),
        (("probe", "reas"), {"reasoning_gym:"}),
        (("train", "--preset", ""), set(preset_names())),
        (("doctor", "--preset", "la"), {"lab"}),
        (("train", "--task", ""), {*BUILT_IN, *(f"{adapter}:" for adapter in ADAPTERS)}),
        (("train", "--method.name", ""), set(METHODS)),
        (("train", "--engine.kind", ""), set(ENGINES)),
        (("train", "--method.support", ""), {"student", "teacher", "both", "full"}),
        (("train", "--train.shuffle", ""), {"true", "false"}),
        (("probe", "lab", "lab", "--method.teacher.kind", "f"), {"frozen"}),
        (("train", "--train.lr", ""), set()),
        (("train", "--train.s"), {"--train.steps", "--train.shuffle"}),
        (("train", "--dr"), {"--dry-run"}),
        (("train", "--help", "train.b"), {"train.batch_size"}),
        (("--help", "sdp"), {"sdpo", "sdpo_ss"}),
        (("eval", "run", "--which", ""), {"best", "final"}),
        (("push", "run", "me/x", "--pri"), {"--private"}),
        (("train", "run"), set()),
        (("no", "such", "command"), set()),
    ],
)
def test_what_is_offered(words: tuple[str, ...], wanted: set[str], capsys: Capture) -> None:
    found = offered(capsys, *words)
    assert set(found) >= wanted if not words else set(found) == wanted
    assert found == sorted(found)


def test_every_setting_is_offered(capsys: Capture) -> None:
    assert {f"--{key}" for key, _, _ in settings(RunConfig)} <= set(offered(capsys, "train", "--"))


@pytest.fixture
def shell_path(tmp_path: Path) -> str:
    """A PATH on which `resd` is this one."""
    program = tmp_path / "resd"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resd.cli "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


def asked(shell: str, script: str, path: str) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run(
        [shell, "-c", SCRIPTS[shell] + script],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash(shell_path: str) -> None:
    script = (
        'COMP_WORDS=(resd train --method.teacher.kind ""); COMP_CWORD=3; _resd; '
        'echo "${COMPREPLY[@]}"; complete -p resd | grep -c _resd'
    )
    assert asked("bash", script, shell_path) == ["ema", "frozen", "live", "1"]


def test_fish(shell_path: str) -> None:
    assert asked("fish", "complete -C 'resd train --method.teacher.kind '", shell_path) == [
        "ema",
        "frozen",
        "live",
    ]


def test_zsh(shell_path: str) -> None:
    script = (
        'compadd() { shift; print -- "$@" }; words=(resd train --method.teacher.kind ""); '
        "CURRENT=4; _resd"
    )
    found = asked("zsh", "compdef() { : }\n" + script, shell_path)
    assert found == ["ema", "frozen", "live"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shells_script_is_printed(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]


# -- the help of one setting -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("train.lr", ["--train.lr", "type: number, above 0, at most 10", "default: 1e-06"]),
        ("method.top_k", ["type: whole number, at least 1; or none", "of: resd, sdpo, sdpo_ss"]),
        ("method.support", ["type: one of student, teacher, both, full", "default: both"]),
        ("method.name", ["type: one of resd, sdpo, sdpo_ss, grpo, handoff", "default: resd"]),
        ("checkpoint.every", ["whole number, at least 1; or text, in the form", "default: 10 min"]),
        ("trackers", ["type: list: one of tensorboard, wandb, trackio, mlflow"]),
        ("train", ["train: training", "--train.steps", "--train.early_stop"]),
        ("method.teacher", ["method.teacher: the self-teacher", "--method.teacher.rate"]),
        ("grpo", ["grpo: GRPO", "--method.scale_rewards"]),
    ],
)
def test_help_of_a_setting(key: str, lines: list[str], capsys: Capture) -> None:
    for words in (["train", "--help", key], ["--help", key]):
        assert main(words) == 0
        text = capsys.readouterr().out
        for line in lines:
            assert line in text
    assert "--method.alpha" not in text


def test_there_is_help_of_everything() -> None:
    for setting in walk():
        text = help_of(setting.key)
        assert text.startswith((f"--{setting.key}\n", f"{setting.key}: "))
        assert setting.description in text
    assert help_of("train").count("type: ") == len(help_of("train").split("\n\n")) - 1


def test_an_unknown_key_is_refused(capsys: Capture) -> None:
    assert main(["train", "--help", "train.lrr"]) == 2
    line = one_line(capsys)
    assert "no setting train.lrr; did you mean train.lr?" in line
    assert "groups of settings: model, method" in line
