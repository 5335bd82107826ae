"""`resd.train` from a program: tasks, settings, callbacks; the end is that of `resd train`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from bad_input import Capture, one_line

import resd
from resd.cli import main
from resd.errors import UserError
from resd.loop.view import MuteView
from resd.runs import read_metrics

Settings = Callable[..., dict[str, Any]]
World = tiny.TinyWorld


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Settings:
    """Settings of a short run, without a task."""

    def made(name: str = "run", **over: Any) -> dict[str, Any]:
        values = tiny.settings(tiny_model, tmp_path / name, "sdpo", **over)
        del values["task"]
        return {**values, "view": MuteView()}

    return made


def rows(run: Any) -> list[dict[str, Any]]:
    """All that was measured but time."""
    place = run.path if isinstance(run, resd.Run) else run
    found = [{k: v for k, v in r.items() if "time/" not in k} for r in read_metrics(place)]
    assert found
    return found


class Diary(resd.Callback):
    """Writes down what it is told; fails or stops where it is asked to."""

    def __init__(self, at: str = "", error: Exception | None = None) -> None:
        self.told: list[str] = []
        self.at, self.error = at, error

    def _hear(self, what: str) -> None:
        self.told.append(what)
        if what == self.at and self.error is not None:
            raise self.error

    def on_step(self, step: int, metrics: Any) -> None:
        assert metrics["step"] == step and "rollout/passed" in metrics
        self._hear(f"step {step}")

    def on_evaluation(self, step: int, result: resd.Evaluation) -> None:
        assert 0.0 <= result.mean <= result.best <= 1.0
        self._hear(f"evaluation {step}")


def test_a_run_is_that_of_the_command_line(
    settings: Settings, train_words: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert main(train_words("sdpo", output=other, rollout__env_mode="thread")) == 0
    diary, values = Diary(), settings()
    nested = {"steps": values.pop("train.steps"), "lr": values.pop("train.lr")}
    run = resd.train(World, train=nested, callbacks=[diary], **values)
    assert (run.complete, run.path) == (True, tmp_path / "run")
    assert run.config.task == "tiny:TinyWorld"
    assert run.config.rollout.env_mode == "process"  # and found there
    assert rows(run) == rows(other)
    wanted = "evaluation 0, step 1, step 2, evaluation 2, step 3, step 4, evaluation 4"
    assert diary.told == wanted.split(", ")


def test_what_a_callback_fails_of_is_one_line_and_the_run_goes_on(
    settings: Settings, tmp_path: Path
) -> None:
    whole = resd.train(World(), **settings("whole"))
    broken = Diary("step 3", ValueError("no room\nfor notes"))
    with pytest.raises(UserError) as caught:
        stops = Diary("step 3", resd.StopTraining())  # who fails is heard before who stops
        resd.train(World(), callbacks=[stops, broken], **settings(checkpoint__every=100))
    said = str(caught.value)
    assert said.startswith("Diary.on_step failed: ValueError: no room for notes (test_python.py")
    assert f"step 3 is saved: mend it, then go on with resd train --resume {tmp_path}/run" in said
    run = resd.load_run(tmp_path / "run")
    assert not run.complete
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 2, 3]
    again = Diary()
    run = resd.train(resume=run, task=World(), callbacks=[again], view=MuteView())
    assert again.told == ["step 4", "evaluation 4"]
    assert run.complete
    assert rows(run) == rows(whole)


def test_a_callback_may_ask_to_stop(settings: Settings, capsys: Capture) -> None:
    values = {**settings(), "view": None}
    early = Diary("step 1", resd.StopTraining("good enough"))
    run = resd.train(World(), callbacks=[early, other := Diary()], **values)
    assert run.complete and (run.path / "final").is_dir() and (run.path / "best").is_dir()
    # It is evaluated where it ends, and all hear of it.
    assert early.told == other.told == ["evaluation 0", "step 1", "evaluation 1"]
    assert "stopped after step 1 by Diary: good enough" in capsys.readouterr().err
    run = resd.train(World(), resume=run.path, train={"steps": 4}, view=MuteView())
    assert [row["step"] for row in rows(run)] == [0, 1, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (Diary, r"Diary is a class; give an object of it: Diary\(\)"),
        (print, "print has neither on_step nor on_evaluation"),
    ],
)
def test_what_is_no_callback(callback: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resd.train("lab", callbacks=[callback])


def test_an_object_is_evaluated_here_and_given_again(settings: Settings, capsys: Capture) -> None:
    """No file makes it again: not a worker process, and not `resd train --resume`."""
    seen: list[str] = []

    class Local(tiny.TinyWorld):
        def evaluate(self, example: Any, response: str) -> Any:
            seen.append(example.id)
            return super().evaluate(example, response)

    values = settings(train__steps=1, evaluation__at_start=False)
    run = resd.train(Local, task_args={"noisy": False}, **values)  # a class inside a function
    assert (run.config.task, run.config.rollout.env_mode) == ("<Local object>", "thread")
    assert run.path.name == "run" and seen
    before = (run.path / "config.toml").read_text()
    assert main(["train", "--resume", str(run.path), "--train.steps", "2"]) == 2
    line = one_line(capsys)
    assert "task <Local object> was given as an object in Python" in line
    assert "resd.train(resume=RUN, task=...)" in line
    assert (run.path / "config.toml").read_text() == before and run.complete
    with pytest.raises(UserError, match="made with task <Local object>, and this is <TinyWorld"):
        resd.train(resume=run, task=World())
    seen.clear()
    run = resd.train(resume=run, task=Local, train={"steps": 2}, view=MuteView())
    assert seen and rows(run)[-1]["step"] == 2
    result = resd.evaluate(run, Local(), evaluation={"max_examples": 2})
    assert (result.problems, result.samples) == (2, 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": World(), "task_args": {"noisy": True}}, "<TinyWorld object> is made already"),
        ({"task": World(), "rollout": {"env_mode": "process"}}, "env_mode process: an object"),
        ({"task": World(), "stream": [{"name": "a"}]}, "stream: its tasks are named"),
        ({"task": object()}, r"<object object>: object has no method examples"),
        ({"task": World, "task_args": {"nois": 1}}, "the arguments of TinyWorld are: noisy"),
        ({"task": "chess"}, "unknown task 'chess'"),
        ({"train": {"stps": 3}}, r"unknown key train.stps in the call; did you mean steps\?"),
        ({"train": 3}, "train in the call"),
        ({"train.steps.more": 3, "train": {"steps": 1}}, "steps"),
        ({"accept": ["task"]}, "accept goes with resume"),
        ({"resume": "nowhere"}, "there is no run directory nowhere"),
        ({"resume": "nowhere", "seed": 3}, "seed: resume goes on with a run as it was"),
        ({"resume": "nowhere", "config": "x.toml"}, "it takes no config file"),
        ({"resume": "nowhere", "train": {"steps": True}}, "train.steps must be a whole number"),
        ({"method": type("Mine", (), {})}, "method Mine is of a notebook or inside a function"),
    ],
)
def test_mistakes_are_one_line(
    given: dict[str, Any], said: str, nothing_loads: None, settings: Settings
) -> None:
    values = {} if "resume" in given or "accept" in given else settings()
    values = {key: value for key, value in values.items() if key not in given}
    with pytest.raises(UserError, match=said) as caught:
        resd.train(**{**values, **given})
    assert "\n" not in str(caught.value)


def test_a_script_that_trains_its_own_task_when_it_is_imported(
    tmp_path: Path, settings: Settings, nothing_loads: None
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import resd, tiny\nclass Own(tiny.TinyWorld): ...\nresd.train(Own, 'somewhere')\n"
    )
    with pytest.raises(UserError, match=r'script.py is imported .* if __name__ == "__main__":'):
        resd.train(f"{script}:Own", **settings())


def test_where_a_class_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    from resd.plugins import spec_of

    class Inside: ...

    assert spec_of(World) == "tiny:TinyWorld"
    assert spec_of(Inside) is None
    assert spec_of(resd.Example) == "resd.types:Example"
    notebook, script = ModuleType("__main__"), ModuleType("__main__")
    for module, file in ((notebook, None), (script, str(tmp_path / "my.py"))):
        if file:
            module.__file__ = file
        exec("class Own: ...", vars(module))
        monkeypatch.setitem(sys.modules, "__main__", module)
        assert spec_of(module.Own) == (f"{file}:Own" if file else None)
    script.__spec__ = type("Spec", (), {"name": "package.my"})()  # type: ignore[assignment]
    assert spec_of(script.Own) == "package.my:Own"


def test_names_come_when_they_are_asked_for() -> None:
    assert {"train", "evaluate", "Callback", "load_run"} <= set(dir(resd))
    assert set(resd.__all__) <= set(dir(resd))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        resd.trian  # noqa: B018
