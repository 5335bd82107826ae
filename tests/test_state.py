"""What a checkpoint holds comes back as it was; a damaged one is named in one line."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resd.backend import Local
from resd.errors import UserError
from resd.loop.state import Progress, restore_state, state_writer
from resd.runs import atomic


class Update:
    """A policy update, as far as a checkpoint knows it: one weight, one number of the optimiser."""

    def __init__(self, number: float, updates: int) -> None:
        self.updates = updates
        self.weight, self.room = torch.tensor([number]), {"exp_avg": torch.tensor([-number])}

    def tensors(self) -> dict[str, Any]:
        return {"weights": {"w": self.weight}, "optimizer": {"w": self.room} if self.room else {}}

    def expect(self, names: Collection[str]) -> None:
        assert set(names) == {"weights.w", "optimizer.w.exp_avg", "method.numbers"}
        self.room = {"exp_avg": torch.zeros(1)}

    def restored(self, updates: int) -> None:
        self.updates = updates


class Method:
    def __init__(self, number: float) -> None:
        self.held, self.facts = {"numbers": torch.tensor([number])}, {"entries": [number]}
        self.loaded = False

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.held

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        self.loaded = tensors["numbers"] is self.held["numbers"]

    def state_dict(self) -> dict[str, Any]:
        return self.facts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.facts = state


PROGRESS = Progress(
    3, {"b", "a"}, [{"step": 0.0, "mean": 0.5}], Counter(rollouts=12, env_timeout=1)
)


def write(place: Path, update: Update, method: Method, copy: bool = False) -> Callable[[], None]:
    fill = state_writer(Local(), PROGRESS, update, method, copy=copy)  # type: ignore[arg-type]
    return lambda: fill(place)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    write(tmp_path, Update(1.0, 7), Method(2.0))()
    return tmp_path


def restore(path: Path) -> tuple[Progress, Update, Method]:
    update, method = Update(0.0, 0), Method(0.0)
    update.room = {}
    return restore_state(path, Local(), update, method), update, method  # type: ignore[arg-type]


def test_a_run_begins_with_nothing() -> None:
    assert Progress() == Progress(0, set(), [], Counter())


def test_everything_comes_back(saved: Path) -> None:
    drawn = random.random(), np.random.rand(), torch.rand(1)
    progress, update, method = restore(saved)
    assert progress == PROGRESS
    assert progress.totals["never"] == 0
    assert (update.weight, update.room["exp_avg"], update.updates) == (1.0, -1.0, 7)
    assert (method.held["numbers"], method.facts, method.loaded) == (2.0, {"entries": [2.0]}, True)
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


@pytest.mark.parametrize("copy", [True, False])
def test_what_is_written_later_is_the_state_of_then_if_it_was_copied(
    copy: bool, tmp_path: Path
) -> None:
    update, method = Update(1.0, 7), Method(2.0)
    later = write(tmp_path, update, method, copy)
    update.weight.add_(1.0)
    method.facts["entries"].append(3.0)
    later()
    found, facts = restore(tmp_path)[1:]
    assert found.weight == (1.0 if copy else 2.0)
    assert facts.facts == {"entries": [2.0]}


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
        (lambda path: change(path, version=1), "ValueError: a state of version 1, expected 3"),
        (lambda path: change(path, version=4), "ValueError: a state of version 4, expected 3"),
        (lambda path: change(path, step="x" * 999), "ValueError: invalid literal"),
        (lambda path: torch.save(Malice(), path / "random.pt"), "UnpicklingError"),
    ],
)
def test_damage_is_said_in_one_line_and_runs_no_code(
    saved: Path,
    spoil: Callable[[Path], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(saved)
    spoil(saved)
    with pytest.raises(UserError) as caught:
        restore(saved)
    said = str(caught.value)
    assert said.startswith(f"checkpoint {saved} is damaged ({words}")
    assert "\n" not in said
    what = said.partition(" is damaged (")[2].partition("); remove it and resume again")[0]
    assert len(what) == 200 if "invalid" in words else len(what) <= 200
    assert not (saved / "touched").exists()


def test_a_break_between_the_parts_can_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[tuple[str, list[str]]] = []

    def barrier(name: str) -> None:
        passed.append((name, sorted(file.name for file in tmp_path.iterdir())))

    monkeypatch.setattr(atomic, "barrier", barrier)
    write(tmp_path, Update(1.0, 7), Method(2.0))()
    assert passed == [
        ("checkpoint: tensors", ["tensors"]),
        ("checkpoint: random", ["random.pt", "tensors"]),
    ]


def test_a_checkpoint_that_lacks_a_weight_is_not_taken(saved: Path) -> None:
    held = {"weights": {"w": torch.zeros(1), "another": torch.zeros(1)}}
    with pytest.raises(ValueError, match="another"):
        Local().load(saved / "tensors", held)
    with pytest.raises(ValueError, match="Size mismatch"):
        Local().load(saved / "tensors", {"weights": {"w": torch.zeros(2)}})
