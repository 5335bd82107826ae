"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, settings

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
