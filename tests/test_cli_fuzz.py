"""Mangled command lines, configurations and files: one line and exit code 2, never a traceback."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resd.loop.trainer  # noqa: F401  (imported later it would keep what `here` patches)
from resd.cli import main
from resd.config import load_config
from resd.errors import UserError, one_line, terminal_safe

Capture = pytest.CaptureFixture[str]
LONG = "x" * 300
NASTY = [
    "",
    "-",
    "--",
    LONG,
    f"{LONG}/{LONG}.py:World",
    "a\0b",
    "\udcff",
    "[/red]",
    "\x1b[31m[bold]",
    "[" * 5000,
    '{"a":' * 900 + "1" + "}" * 900,
    "9" * 5000,
    "-1",
    "NaN",
    "1e999",
    "/",
    "/etc/shadow/x",
    "none",
    "{}",
    "[[]]",
    "é" * 200,
    "--output",
    "\u202e",
]
LINES = [
    ["train", "--task", "nowhere.py:World", "--model.path", "m", "--train.steps", "2"],
    ["train", "--resume", "nowhere", "--train.steps", "4", "--accept", "config"],
    ["train", "nowhere.toml", "--preset", "lab", "--method.name", "grpo"],
    ["eval", "nowhere", "--which", "best", "--samples", "0"],
    ["compare", "nowhere.toml", "--methods", "resd,grpo", "--seeds", "0-1", "--set", "a=1"],
    ["playbook", "show", "nowhere", "--json"],
    ["tasks", "check", "nowhere.py:World", "--limit", "2", "--task_args.a", "3"],
    ["tasks", "new", "no-name", "--directory", "nowhere"],
    ["push", "nowhere", "me/model", "--which", "final", "--private"],
    ["completion", "--for", "train", "--preset", "l"],
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)

    def load(*args: Any, **kwargs: Any) -> None:
        raise UserError("a model would be loaded now")

    for place in ("resd.loop.setup.load_tokenizer", "resd.models.load.load_model"):
        monkeypatch.setattr(place, load)
    monkeypatch.setattr("resd.models.load.read_context_length", load)
    return tmp_path


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    line=st.sampled_from(LINES),
    position=st.integers(0, 8),
    word=st.one_of(st.sampled_from(NASTY), st.text(max_size=20)),
    how=st.sampled_from(["replace", "insert", "drop", "append", "value"]),
)
def test_a_mangled_command_line_is_refused(
    here: Path, capsys: Capture, line: list[str], position: int, word: str, how: str
) -> None:
    words, place = list(line), position % len(line)
    if how == "replace":
        words[place] = word
    elif how == "insert":
        words.insert(place, word)
    elif how == "append":
        words[place] += word
    elif how == "drop":
        del words[place]
    else:
        words += ["--train.lr", word]
    try:
        code = main(words)
    except SystemExit as stopped:  # --help
        code = int(stopped.code or 0)
    error = capsys.readouterr().err
    assert code in (0, 2)
    assert "Traceback" not in error
    assert not any(ord(letter) < 32 and letter != "\n" for letter in error)
    if code == 2:
        assert error.count("\n") == 1, error
        assert error.startswith("resd: ")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "wanted"),
    [(LONG, "name too long"), ("a\0b", "holds a null byte"), ("\udcff", "is not UTF-8 text")],
)
def test_words_that_are_no_path(word: str, wanted: str, here: Path, capsys: Capture) -> None:
    commands = [["playbook", "show"], ["train", "--resume"], ["train"]]
    for words in commands if word == LONG else [*commands, ["eval"], ["tasks", "check"]]:
        assert main([*words, word]) == 2
        assert wanted in capsys.readouterr().err


FILES: dict[str, bytes] = {
    "deep": b"a = " + b"[" * 5000 + b"]" * 5000,
    "deep tables": b"[" + b".".join([b"a"] * 3000) + b"]\nb = 1",
    "less deep": b"task_args = " + b"[" * 100 + b"]" * 100,
    "not UTF-8": b"task = '\xff\xfe'",
    "a huge number": b"seed = " + b"9" * 5000,
    "null bytes": b"\0" * 100,
    "UTF-16": "seed = 3".encode("utf-16"),
    "binary": bytes(range(256)),
    "markup": b"'[/red]' = 3",
    "escapes": b'"\\u001b[31m" = 3',
    "inf": b"seed = inf",
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_configuration(name: str, here: Path, capsys: Capture) -> None:
    (here / "c.toml").write_bytes(FILES[name])
    for words in (["train", "c.toml"], ["compare", "c.toml"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert "\x1b" not in error
    assert [file.name for file in here.iterdir()] == ["c.toml"]


@pytest.mark.parametrize("name", ["playbook.md", "playbook.json", "config.toml"])
def test_a_directory_where_a_file_belongs(name: str, here: Path, capsys: Capture) -> None:
    run = here / "run"
    (run / name).mkdir(parents=True)
    if name != "config.toml":
        (run / "config.toml").write_text('[model]\npath = "m"\n')
    for words in (["playbook", "show", "run"], ["train", "--resume", "run/" + name]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


MEANT = {
    ("trian",): "train",
    ("playbook", "shw", "x"): "show",
    ("tasks", "chek", "lab"): "check",
    ("eval", "m", "--which", "bst"): "best",
    ("train", "--train.lrr", "1"): "lr",
    ("train", "--steps", "1"): "train.steps",
    ("train", "--top_p", "1"): "rollout.top_p",
    ("train", "--modle.path", "m"): "model",
    ("train", "--method.name", "gpro"): "grpo",
    ("train", "--preset", "smoll"): "smol",
    ("train", "--task", "manufactora", "--model.path", "m"): "manufactoria",
}


@pytest.mark.parametrize("words", MEANT)
def test_a_typing_error_names_what_is_meant(
    words: tuple[str, ...], here: Path, capsys: Capture
) -> None:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert f"did you mean {MEANT[words]}?" in error
    assert error.count("\n") == 1


def test_nesting_is_refused_in_a_program_too() -> None:
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(UserError, match="nested deeper"):
        load_config(None, [("model.path", "m"), ("task_args.a", deep)])


SHOWN = {
    "plain\ttext\n": "plain\ttext\n",
    "a\x1b[31;1mb\x1b[0m": "ab",
    "\x1b]0;title\x07x\x1b]8;;http://a\x1b\\y": "xy",
    "\x1bP1;2q~\x1b\\z": "z",
    "\x9b31mc\x9d0;t\x9cd": "cd",
    "bell\x07 back\x08 return\rdelete\x7f": "bell? back? return?delete?",
    "turn\u202eed\u2066": "turn?ed?",
    "half \ud800": "half ?",
    "\x1b": "?",
    "\x1b[": "?[",
    "[/red][bold]": "[/red][bold]",
    "line\r\nline": "line\nline",
}


@pytest.mark.parametrize("text", SHOWN)
def test_text_for_a_terminal(text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert terminal_safe(text, stream) == SHOWN[text]
    assert "\n" not in one_line(text, stream)


def test_a_terminal_that_cannot_say_it() -> None:
    assert terminal_safe("é☃a", io.TextIOWrapper(io.BytesIO(), encoding="ascii")) == "??a"
    assert terminal_safe("é", io.TextIOWrapper(io.BytesIO(), encoding="latin-1")) == "é"


def test_a_terminal_without_unicode_ends_nothing(here: Path, monkeypatch: Any) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    run = here / "run"
    run.mkdir()
    (run / "config.toml").write_text('[model]\npath = "m"\n')
    (run / "playbook.md").write_text("- use é \x1b[2J [/red]\n", encoding="utf-8")
    (run / "playbook.json").write_text('["é"]', encoding="utf-8")
    assert main(["playbook", "show", "run"]) == 0
    assert main(["playbook", "show", "run", "--json"]) == 0
    stream.flush()
    assert b"- use ? " in stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"\x1b" not in stream.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights(here: Path, capsys: Capture) -> None:
    (here / "c.toml").touch(mode=0)
    assert main(["train", "c.toml"]) == 2
    assert "Permission denied" in capsys.readouterr().err
