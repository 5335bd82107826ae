"""What tests of mistakes share: a task file that is made bad, and what is seen of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from resd.cli import main
from resd.runs import read_metrics

Words = Callable[..., list[str]]
Capture = pytest.CaptureFixture[str]

GOOD = """
import math, sys
from resd import Example, Outcome

class Env:
    def examples(self, split):
        return [self.example(split, i) for i in range(4)]
    def example(self, split, i):
        return Example(f"{split}-{i}", [{"role": "user", "content": f"set lamp {i}"}])
    def evaluate(self, example, response):
        return Outcome(reward=0.0, passed=False, feedback="no")
"""


def one_line(capsys: Capture) -> str:
    """The only line on stderr."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1, error
    assert error.startswith("resd: ")
    return error.strip()


def method(name: str, body: str) -> str:
    """A subclass of the good environment with one other method."""
    heads = {
        "__init__": "(self)",
        "examples": "(self, split)",
        "evaluate": "(self, example, response)",
        "example": "(self, split, i)",
    }
    return f"\nclass Env(Env):\n    def {name}{heads[name]}:\n        {body}\n"


def outcome(arguments: str) -> str:
    return method("evaluate", f"return Outcome({arguments})")


def trained(words: list[str], run: Path) -> dict[str, float]:
    """Run to the end; the sums of all counts."""
    assert main(words) == 0
    counts: dict[str, float] = {}
    for row in read_metrics(run):
        for key, value in row.items():
            if key.startswith("count/"):
                counts[key] = counts.get(key, 0) + value
    assert (run / "done.json").is_file()
    return counts
