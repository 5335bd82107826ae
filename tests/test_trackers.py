"""Trackers never end a run and never hold it; all four are executed where they are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd.config import load_config
from resd.loop.trackers import Trackers, _saved_ids, flat_settings, make_tracker, mlflow_names

CONFIG = load_config(None, [("model.path", "m")])


class Fake:
    """Keeps what it is told; `bad` is what it does at which call."""

    def __init__(self, **bad: Any) -> None:
        self.told: list[Any] = []
        self.bad = bad

    def _call(self, name: str, *what: Any) -> None:
        if name in self.bad:
            self.bad[name]()
        self.told.append((name, *what))

    def store_init_configuration(self, values: Any) -> None:
        self._call("config", values)

    def log(self, values: Any, step: int) -> None:
        self._call("log", values, step)

    def finish(self) -> None:
        self._call("finish")


def run(tmp_path: Path, fakes: dict[str, Any], rows: int = 3) -> list[str]:
    said: list[str] = []

    def make(name: str, path: Path, run_id: str) -> Any:
        if isinstance(fakes[name], BaseException):
            raise fakes[name]
        return fakes[name]

    trackers = Trackers(
        list(fakes), tmp_path, CONFIG, "id", warn=said.append, seconds=0.2, make=make
    )
    trackers.start()
    for step in range(rows):
        trackers.log(step, {"step": step, "a/b": 1, "text": "x", "yes": True, "none": None})
    trackers.finish()
    return said


def test_a_tracker_is_told_everything_in_order(tmp_path: Path) -> None:
    fake = Fake()
    assert run(tmp_path, {"wandb": fake}) == []
    numbers = {"a/b": 1.0, "yes": 1.0}
    assert fake.told == [
        ("config", flat_settings(CONFIG)),
        *[("log", numbers, step) for step in range(3)],
        ("finish",),
    ]


def raises(error: BaseException) -> Any:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize("where", ["make", "config", "log", "finish"])
@pytest.mark.parametrize("error", [ValueError("\x1b[31mno"), SystemExit(3), KeyboardInterrupt()])
def test_a_failure_is_said_once_and_costs_no_other(
    where: str, error: BaseException, tmp_path: Path
) -> None:
    bad: Any = error if where == "make" else Fake(**{where: raises(error)})
    good = Fake()
    (said,) = run(tmp_path, {"wandb": bad, "trackio": good})
    assert said.startswith("tracker wandb: ")
    assert "\x1b" not in said
    assert "\n" not in said
    assert good.told[-1] == ("finish",)


@pytest.mark.parametrize("where", ["config", "log", "finish"])
def test_a_tracker_that_hangs_holds_nothing(where: str, tmp_path: Path) -> None:
    end = threading.Event()
    good = Fake()
    began = time.monotonic()
    said = run(tmp_path, {"wandb": Fake(**{where: end.wait}), "trackio": good}, rows=200)
    assert time.monotonic() - began < 2
    end.set()
    (line,) = said
    assert "tracker wandb" in line
    assert len(good.told) == 202


def test_a_call_over_its_time_is_left_alone(tmp_path: Path) -> None:
    end, said = threading.Event(), []

    def hang() -> None:
        end.wait()
        raise ValueError("and then it fails")

    fake = Fake(log=hang)
    trackers = Trackers(
        ["wandb"], tmp_path, CONFIG, "", warn=said.append, seconds=0.05, make=lambda *_: fake
    )
    trackers.start()
    trackers.log(1, {})
    time.sleep(0.2)
    assert said == []
    trackers.log(2, {})
    assert "longer than 0.05 s" in said[0]
    end.set()
    trackers.finish()
    assert len(said) == 1


def test_ids_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert _saved_ids(tmp_path) == {}
    for text, ids in (('{"mlflow": "a"}', {"mlflow": "a"}), ("[1]", {}), ("{", {}), ("", {})):
        (tmp_path / "trackers.json").write_text(text)
        assert _saved_ids(tmp_path) == ids


def test_a_tracker_that_failed_is_asked_nothing_more(tmp_path: Path) -> None:
    failed = threading.Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise ValueError("no")

    fake, said = Fake(log=fail_once), []
    trackers = Trackers(["wandb"], tmp_path, CONFIG, "", warn=said.append, make=lambda *_: fake)
    trackers.start()
    trackers.log(1, {})
    assert failed.wait(10)
    while not said:
        time.sleep(0.001)
    trackers.log(2, {})
    trackers.finish()
    assert [name for name, *_ in fake.told] == ["config"]
    assert len(said) == 1


def test_a_tracker_that_is_far_behind_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resd.loop.trackers._MOST_WAITING", 3)
    end, said = threading.Event(), []
    fake = Fake(log=end.wait)
    trackers = Trackers(["wandb"], tmp_path, CONFIG, "", warn=said.append, make=lambda *_: fake)
    trackers.start()
    for step in range(10):
        trackers.log(step, {})
    end.set()
    trackers.finish()
    assert said == ["tracker wandb: it is 3 rows behind; the run goes on without it"]


@given(st.lists(st.text(min_size=1), unique=True))
def test_names_for_mlflow_are_valid_and_stay_apart(names: list[str]) -> None:
    import posixpath
    import re

    found = mlflow_names(dict.fromkeys(names, 1.0))
    assert len(found) == len(names)
    for name in found:
        assert re.fullmatch(r"[\w\-. /]{1,250}", name, re.ASCII)
        assert posixpath.normpath(name) == name
        assert not name.startswith(("/", ".."))


@pytest.mark.parametrize("name", ["a//b", "a/./b", "a/../b", "/a", "..", ".", "a/", "x" * 999])
def test_paths_are_no_names_for_mlflow(name: str) -> None:
    (found,) = mlflow_names({name: 1.0})
    assert "/" not in found
    assert len(found) <= 250


def test_plain_names_for_mlflow_stay() -> None:
    names = {"rollout/passed": 1.0, "eval/mean@4": 2.0}
    assert mlflow_names(names) == {"rollout/passed": 1.0, "eval/mean_at_4": 2.0}
    odd = mlflow_names({"_@": 1.0, "\xe9@": 2.0, "!@": 3.0})
    assert len(odd) == 3
    assert odd["__at_"] == 1.0


@pytest.mark.parametrize(
    ("name", "kind", "positional", "named"),
    [
        ("tensorboard", "TensorBoardTracker", ("tensorboard", "{path}"), {}),
        (
            "wandb",
            "WandBTracker",
            ("resd",),
            {"name": "a run", "id": "0123456789ab", "resume": "allow", "dir": "{path}"},
        ),
        (
            "trackio",
            "TrackioTracker",
            ("resd",),
            {"name": "a run-01234567", "resume": "allow", "embed": False},
        ),
        ("mlflow", "MLflowTracker", ("resd",), {"run_id": None, "run_name": "a run"}),
    ],
)
def test_what_each_tracker_is_opened_with(
    name: str,
    kind: str,
    positional: tuple[str, ...],
    named: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Any] = []

    class Tracker:
        active_run = SimpleNamespace(info=SimpleNamespace(run_id="mlflow's own"))

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            opened.append((args, kwargs))

        def start(self) -> None:
            opened.append("started")

    monkeypatch.setattr(f"accelerate.tracking.{kind}", Tracker)
    (path := tmp_path / "a run").mkdir()
    told = tuple(word.format(path=path) for word in positional)
    wanted = {k: v.format(path=path) if isinstance(v, str) else v for k, v in named.items()}
    assert isinstance(make_tracker(name, path, "0123456789ab"), Tracker)
    assert opened == [(told, wanted), "started"]
    if name == "mlflow":  # it gives the id, which is asked for on resume
        make_tracker(name, path, "0123456789ab")
        assert opened[2] == (told, {**wanted, "run_id": "mlflow's own"})


PROGRAM = """
import sys
from pathlib import Path
from resd.config import load_config
from resd.loop.trackers import Trackers
name, place, first = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
said = []
config = load_config(None, [("model.path", "m")])
trackers = Trackers([name], place, config, "0123456789abcdef", warn=said.append, seconds=120)
trackers.start()
for step in range(first, first + 2):
    row = {"step": step, "rollout/passed": 0.5, "env/../x": float("nan"), "env/a [b] @é\\x1b": 1}
    trackers.log(step, row)
trackers.finish()
assert not said, said
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_every_tracker_offline_and_again_on_resume(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    place = tmp_path / "my [run] 'x'"
    place.mkdir()
    store = tmp_path / "store"
    store.mkdir()
    env = {
        **os.environ,
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(store),
        "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}",
        "HF_HUB_OFFLINE": "1",
    }
    for first in (1, 3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name, str(place), str(first)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(env["MLFLOW_TRACKING_URI"])
        (found,) = client.search_runs([client.get_experiment_by_name("resd").experiment_id])
        assert found.info.run_name == place.name
        history = client.get_metric_history(found.info.run_id, "rollout/passed")
        assert [item.step for item in history] == [1, 2, 3, 4]
    elif name == "tensorboard":
        assert len(list((place / "tensorboard").glob("events.*"))) == 2
    elif name == "wandb":
        kept = list((place / "wandb").glob("offline-run-*"))
        assert len(kept) == 2
        assert all("0123456789abcdef" in item.name for item in kept)
    else:
        assert any(store.rglob("*"))
