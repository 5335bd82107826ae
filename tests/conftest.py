"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from bad_input import GOOD, Capture, Words, one_line
from hypothesis import HealthCheck, settings

from resd.cli import main

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
# A busy machine is no failure.
settings.register_profile("resd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("resd")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an untrained model that is fast to load and to run."""
    import torch

    torch.set_num_threads(1)
    return tiny.save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def train_words(tiny_model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a short `resd train`; keywords replace settings (`__` for a dot)."""

    def words(method: str = "resd", output: Path = tmp_path / "run", **over: Any) -> list[str]:
        values = tiny.settings(tiny_model, output, method, **over)
        return ["train", *tiny.arguments(values)]

    return words


# -- mistakes --------------------------------------------------------------------------------------


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights may be loaded."""

    def load(config: Any) -> None:
        raise AssertionError("a model was loaded before the refusal")

    monkeypatch.setattr("resd.models.spread.load_model", load)


@pytest.fixture
def refused(
    nothing_loads: None, train_words: Words, tmp_path: Path, capsys: Capture
) -> Callable[..., str]:
    """Run `resd train` that must be refused; returns the line."""

    def run(*extra: str, words: list[str] | None = None, **over: Any) -> str:
        given = train_words(**over) if words is None else words
        assert main([*given, *extra]) == 2
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "runs").exists()
        return one_line(capsys)

    return run


@pytest.fixture
def env(tmp_path: Path) -> Callable[[str], str]:
    """A task file: the good environment, and then what makes it bad."""

    def write(bad: str, name: str = "env.py") -> str:
        (tmp_path / name).write_text(GOOD + bad)
        return f"{tmp_path / name}:Env"

    return write


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))
