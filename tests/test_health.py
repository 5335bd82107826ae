"""The ways in which runs die: each is provoked, by made-up metrics and by real short runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bad_input import Capture, Words
from fake_engine import CopyingEngine

from resd.cli import main
from resd.cli.settings import settings
from resd.config import HealthConfig, RunConfig, load_config
from resd.config.health import signal_names
from resd.context import Entry, Reflection, Templates
from resd.engines import Completion
from resd.errors import ProcessError, StoppedError, UserError
from resd.loop.evaluate import Evaluation
from resd.loop.health import SIGNALS, Monitor
from resd.loop.hints import names_hints, share_naming_hints
from resd.loop.setup import prepare
from resd.loop.trainer import Trainer
from resd.methods.distillation import Distillation
from resd.report.page.summary import warnings as warnings_of_the_page
from resd.runs import RunDirectory, read_metrics
from resd.types import Example, Rollout

DOCS = Path(__file__).parent.parent / "docs/health.md"
Row = dict[str, Any]
GOOD: Row = {
    "rollout/passed": 0.4,
    "rollout/reward": 0.4,
    "rollout/length": 100.0,
    "rollout/truncated": 0.1,
    "rollout/unfinished_thinking": 0.0,
    "rollout/names_hints": 0.0,
    "train/taught": 1.0,
    "train/entropy": 1.0,
    "train/sampler_gap": 1e-6,
    "train/teacher_outside": 0.01,
    "rejected/reflection": 0.1,
    "rejected/curation": 0.1,
    "playbook/entries": 20.0,
    "playbook/gone": 1.0,
}
# What is bad in a step, and what just is not.
STEPS: dict[str, tuple[Row, Row]] = {
    "nothing_taught": ({"train/taught": 0.04}, {"train/taught": 0.06}),
    "truncated": ({"rollout/truncated": 0.51}, {"rollout/truncated": 0.5}),
    "unfinished_thinking": (
        {"rollout/truncated": 0.6, "rollout/unfinished_thinking": 0.6},
        {"rollout/truncated": 0.5, "rollout/unfinished_thinking": 0.5},
    ),
    "reflections": ({"rejected/reflection": 0.51}, {"rejected/reflection": 0.5}),
    "curations": ({"rejected/curation": 0.51}, {"rejected/curation": 0.5}),
    "playbook_empty": (
        {"playbook/entries": 0.0, "playbook/gone": 0.0},
        {"playbook/entries": 1.0, "playbook/gone": 0.0},
    ),
    "playbook_churn": ({"playbook/gone": 4.1}, {"playbook/gone": 4.0}),
    "entropy": ({"train/entropy": 0.09}, {"train/entropy": 0.11}),
    "length": ({"rollout/length": 310.0}, {"rollout/length": 300.0}),
    "ratio": ({"train/sampler_gap": 0.011}, {"train/sampler_gap": 0.01}),
    "not_finite": ({"count/skipped_not_finite": 3}, {}),
    "weights": ({"train/moved": 0.49}, {"train/moved": 0.5}),
    "outside": ({"train/teacher_outside": 0.11}, {"train/teacher_outside": 0.1}),
    "leak": ({"rollout/names_hints": 0.06}, {"rollout/names_hints": 0.05}),
    "reward": (
        {"rollout/reward": 0.51, "rollout/passed": 0.29},
        {"rollout/reward": 0.9, "rollout/passed": 0.31},
    ),
}
AT_ONCE = {"ratio", "weights", "outside"}


class Watched:
    """A monitor, its rows counted."""

    def __init__(self, state: Row | None = None, gap: float = 0.01, **config: Any) -> None:
        self.said: list[str] = []
        self.state: Row = {} if state is None else state
        self.step = 0
        self.monitor = Monitor(HealthConfig(**config), self.state, self.said.append, gap)

    def see(self, number: int, change: Mapping[str, Any] | None = None) -> Watched:
        for _ in range(number):
            self.step += 1
            self.monitor.stepped({"step": self.step, **GOOD, **(change or {})})
        return self

    def evaluate(self, mean: float, **retention: float) -> Watched:
        self.monitor.evaluated(
            self.step, Evaluation(mean, mean, mean, mean, 4, 9, 0.0, 0, 0, retention=retention)
        )
        return self

    @property
    def signals(self) -> list[str]:
        return [re.findall(r"\[health\.(\w+)\]", line)[0] for line in self.said]


def test_every_signal_is_a_setting_and_has_a_test() -> None:
    assert list(SIGNALS) == signal_names()
    assert {*STEPS, "retention"} == set(SIGNALS)


@pytest.mark.parametrize("name", STEPS)
def test_a_signal_over_a_window_of_steps(name: str) -> None:
    bad, edge = STEPS[name]
    assert Watched().see(8).see(30, edge).said == []
    watched = Watched().see(8).see(1, bad)
    assert watched.signals == ([name] if name in AT_ONCE else [])
    if name not in AT_ONCE:
        assert watched.see(8).said == []  # one odd step
        assert watched.see(12, bad).signals == [name]
    assert watched.see(20, bad).see(1).see(20, bad).signals == [name]  # said once
    watched.see(24).see(16, bad)  # it had recovered; the first update comes once
    assert watched.signals == ([name] if name == "weights" else [name, name])
    assert len({*watched.said}) == len(watched.said)  # the page shows each text once


@pytest.mark.parametrize("name", STEPS)
def test_the_start_of_a_run_is_no_signal(name: str) -> None:
    bad, _ = STEPS[name]
    relative = name in ("entropy", "length", "reward")
    assert (Watched().see(7, bad).said == []) is (name not in AT_ONCE)
    assert Watched().see(30, bad).signals == ([] if relative else [name])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"train/moved": 2.1}, ["weights"]),
        ({"train/moved": 2.0}, []),
        ({"train/moved": 0.0}, ["weights"]),
        ({"rollout/length": 33.0}, ["length"]),
        ({"rollout/length": 34.0}, []),
        ({"rollout/length": 0.0}, ["length"]),
        ({"train/sampler_gap": float("nan")}, ["ratio"]),
        # Nothing is wrong where nothing is left to do.
        ({"train/taught": 0.0, "rollout/passed": 0.95}, []),
        ({"playbook/entries": 0.0, "rollout/passed": 0.95}, []),
        ({"train/entropy": 0.01, "rollout/passed": 0.5}, []),
        # Of four lessons one goes: no churn.
        ({"playbook/entries": 4.0, "playbook/gone": 1.0}, []),
    ],
)
def test_other_edges(bad: Row, said: list[str]) -> None:
    assert Watched().see(8).see(12, bad).signals == said


def test_a_line() -> None:
    (line,) = Watched().see(8).see(8, {"rollout/truncated": 1.0}).said
    assert line == (
        "55% of the responses are cut off at the length limit (steps 5 to 12): raise "
        "rollout.max_new_tokens; if they should be short, the model's end token may be wrong "
        "[health.truncated]"
    )
    (line,) = Watched().see(1, {"train/moved": 0.02}).said
    assert "by 50 times too little or too much" in line
    assert "(step 1)" in line


def test_numbers_that_few_steps_have_are_not_judged() -> None:
    watched = Watched()
    for number in range(24):
        change = {"rejected/reflection": 1.0} if number % 3 == 0 else {}
        watched.step += 1
        row = {k: v for k, v in GOOD.items() if k != "rejected/reflection"}
        watched.monitor.stepped({"step": watched.step, **row, **change})
    assert watched.said == []


def test_a_row_of_another_method_says_nothing() -> None:
    watched = Watched()
    for step in range(20):
        watched.monitor.stepped({"step": step, "rollout/passed": 0.5})
    assert watched.said == []


def test_actions_and_limits() -> None:
    bad = {"rollout/truncated": 0.4, "train/teacher_outside": 0.5, "rollout/names_hints": 0.5}
    watched = Watched(
        action="stop", outside="warn", leak="off", limits={"truncated": 0.3}, window=2
    ).see(3, bad)
    assert watched.signals == ["outside", "truncated"]
    assert watched.monitor.stops == ["truncated"]
    assert watched.said[1].endswith("; the run ends with the checkpoint of this step")
    assert "ends" not in watched.said[0]
    assert Watched(action="off").see(30, bad).said == []


def test_the_rounding_of_the_trainer_is_no_gap() -> None:
    bad = {"train/sampler_gap": 0.05}
    assert Watched(gap=0.1).see(2, bad).said == []
    assert Watched(gap=0.1, limits={"ratio": 0.04}).see(2, bad).signals == ["ratio"]


def test_retention() -> None:
    watched = Watched().evaluate(0.0, a=0.9, b=0.5).evaluate(0.1).evaluate(0.2, a=0.8, b=0.41)
    assert watched.said == []
    watched.evaluate(0.3, a=0.7, b=0.46)
    assert watched.signals == ["retention"]
    assert "has lost 12% of what it is to keep" in watched.said[0]
    assert watched.evaluate(0.3, a=0.1, b=0.0).signals == ["retention"]
    assert watched.evaluate(0.3, a=0.9, b=0.5).evaluate(0.3, a=0.1, b=0.0).said[1:]
    watched.monitor.begin_task()  # what is to be kept is still that of the run's start
    watched.evaluate(0.3, a=0.9, b=0.5).evaluate(0.3, a=0.6, b=0.5)
    assert watched.signals == ["retention"] * 3


def test_reward_rises_while_the_test_falls() -> None:
    paid = {"rollout/reward": 0.6}
    watched = Watched().see(8).evaluate(0.5).see(8, paid).evaluate(0.41)
    assert watched.said == []
    watched.see(4, paid).evaluate(0.3)
    assert watched.signals == ["reward"]
    watched.see(20, paid).evaluate(0.3)
    assert watched.signals == ["reward"]  # it has not recovered in between
    watched.evaluate(0.6).see(8, paid).evaluate(0.3)
    assert watched.signals == ["reward"]  # a new best: the reward has not risen since
    assert Watched().see(8).evaluate(0.5).see(8).evaluate(0.3).said == []


def test_another_task_has_another_start() -> None:
    watched = Watched().see(8)
    watched.monitor.begin_task()
    assert watched.see(20, {"rollout/length": 400.0}).said == []


def test_the_state_comes_back_through_json_at_any_moment() -> None:
    def course(watched: Watched, step: int) -> None:
        bad = {k: v for name, (change, _) in STEPS.items() for k, v in change.items()}
        watched.see(1, bad if step % 25 > 10 else {})
        if step % 4 == 0:
            watched.evaluate(0.5 - 0.01 * step, kept=0.9 - 0.02 * (step % 20))

    whole = Watched()
    for step in range(60):
        course(whole, step)
    assert len(whole.said) > 20
    broken, said = Watched(), []
    for step in range(60):
        course(broken, step)
        said, at = said + broken.said, broken.step
        broken = Watched(json.loads(json.dumps(broken.state)))
        broken.step = at
    assert said == whole.said
    assert broken.state == whole.state


def test_remedies_name_settings_that_exist() -> None:
    known = {key for key, _, _ in settings(RunConfig)}
    named = {
        key.rstrip(".")
        for signal in SIGNALS.values()
        for key in re.findall(r"\b(?:method|rollout|train|model|health)\.[a-z_.]+", signal.remedy)
    }
    assert len(named) > 15
    assert named <= known


@pytest.mark.parametrize("name", SIGNALS)
def test_the_page_of_docs_has_the_signal_and_its_limit(name: str) -> None:
    (line,) = re.findall(rf"^\| `{name}` \|.*$", DOCS.read_text(encoding="utf-8"), re.M)
    limit = SIGNALS[name].limit
    shown = f"{limit:.0%}" if name not in ("length", "ratio", "weights", "playbook_empty") else ""
    assert (shown or f"{limit:g}") in line.split("|")[3]


# -- settings --------------------------------------------------------------------------------------


def test_settings_of_health() -> None:
    config = load_config(None, [("health.leak", "stop"), ("health.limits.leak", 0.5)])
    assert (config.health.action_of("leak"), config.health.action_of("length")) == ("stop", "warn")
    assert config.health.limits == {"leak": 0.5}
    for key, value, words in (
        ("health.limits.leek", 1, "there is no signal leek; did you mean leak?"),
        ("health.leak", "shout", "'warn', 'stop' or 'off'"),
        ("health.leek", "stop", "did you mean leak?"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            load_config(None, [(key, value)])


# -- hints -----------------------------------------------------------------------------------------


def said(text: str, prompt: str = "do it") -> Rollout:
    completion = Completion((1,), text, "stop", answer=text)
    return Rollout(Example("e", [{"role": "user", "content": prompt}]), (1,), completion, None)


@pytest.mark.parametrize(
    "text",
    [
        "As the playbook says, close with please.",
        "According to the reflection, I must",
        "The feedback\nabove says: wrong",
        "the feedback mentions a missing brace",
        "the lessons given above",
        "by [code-00012] the verb is horn",
    ],
)
def test_a_response_that_names_a_hint(text: str) -> None:
    assert names_hints(said(text))
    assert not names_hints(said(text, f"Here: {text}"))  # the student was told so


@pytest.mark.parametrize(
    "text",
    [
        "The reflection of the ball at the wall, see the figure above",
        "My previous attempt was wrong; wait, let me try again. The solution above is O(n).",
        "I would welcome your feedback. Lessons learnt: none.",
        "a[code-1] = playbook[0]",
    ],
)
def test_a_response_that_names_none(text: str) -> None:
    assert not names_hints(said(text))


def test_the_share_of_responses() -> None:
    both = [said("the playbook says so"), said("so"), said("it is so"), said("yes")]
    assert share_naming_hints(both) == 0.25
    assert share_naming_hints([]) == 0.0


def test_the_headings_of_the_built_in_template_are_hints() -> None:
    text = Templates().render(
        "teacher",
        question="Q",
        playbook=[Entry("misc-00001", "lesson")],
        trial="T",
        feedback="F",
        reflection=Reflection("W", "D"),
        solution="S",
    )
    headings = [line for line in text.splitlines() if line.endswith(":") and "problem:" not in line]
    assert len(headings) == 5
    assert all(names_hints(said(heading)) for heading in headings)


# -- real runs -------------------------------------------------------------------------------------


class Heard:
    """A view that remembers warnings and progress."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.parts: list[tuple[str, int, int]] = []
        self.run = Path()

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.parts.append((what, done, total))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None

    @property
    def signals(self) -> set[str]:
        return {name for text in self.warnings for name in re.findall(r"\[health\.(\w+)\]", text)}


Go = Callable[..., Heard]


@pytest.fixture
def go(tiny_model: Path, tmp_path: Path) -> Go:
    """A short run with windows of two steps; keywords replace settings."""

    def run(method: str, engine: Callable[[Any], Any] | None = None, **over: Any) -> Heard:
        plain = {"rollout__env_mode": "thread", "train__steps": 3, "health__window": 2}
        plain |= {"evaluation__at_start": False, "evaluation__max_examples": 1}
        values = tiny.settings(tiny_model, tmp_path / "run", method, **{**plain, **over})
        config = load_config(None, list(values.items()))
        view: Any = Heard()
        view.run = tmp_path / "run"
        place = RunDirectory.create(tmp_path / "run", config)
        with closing(prepare(config)) as setup, closing(place):
            Trainer(setup, place, view, engine=engine and engine(setup)).train()
        return view  # type: ignore[no-any-return]

    return run


def test_an_untrained_model_runs_into_the_limit_and_writes_no_reflection(
    go: Go, tmp_path: Path
) -> None:
    view = go("resd", train__updates_per_batch=2)
    assert view.signals == {"outside", "truncated", "reflections", "playbook_empty"}
    shown = [item["text"] for item in warnings_of_the_page(tmp_path / "run")]
    assert [text for text in view.warnings if "[health." in text] == shown
    # Every part of the run says how far it is, from nothing to all.
    for what in ("rollout", "reflection", "update", "evaluation"):
        told = [(done, total) for name, done, total in view.parts if name == what]
        total = told[0][1]
        last = total - 1 if what == "update" else total
        assert total >= (2 if what == "update" else 1)
        assert told[: last + 1] == [(done, total) for done in range(last + 1)], what


class Says(CopyingEngine):
    """Names a hint in every response, or ends inside its thinking, and samples from elsewhere."""

    def _changed(self, request: Any, completion: Completion) -> Completion:
        done = super()._changed(request, completion)
        text = "The playbook says: red"
        return Completion(
            done.token_ids, text, "length", done.log_probs, None if self._unfinished else text
        )


def test_a_student_that_names_its_hints(go: Go) -> None:
    view = go("sdpo", lambda setup: Says(setup, offset=0.2))
    assert {"leak", "ratio", "truncated"} <= view.signals
    assert "unfinished_thinking" not in view.signals


def test_thinking_that_is_never_closed(go: Go) -> None:
    view = go("sdpo", lambda setup: Says(setup, unfinished=1))
    assert "unfinished_thinking" in view.signals
    assert "truncated" not in view.signals


def test_a_loss_that_is_not_finite(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Distillation.per_token

    def broken(self: Any, *arguments: Any) -> torch.Tensor:
        return real(self, *arguments) * float("nan")

    monkeypatch.setattr(Distillation, "per_token", broken)
    assert "not_finite" in go("sdpo").signals


def test_weights_that_are_too_coarse(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    def still(self: Any, closure: Any = None) -> None:
        """As bfloat16 at a small rate."""

    monkeypatch.setattr(torch.optim.AdamW, "step", still)
    view = go("sdpo", train__steps=1)
    assert sum("[health.weights]" in text for text in view.warnings) == 1


FORGETS = """
from dataclasses import replace
from tiny import TinyWorld
class Forgets(TinyWorld):
    asked = 0
    def retention(self):
        return {"old": [replace(e, id=f"old-{e.id}") for e in self.examples("test")[:2]]}
    def evaluate(self, example, response):
        outcome = super().evaluate(example, response)
        if not example.id.startswith("old"):
            return outcome
        self.asked += 1
        return replace(outcome, passed=self.asked <= 2, reward=1.0 * (self.asked <= 2))
"""


def test_a_student_that_forgets(go: Go, tmp_path: Path) -> None:
    (tmp_path / "forgets.py").write_text(FORGETS)
    over = {"evaluation__at_start": True, "evaluation__retention": 2, "evaluation__every": 1}
    view = go("sdpo", task=f"{tmp_path / 'forgets.py'}:Forgets", train__steps=1, **over)
    assert "retention" in view.signals


def test_every_task_of_a_stream_has_a_start_of_its_own(go: Go) -> None:
    tasks = [{"name": "one", "steps": 2}, {"name": "two", "steps": 1}]
    view = go("sdpo", stream=tasks, evaluation__every=0)
    (line,) = [text for text in view.warnings if "[health.truncated]" in text]
    assert "(steps 1 to 2)" in line
    states = [json.loads(p.read_text()) for p in view.run.glob("checkpoints/*/state.json")]
    assert sorted((s["step"], len(s["health"]["rows"])) for s in states) == [(2, 2), (3, 1)]


NEVER = """
from tiny import TinyWorld
from resd import Outcome
class Never(TinyWorld):
    def evaluate(self, example, response):
        return Outcome(0.0, False, "no")
"""


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "never.py").write_text(NEVER)
    over = {
        "task": f"{tmp_path / 'never.py'}:Never",
        "health__window": 2,
        "checkpoint__every": 100,
        "train__steps": 5,
        "rollout__env_mode": "thread",
    }
    run, other = tmp_path / "run", tmp_path / "other"
    assert main(train_words("grpo", health__nothing_taught="stop", **over)) == 3
    error = capsys.readouterr().err.splitlines()
    assert error[-1] == (
        "resd: stopped after step 2 by health.nothing_taught; go on all the same with resd train "
        f"--resume {run}"
    )
    lines = [line for line in error if "[health.nothing_taught]" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: 100% of the responses teach nothing (steps 1 to 2)")
    assert not (run / "done.json").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert "[health.nothing_taught]" not in capsys.readouterr().err  # said before
    assert main(train_words("grpo", other, **over)) == 0

    def rows(place: Path) -> list[Row]:
        found = read_metrics(place)
        return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in found]

    assert rows(run) == rows(other)
    states = [place / "checkpoints/step-000005/state.json" for place in (run, other)]
    assert states[0].read_bytes() == states[1].read_bytes()
    weights = [place / "final/model.safetensors" for place in (run, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_stop_at_the_last_step_is_the_end(train_words: Words, tmp_path: Path) -> None:
    over = {"health__truncated": "stop", "health__window": 2, "train__steps": 2}
    assert main(train_words("resd", **over)) == 0
    assert (tmp_path / "run" / "done.json").exists()
    assert "[health.truncated]" in (tmp_path / "run" / "warnings.jsonl").read_text()


def test_a_stop_has_an_exit_code_of_its_own() -> None:
    assert (StoppedError.exit_code, UserError.exit_code) == (3, 2)
    assert issubclass(StoppedError, ProcessError)  # of several processes one says it


def test_the_first_line_comes_before_anything_large_is_imported() -> None:
    code = (
        "import builtins, sys\n"
        "def first(text, **rest):\n"
        "    print_(text, sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))\n"
        "    sys.exit(0)\n"
        "print_, builtins.print = builtins.print, first\n"
        "from resd.cli import main\n"
        "main(['train', '--preset', 'lab'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.fullmatch(r"resd \S+: reading settings, then loading .* \[\]\n", done.stdout)
