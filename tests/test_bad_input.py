"""What a user can get wrong: one line that says what and where, and exit code 2.

Nothing is loaded and nothing left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from bad_input import Capture, Words, method, one_line

from resd.cli import main

# -- settings -------------------------------------------------------------------------------------


TOML = {
    "not TOML": ("[train\nlr = 1", ["config.toml is not valid TOML", "line 1"]),
    "unknown table": ("[trian]\nlr = 1", ["unknown key trian", "train"]),
    "unknown key": ("[train]\nlearning_rate = 1", ["unknown key train.learning_rate", "lr"]),
    "unknown key deep down": (
        "[method.playbook]\nsize = 3",
        ["unknown key method.playbook.size", "max_entries"],
    ),
    "key of another method": (
        '[method]\nname = "grpo"\nalpha = 0.5',
        ["unknown key method.alpha", "clip_low"],
    ),
    "unknown method": ('[method]\nname = "ppo"', ["unknown method 'ppo'", "resd, sdpo"]),
    "method as text": ('method = "grop"', ["unknown method 'grop'", "did you mean grpo"]),
    "unknown preset": ('preset = "huge"', ["no preset 'huge'", "lab"]),
    "unknown task": ('task = "chess"', ["unknown task 'chess'", "path/to/file.py:Class"]),
    "NaN": ("[train]\nlr = nan", ["train.lr", "finite"]),
    "infinity": ("[method]\nratio_max = inf", ["method.ratio_max", "finite"]),
    "text for a number": ('[train]\nsteps = "many"', ["train.steps", "'many'"]),
    "no steps": ("[train]\nsteps = 0", ["train.steps", "greater than or equal to 1"]),
    "no batch": ("[train]\nbatch_size = 0", ["train.batch_size"]),
    "negative seed": ("seed = -1", ["seed", "-1"]),
    "seed too large": ("seed = 9223372036854775808", ["seed"]),
    "rate without measure": ("[train]\nlr = 1e9", ["train.lr", "less than or equal"]),
    "negative rate": ("[train]\nlr = -1e-3", ["train.lr"]),
    "no samples": ("[evaluation]\nsamples = 0", ["evaluation.samples"]),
    "no temperature": ("[rollout]\ntemperature = 0", ["rollout.temperature"]),
    "top-p above 1": ("[rollout]\ntop_p = 1.5", ["rollout.top_p"]),
    "alpha above 1": ("[method]\nalpha = 2", ["method.alpha"]),
    "negative exponents": ("[method]\nsuccess_weights = [-1, 1]", ["method.success_weights"]),
    "crossed ratios": ("[method]\nratio_min = 3\nratio_max = 2", ["ratio_min 3.0 is above"]),
    "EMA rate of zero": ("[method.teacher]\nrate = 0", ["method.teacher.rate"]),
    "unknown device": ('[model]\ndevice = "abacus"', ["model.device", "abacus"]),
    "unknown tracker": ('trackers = ["paper"]', ["trackers"]),
    "a tracker that is not installed": ('trackers = ["trackio"]', ["trackio is not installed"]),
    "no place for a prompt": (
        "[rollout]\nmax_new_tokens = 1020",
        ["rollout.max_new_tokens 1020", "1024"],
    ),
    "no place for a reflection's prompt": (
        "[method]\nreflection_tokens = 1020",
        ["method.reflection_tokens", "1024"],
    ),
    "unknown argument of the task": ("[task_args]\nsize = 3", ["task_args", "size", "noisy"]),
    "no template directory": ('templates = "/nowhere"', ["templates", "/nowhere"]),
}


@pytest.mark.parametrize("name", TOML)
def test_settings_in_a_file(
    name: str, refused: Callable[..., str], tiny_model: Path, tmp_path: Path
) -> None:
    text, wanted = TOML[name]
    values = tiny.settings(tiny_model, tmp_path / "run")
    keep = {"task", "model.path", "output", "rollout.max_new_tokens", "method.reflection_tokens"}
    keep = {key for key in keep if f"{key.rpartition('.')[2]} =" not in text}
    (tmp_path / "config.toml").write_text(text)
    rest = {key: value for key, value in values.items() if key in keep}
    if 'name = "' in text or text.startswith("method"):
        rest = {key: value for key, value in rest.items() if not key.startswith("method")}
    line = refused(words=["train", str(tmp_path / "config.toml"), *tiny.arguments(rest)])
    for word in wanted:
        assert word in line


COMMAND = {
    "two files": (["a.toml", "b.toml"], ["two config files"]),
    "no such file": (["nowhere.toml"], ["nowhere.toml does not exist"]),
    "a directory": (["."], ["cannot be read"]),
    "no value": (["--train.lr"], ["--train.lr needs a value"]),
    "a value that is a key": (["--train.lr", "--seed", "3"], ["--train.lr needs a value"]),
    "a value on the way": (["--seed", "3", "--seed.x", "4"], ["--seed.x", "seed is a value"]),
    "an empty key": (["--=3"], ["unknown key"]),
    "a method": (["--method", "grop"], ["unknown method 'grop'", "did you mean grpo"]),
    "a number for a method": (["--method", "3"], ["method"]),
    "an unknown key": (["--train.learning-rate", "3"], ["unknown key train.learning_rate"]),
    "NaN": (["--train.lr", "NaN"], ["train.lr", "finite"]),
}


@pytest.mark.parametrize("name", COMMAND)
def test_words_of_the_command_line(
    name: str, nothing_loads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    words, wanted = COMMAND[name]
    assert main(["train", *words]) == 2
    line = one_line(capsys)
    assert list(tmp_path.iterdir()) == []
    for word in wanted:
        assert word in line


def test_a_file_that_is_no_text(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    assert "c.toml cannot be read" in refused(words=["train", str(tmp_path / "c.toml")])


def test_a_task_of_ones_own_without_a_model(
    refused: Callable[..., str], env: Callable[[str], str]
) -> None:
    assert "model.path is not set" in refused(words=["train", "--task", env("")])


# -- templates ------------------------------------------------------------------------------------


TEMPLATES = {
    "does not parse": ("teacher.jinja", b"{% if %}", ["teacher.jinja", "line 1"]),
    "unknown variable": ("reflect.jinja", b"{{ qestion }}", ["reflect.jinja", "qestion"]),
    "no text": ("curate.jinja", b"\xff\xfe\xff", ["templates"]),
    "divides by zero": ("review.jinja", b"{{ 1 / 0 }}", ["templates", "ZeroDivisionError"]),
    "needs a playbook": (
        "teacher.jinja",
        b"{{ question }} {{ playbook[0].content }}",
        ["teacher.jinja"],
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    file, content, wanted = TEMPLATES[name]
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / file).write_bytes(content)
    line = refused(templates=str(tmp_path / "templates"))
    for word in wanted:
        assert word in line


# -- the other commands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["eval", "/nowhere"], "no model directory /nowhere"),
        (["eval", "MODEL", "--samples", "0"], "--samples must be at least 1"),
        (["eval", "MODEL", "--seed", "-1"], "--seed must be at least 0"),
        (["eval", "MODEL", "--task", "chess"], "unknown task 'chess'"),
        (["playbook", "show", "/nowhere"], "no run directory /nowhere"),
        (["playbook", "show", "MODEL"], "no config.toml"),
    ],
)
def test_other_commands(words: list[str], wanted: str, tiny_model: Path, capsys: Capture) -> None:
    assert main([str(tiny_model) if word == "MODEL" else word for word in words]) == 2
    assert wanted in one_line(capsys)


def test_an_evaluation_says_when_the_environment_fails(
    env: Callable[[str], str], tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    task = env(
        method("evaluate", "return super().evaluate(example, response) if not response else 1")
    )
    words = ["eval", str(tiny_model), "--task", task, "--samples", "1"]
    assert main([*words, "--output", str(tmp_path / "answers")]) == 0
    assert "failed on 4 responses" in capsys.readouterr().err


def test_a_playbook_of_a_method_that_keeps_none(
    train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    assert main(train_words("sdpo", train__steps=1)) == 0
    capsys.readouterr()
    assert main(["playbook", "show", str(tmp_path / "run")]) == 2
    assert "no playbook" in one_line(capsys)
