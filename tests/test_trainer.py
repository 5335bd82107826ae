"""The loop from end to end: an engine of its own, seeds, phases, responses without an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fake_engine import CopyingEngine
from safetensors.torch import load_file

from resd.config import load_config
from resd.loop.rollouts import UNFINISHED
from resd.loop.setup import Setup, prepare
from resd.loop.trackers import Trackers
from resd.loop.trainer import Trainer
from resd.loop.view import LiveView, PlainView
from resd.runs import RunDirectory, identity
from resd.runs.traces import read_traces, trace_files


@dataclass
class Watcher:
    """A view that remembers."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    heard: list[tuple[str, int, int]] = field(default_factory=list)
    stop_after: int = 99

    def begin(self, config: Any, step: int, steps: int) -> None:
        self.began = time.perf_counter()

    def stepped(self, step: int, row: Mapping[str, Any], lesson: str) -> None:
        self.rows.append(dict(row))

    def progress(self, what: str, done: int, total: int) -> None:
        self.heard.append((what, done, total))

    def evaluated(self, step: int, result: Any) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def finished(self, path: Path, best: int, evaluations: Any) -> None: ...

    def close(self) -> None: ...


@dataclass
class Done:
    path: Path
    engine: Any
    view: Watcher
    trainer: Trainer

    def rows(self) -> list[dict[str, Any]]:
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def steps(self) -> list[dict[str, Any]]:
        return [row for row in self.rows() if "time/step_s" in row]

    def final(self) -> dict[str, torch.Tensor]:
        return dict(load_file(self.path / "final" / "model.safetensors"))

    def traces(self, kind: str) -> list[dict[str, Any]]:
        records = [r for _, file in trace_files(self.path) for r in read_traces(file)]
        return [record for record in records if record["kind"] == kind]


Make = Callable[..., Done]


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Make:
    """A short run with an engine of its own; keywords replace settings (`__` for a dot)."""
    made: list[int] = []

    def go(
        engine: Callable[[Setup], Any] | None = CopyingEngine,
        method: str = "sdpo",
        **over: Any,
    ) -> Done:
        made.append(1)
        path = tmp_path / f"run{len(made)}"
        plain = {"rollout__env_mode": "thread", "rollout__env_seconds": None, "train__steps": 2}
        values = tiny.settings(tiny_model, path, method, **{**plain, **over})
        config = load_config(None, list(values.items()))
        with closing(prepare(config)) as setup, closing(RunDirectory.create(path, config)) as place:
            view, fake = Watcher(), engine(setup) if engine else None
            trainer = Trainer(setup, place, view, engine=fake)
            trainer.train()
        return Done(path, fake, view, trainer)

    return go


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- the seam to the engine -----------------------------------------------------------------------


def test_an_engine_gets_the_weights_after_every_update_and_no_more_often(run: Make) -> None:
    done = run(
        lambda setup: CopyingEngine(setup, writes=True),
        "resd",
        train__steps=3,
        evaluation__every=2,
    )
    # Evaluation at 0, 2 and 3; rollouts, reflections and curations of steps 1, 2 and 3.
    assert done.engine.versions == [f"student after {n}" for n in range(4)]
    assert len(done.engine.calls) >= 3 + 3 * 3
    assert all(row["train/loss"] for row in done.steps())
    held = done.engine.held
    assert not equal(held[0], held[-1])
    # It sampled from what the trainer held: the last evaluation from the final weights.
    final = done.trainer.model.state_dict()
    assert equal({k: final[k] for k in held[-1]}, held[-1])


def test_with_an_engine_of_its_own_a_run_is_the_same_as_without(run: Make) -> None:
    with_copy = run(lambda setup: CopyingEngine(setup, shares=True))
    assert equal(with_copy.final(), run(None).final())


def test_nothing_is_handed_over_when_nothing_has_changed(run: Make) -> None:
    done = run(method="grpo", method__rollouts=1)  # groups of one have no advantage
    assert done.engine.versions == ["student after 0"]


def test_a_restored_run_hands_its_weights_over(run: Make) -> None:
    done = run(train__steps=2)
    (done.path / "done.json").unlink()
    place, config = RunDirectory.open(done.path)
    config.train.steps = 3
    with closing(prepare(config)) as setup, closing(place):
        # The engine may hold anything: what the model looked like before it was restored.
        engine = CopyingEngine(setup)
        trainer = Trainer(setup, place, Watcher(), engine=engine)
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.train()
    assert equal({k: before[k] for k in engine.held[0]}, engine.held[0])
    assert len(engine.versions) == 2
    assert not equal(engine.held[0], engine.held[-1])


@pytest.mark.parametrize("method", ["sdpo", "grpo"])
def test_the_log_probs_of_another_engine_reach_the_gradient(run: Make, method: str) -> None:
    def final(offset: float, shares: bool) -> dict[str, torch.Tensor]:
        made = run(
            lambda setup: CopyingEngine(setup, offset=offset, shares=shares),
            method,
            train__steps=1,
            evaluation__at_start=False,
        )
        return made.final()

    plain = final(0.0, False)
    assert not equal(plain, final(-0.3, False))
    assert equal(final(0.0, True), final(-0.3, True))


def test_the_gap_to_the_sampler_is_logged_each_step(run: Make) -> None:
    steps = run(train__steps=3).steps()
    assert len(steps) == 3
    assert all(0 <= row["train/sampler_gap"] < 1e-5 for row in steps)
    off = run(lambda setup: CopyingEngine(setup, offset=0.25, shares=True), train__steps=3)
    assert [row["train/sampler_gap"] for row in off.steps()] == pytest.approx([0.25] * 3, abs=1e-4)
    assert sum("do not hold the same policy" in text for text in off.view.warnings) == 1


def test_a_stale_engine_shows(run: Make) -> None:
    steps = run(lambda setup: CopyingEngine(setup, stale=True), train__steps=3).steps()
    first, *later = [row["train/sampler_gap"] for row in steps]
    assert first < 1e-5
    assert all(gap > 1e-3 for gap in later)


@pytest.mark.parametrize("reflector", ["student", "teacher"])
def test_the_reflector_writes_with_its_own_weights(run: Make, reflector: str) -> None:
    done = run(
        lambda setup: CopyingEngine(setup, writes=True),
        "resd",
        method__reflector=reflector,
        method__teacher__kind="frozen",
        method__reflection_temperature=0.6,  # tells its calls from rollouts, at 1.0
        evaluation__at_start=False,
        evaluation__temperature=0.5,
    )
    held = dict(enumerate(done.engine.held))
    temperatures = [call[0].sampling.temperature for call in done.engine.calls]
    first, second = [i for i, value in held.items() if temperatures[i] == 1.0 and value][:2]
    assert not equal(held[first], held[second])
    # The frozen teacher is the model that the run started from, in the second step too.
    wrote = [i for i in range(second + 1, len(temperatures)) if temperatures[i] == 0.6][:2]
    assert wrote == [second + 1, second + 2]  # reflections, then curations
    for i in wrote:
        assert equal(held[i], held[first if reflector == "teacher" else second])


# -- what changes no token ------------------------------------------------------------------------


def test_sizes_and_workers_change_no_token_and_no_lesson(run: Make) -> None:
    def go(**over: Any) -> Done:
        return run(
            lambda setup: CopyingEngine(setup, writes=True, shares=True),
            "resd",
            evaluation__at_start=False,
            method__rollouts=2,
            seed=1,  # with 0 a draw lies on the edge between two tokens, and rounding decides
            **over,
        )

    plain = go()
    other = go(rollout__batch_size=3, train__micro_batch_tokens=60, rollout__env_workers=2)
    assert [c.token_ids for c in plain.engine.answers] == [
        c.token_ids for c in other.engine.answers
    ]
    playbooks = [(done.path / "playbook.json").read_text() for done in (plain, other)]
    assert playbooks[0] == playbooks[1]
    assert json.loads(playbooks[0])["entries"]
    for a, b in zip(plain.rows(), other.rows(), strict=True):
        for row in (a, b):
            row.pop("train/padding", None)
        numbers = {k: v for k, v in a.items() if not k.startswith("time/")}
        assert numbers == pytest.approx(
            {k: v for k, v in b.items() if not k.startswith("time/")}, rel=1e-4, abs=1e-5
        )


def test_every_response_of_a_run_has_a_seed_of_its_own(run: Make) -> None:
    done = run(train__steps=2, method__rollouts=2)
    seeds = [request.seed for call in done.engine.calls for request in call]
    assert len(set(seeds)) == len(seeds) > 20
    other = run(train__steps=2, method__rollouts=2, seed=1)
    assert not set(seeds) & {request.seed for call in other.engine.calls for request in call}


# -- responses without an answer ------------------------------------------------------------------


def test_a_response_without_an_answer_has_failed_and_is_shown_to_nobody(run: Make) -> None:
    done = run(lambda setup: CopyingEngine(setup, unfinished=1, writes=True), "resd")
    assert all(row["rollout/unfinished_thinking"] == 1.0 for row in done.steps())
    assert all(row["rollout/passed"] == row["rollout/cases"] == 0.0 for row in done.steps())
    assert all(row["eval/best@2"] == 0.0 for row in done.rows() if "eval/best@2" in row)
    assert len(done.trainer.method.solutions) == 0  # type: ignore[attr-defined]
    shown = json.dumps([done.traces("teacher"), [r["prompt"] for r in done.traces("reflection")]])
    rollouts = done.traces("rollout")
    assert {record["feedback"] for record in rollouts} == {UNFINISHED}
    for record in rollouts:
        assert len(record["response"]) < 10 or json.dumps(record["response"])[1:-1] not in shown
    assert UNFINISHED in shown
    # The reflections were cut off too.
    assert sum(row.get("count/reflection_unfinished", 0) for row in done.steps()) == len(rollouts)
    assert json.loads((done.path / "playbook.json").read_text())["entries"] == []


# -- phases ---------------------------------------------------------------------------------------


def test_trackers_know_the_run_by_its_id(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def trackers(names: Any, path: Path, config: Any, run_id: str, warn: Any) -> Any:
        opened.append((list(names), run_id))
        return Trackers([], path, config, run_id, warn=warn)

    monkeypatch.setattr("resd.loop.trainer.Trackers", trackers)
    monkeypatch.setattr("resd.loop.setup._check_trackers", lambda names: None)
    done = run(None, train__steps=1, trackers=["wandb"])
    known = identity.load(done.path)
    assert known is not None
    assert opened == [(["wandb"], known["id"])]


def test_the_phases_of_a_step_stand_in_its_row(run: Make) -> None:
    done = run(lambda setup: CopyingEngine(setup, writes=True), "resd", train__steps=3)
    wall = time.perf_counter() - done.view.began
    for row in done.steps():
        phases = {k: v for k, v in row.items() if k.startswith("time/") and k != "time/step_s"}
        for name in ("generate", "environment", "reflect", "curate", "teacher", "update"):
            assert phases[f"time/{name}_s"] >= 0.0
        assert sum(phases.values()) == pytest.approx(row["time/step_s"], abs=1e-3)
        assert row["time/update_s"] > 0
        assert row["time/teacher_s"] > 0
    assert sum(row["time/step_s"] for row in done.steps()) < wall
    # What was saved and evaluated after a step is counted with the next.
    saved = ["time/save_s" in row for row in done.steps()]
    assert saved == [False, True, True]
    evaluated = ["time/evaluate_s" in row for row in done.steps()]
    assert evaluated == [False, False, True]


ROW = {
    "rollout/passed": 0.5,
    "time/step_s": 3.5,
    "time/update_s": 1.0,
    "time/generate_s": 2.5,
    "time/curate_s": 0.001,
}


def test_the_plain_view_has_a_line_of_phases(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    view.begin(load_config(None, []), 0, 4)
    view.stepped(1, ROW, "")
    assert capsys.readouterr().out.splitlines()[-1] == "  seconds: generate 2.50  update 1.00"
    view.stepped(2, {"rollout/passed": 0.5}, "")
    assert "seconds" not in capsys.readouterr().out


def test_the_live_view_shows_the_phases_too() -> None:
    from rich.console import Console

    console = Console(record=True, width=100, force_terminal=True)
    view = LiveView(console)
    view.begin(load_config(None, []), 0, 4)
    view.stepped(1, ROW, "")
    console.print(view._render())
    view.close()
    assert "generate 2.50  update 1.00" in console.export_text()
