"""The view and the traces are there to be looked at: that they fail never ends a run."""

import io
import json
import os
import subprocess
import sys

import pytest
import tiny

from resd.cli import main
from resd.loop.safe_view import SafeView
from resd.runs import RunDirectory
from resd.runs.atomic import StorageError


class Failing:
    """A view whose n-th call fails."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if len(self.calls) >= self.at:
                raise self.error

        return call


@pytest.mark.parametrize("error", [RuntimeError("no terminal"), UnicodeError("a surrogate")])
def test_a_view_that_fails_is_not_asked_again(error):
    view = Failing(2, error)
    safe = SafeView(view)
    safe.warn("one")
    safe.stepped(1, {}, "")
    safe.finished(None, 1, [])
    safe.close()
    assert view.calls == ["warn", "stepped"]


class Heard:
    """A view that remembers what it is told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_everything_is_passed_on():
    heard = Heard()
    safe = SafeView(heard)
    safe.begin("config", 1, 9)
    safe.stepped(2, {"a": 1}, "lesson")
    safe.evaluated(3, "result")
    safe.warn("text")
    safe.finished("path", 3, [{}])
    safe.close()
    assert heard.calls == [
        ("begin", "config", 1, 9),
        ("stepped", 2, {"a": 1}, "lesson"),
        ("evaluated", 3, "result"),
        ("warn", "text"),
        ("finished", "path", 3, [{}]),
        ("close",),
    ]


@pytest.mark.parametrize(
    ("error", "shut"), [(OSError(), True), (ValueError(), True), (KeyError(), False)]
)
def test_what_could_not_be_written_is_not_tried_again(error, shut, monkeypatch):
    """What waits in the buffer of a broken pipe would fail once more when the process ends."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    SafeView(Failing(1, error)).warn("text")
    assert (sys.stdout is not output) is shut
    if shut:
        assert sys.stdout.name == os.devnull
        sys.stdout.close()


def test_an_interrupt_in_a_view_is_the_users():
    with pytest.raises(KeyboardInterrupt):
        SafeView(Failing(1, KeyboardInterrupt())).warn("text")


def test_a_run_whose_output_nobody_reads_comes_to_its_end(tiny_model, tmp_path):
    words = ["train", *tiny.arguments(tiny.settings(tiny_model, tmp_path / "run", train__steps=3))]
    process = subprocess.Popen(
        [sys.executable, "-m", "resd.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait() == 0, said
    assert (tmp_path / "run" / "done.json").is_file()


def test_traces_that_cannot_be_written_are_given_up(train_words, tmp_path, monkeypatch, capsys):
    def trace(self, what, step, records):
        raise StorageError("the disk is full")

    monkeypatch.setattr(RunDirectory, "trace", trace)
    assert main(train_words("sdpo")) == 0
    assert capsys.readouterr().err.count("no more traces from step 0 on: the disk is full") == 1
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 4
