"""What a checkpoint holds comes back as it was; a damaged one is named in one line."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resd.errors import UserError
from resd.loop.state import Progress, restore_state, save_state
from resd.models.load import load_whole
from resd.runs import atomic


class Part:
    """A policy update or a method, as far as a checkpoint knows it."""

    def __init__(self, number: float) -> None:
        self.held, self.facts = {"numbers": torch.tensor([number])}, {"entries": [number]}

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.held

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        self.held = tensors

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.facts = state


class Update(Part):
    state_dict = Part.tensors
    load_state_dict = Part.load_tensors


class Method(Part):
    def state_dict(self) -> dict[str, Any]:
        return self.facts


PROGRESS = Progress(
    3, {"b", "a"}, [{"step": 0.0, "mean": 0.5}], Counter(rollouts=12, env_timeout=1)
)


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return load_whole(tiny_model, torch.float32)


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> Path:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    save_state(tmp_path, PROGRESS, model, Update(1.0), Method(2.0))  # type: ignore[arg-type]
    return tmp_path


def restore(path: Path, model: Any) -> tuple[Progress, Update, Method]:
    update, method = Update(0.0), Method(0.0)
    return restore_state(path, model, update, method), update, method  # type: ignore[arg-type]


def test_everything_comes_back(saved: Path, model: Any) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    drawn = random.random(), np.random.rand(), torch.rand(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1
    progress, update, method = restore(saved, model)
    assert progress == PROGRESS
    assert progress.totals["never"] == 0
    assert update.held["numbers"] == 1.0
    assert (method.held["numbers"], method.facts) == (2.0, {"entries": [2.0]})
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


class Malice:
    """Runs code in whoever unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("touched"),)


def change(path: Path, **values: Any) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, **values}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: change(path, version=1), "ValueError: a state of version 1, expected 2"),
        (lambda path: change(path, version=3), "ValueError: a state of version 3, expected 2"),
        (lambda path: change(path, step="x" * 999), "ValueError: invalid literal"),
        (lambda path: torch.save(Malice(), path / "state.pt"), "UnpicklingError"),
    ],
)
def test_damage_is_said_in_one_line_and_runs_no_code(
    saved: Path,
    model: Any,
    spoil: Callable[[Path], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(saved)
    spoil(saved)
    with pytest.raises(UserError) as caught:
        restore(saved, model)
    said = str(caught.value)
    assert said.startswith(f"checkpoint {saved} is damaged ({words}")
    assert "\n" not in said
    what = said.partition(" is damaged (")[2].partition("); remove it and resume again")[0]
    assert len(what) == 200 if "invalid" in words else len(what) <= 200
    assert not (saved / "touched").exists()


def test_a_break_between_the_parts_can_be_tried(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[tuple[str, list[str]]] = []

    def barrier(name: str) -> None:
        passed.append((name, sorted(file.name for file in tmp_path.iterdir())))

    monkeypatch.setattr(atomic, "barrier", barrier)
    save_state(tmp_path, PROGRESS, model, Update(1.0), Method(2.0))  # type: ignore[arg-type]
    assert passed == [
        ("checkpoint: model", ["model"]),
        ("checkpoint: tensors", ["model", "state.pt"]),
    ]
