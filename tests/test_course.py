"""Streams: one student, several tasks one after the other; boundaries, memory, resume."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import tiny
import torch
from bad_input import Words
from safetensors.torch import load_file

from resd.cli import main
from resd.config import TrainConfig, load_config
from resd.distill.teacher import make_teacher
from resd.errors import UserError
from resd.loop.setup import prepare
from resd.loop.stream import Course, Stage
from resd.runs.rows import read_metrics
from resd.tasks.lab import LabEnvironment
from resd.tasks.sequence import SequenceEnvironment
from resd.types import Example

HOUSES = [
    {"name": "birch", "task_args": {"dialect": 0, "house": "birch"}, "steps": 2},
    {"name": "oak", "task_args": {"dialect": 1, "house": "oak"}, "steps": 1},
    {"name": "elm", "task_args": {"dialect": 2, "house": "elm"}, "steps": 2},
]


def stage(name: str, steps: int | None) -> Stage:
    train = [Example(f"{name}/{i}", [{"role": "user", "content": "x"}]) for i in range(4)]
    return Stage(name, LabEnvironment(), train, train[:1], steps)


# -- which step trains what ----------------------------------------------------------------------


def test_every_task_has_its_steps_in_order() -> None:
    course = Course(
        [stage("a", 2), stage("b", None), stage("c", 1)],
        TrainConfig(batch_size=2, inner_iterations=2, steps=3),
        0,
    )
    steps = range(1, course.steps + 1)
    assert [course.stage(step).name for step in steps] == ["a", "a", "b", "b", "b", "c"]
    assert [course.begins(step) for step in steps] == [True, False, True, False, False, True]
    assert [course.ends(step) for step in steps] == [False, True, False, False, True, True]
    assert [course.is_first_iteration(step) for step in steps] == [
        *(True, False, True, False, True, True)
    ]
    for step in steps:
        name = course.stage(step).name
        assert all(example.id.startswith(f"{name}/") for example in course.batch(step))
    assert [s.name for s in course.seen(0)] == ["a"]
    assert [s.name for s in course.seen(3)] == ["a", "b"]
    assert course.batch(1) == course.batch(2)


# -- the tasks as one environment ------------------------------------------------------------------


def sequence(*parts: dict[str, Any]) -> SequenceEnvironment:
    return SequenceEnvironment([{"task": "lab", "task_args": {}, **part} for part in parts])


def test_each_task_judges_its_own_examples() -> None:
    world = sequence(*HOUSES)
    for part in HOUSES:
        own = LabEnvironment(**part["task_args"])
        examples = world.examples_of(part["name"], "test")
        assert [e.prompt for e in examples] == [e.prompt for e in own.examples("test")]
        assert world.gold(examples[0]) == own.gold(own.examples("test")[0])
        assert all(world.evaluate(e, world.gold(e)).passed for e in examples[:9])
    first, second = world.examples_of("birch", "test")[0], world.examples_of("oak", "test")[0]
    assert not world.evaluate(first, world.gold(second)).passed
    assert len(world.examples("train")) == 3 * 336


def test_noise_is_the_same_within_a_stream_and_alone() -> None:
    args = {"dialect": 3, "noise": 0.5}
    world, own = sequence({"name": "a", "task_args": args}), LabEnvironment(**args)
    for mine, theirs in zip(world.examples("test"), own.examples("test"), strict=True):
        assert world.evaluate(mine, "hey").feedback == own.evaluate(theirs, "hey").feedback


def test_anchors_come_by_turns_and_retention_from_the_first() -> None:
    world = sequence(*HOUSES[:2])
    parts = [list(part.anchors()) for part in world.parts.values()]
    assert list(world.anchors())[:4] == [parts[0][0], parts[1][0], parts[0][1], parts[1][1]]
    groups = world.retention()
    example = next(iter(groups.values()))[0]
    assert example.id.startswith("birch/")
    assert not world.evaluate(example, "nothing").passed


def test_tasks_with_other_templates_are_refused() -> None:
    with pytest.raises(UserError, match="lab and other have different prompt templates"):
        sequence({"name": "lab"}, {"name": "other", "task": "bouncing"})


# -- what a method does at a boundary --------------------------------------------------------------


def test_a_playbook_for_each_task_or_one_for_all() -> None:
    for scope, kept in (("task", 0), ("stream", 1)):
        made = fakes.method("resd", playbook={"scope": scope})
        made.begin_task("a", first=True)
        made.playbook.apply([("e", [_add("a lesson")])])
        made.begin_task("b", first=False)
        assert len(made.playbook) == kept
        files = made.artifacts("title")
        assert ("playbook-a.json" in files) is (scope == "task")
        again = fakes.method("resd", playbook={"scope": scope})
        again.load_state_dict(json.loads(json.dumps(made.state_dict())))
        again.begin_task("c", first=False)
        assert set(again.artifacts("title")) >= ({"playbook-b.json"} if scope == "task" else set())
    assert "a lesson" in json.loads(files["playbook.json"])["entries"][0]["content"]


def _add(content: str) -> Any:
    from resd.context import Operation

    return Operation("ADD", content, "code")


@pytest.mark.parametrize("kind", ["frozen", "ema"])
def test_a_teacher_that_is_rebased_becomes_the_student_and_is_restored(kind: Any) -> None:
    student = torch.nn.Linear(3, 3)
    weights = dict(student.named_parameters())
    teacher = make_teacher(kind, student, 0.1, weights, rebased=True)

    def holds(one: Any) -> bool:
        with one.model() as model:
            return all(torch.equal(model.state_dict()[k], w) for k, w in weights.items())

    with torch.no_grad():
        student.weight += 1
    teacher.update(weights)
    assert not holds(teacher)
    teacher.rebase(weights)
    assert holds(teacher)
    with torch.no_grad():
        student.weight += 1
    assert not holds(teacher)
    other = make_teacher(kind, student, 0.1, weights, rebased=True)
    assert holds(other)
    other.load_state_dict({k: t.clone() for k, t in teacher.state_dict().items()})
    with teacher.model() as a, other.model() as b:
        assert torch.equal(a.weight, b.weight)


def test_a_teacher_is_rebased_at_boundaries_alone_and_only_if_asked() -> None:
    for at_boundary, moves in (("keep", False), ("rebase", True)):
        made = fakes.method("sdpo", teacher={"kind": "frozen", "at_boundary": at_boundary})
        student = made.services.student
        with torch.no_grad():
            student.weight += 1
        made.begin_task("a", first=True)
        with made.teacher.model() as model:
            assert not torch.equal(model.weight, student.weight)
        made.begin_task("b", first=False)
        with made.teacher.model() as model:
            assert torch.equal(model.weight, student.weight) is moves


# -- whole runs ------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    def train(name: str, method: str = "resd", **over: Any) -> Path:
        place = tmp_path / name
        values = tiny.settings(tiny_model, place, method, stream=HOUSES, **over)
        values |= {"task": "lab", "rollout.max_new_tokens": 12, "evaluation.every": 2}
        values = {k: v for k, v in values.items() if not k.startswith("task_args")}
        assert main(["train", *tiny.arguments(values)]) == 0
        return place

    return train


ANCHORED = {
    "method__anchors__weight": 1.0,
    "method__anchors__number": 6,
    "method__anchors__batch": 8,
    "method__anchors__earlier": 3,
    "method__anchors__max_new_tokens": 4,
}


def numbers(place: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(place)
    ]


def test_tasks_are_measured_from_when_they_begin_to_the_end(run: Any) -> None:
    rows = numbers(run("all"))
    measured = {
        row["step"]: [k.split("/")[2] for k in row if k.startswith("eval/tasks/")]
        for row in rows
        if any(k.startswith("eval/") for k in row)
    }
    assert measured == {
        0: ["birch"],
        2: ["birch"],
        3: ["birch", "oak"],
        4: ["birch", "oak", "elm"],
        5: ["birch", "oak", "elm"],
    }
    assert (run("all again") / "playbook-birch.json").is_file()


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "anchors": ("resd", ANCHORED),
    "rebased": (
        "sdpo",
        {"method__teacher__kind": "frozen", "method__teacher__at_boundary": "rebase"},
    ),
    "lora": (
        "sdpo",
        {
            "model__lora__rank": 4,
            "train__lr": 0.05,
            "method__teacher__kind": "frozen",
            "method__teacher__at_boundary": "rebase",
            **ANCHORED,
        },
    ),
    "handoff": ("handoff", {"method__switch__rule": "schedule", "method__switch__after": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_goes_on_bit_for_bit_at_its_boundaries(
    run: Any, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resd.loop.trainer import Trainer

    method, over = CASES[case]
    once = run("once", method, **over)
    real = Trainer._one_step
    for last in (2, 3):

        def stops(self: Trainer, batch: Any, last: int = last) -> None:
            if self.progress.step == last + 1:
                raise KeyboardInterrupt
            real(self, batch)

        place = tmp_path / f"cut {last}"
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_one_step", stops)
            with pytest.raises((KeyboardInterrupt, AssertionError)):
                run(place.name, method, **over)
        assert main(["train", "--resume", str(place)]) == 0
        assert numbers(place) == numbers(once)
        a, b = (load_file(p / "final" / "model.safetensors") for p in (once, place))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_anchors_of_a_task_left_behind_hold_the_student_to_it(run: Any) -> None:
    kept = run("kept", "sdpo", **ANCHORED)
    assert sorted(p.name for p in (kept / "anchors").iterdir()) == ["birch", "oak"]
    answers = json.loads((kept / "anchors/oak/anchors.json").read_text())["answers"]
    assert 0 < len(answers) <= 3
    none = run("none", "sdpo", **{**ANCHORED, "method__anchors__earlier": 0})
    assert not (none / "anchors").exists()
    a, b = (load_file(p / "final" / "model.safetensors") for p in (kept, none))
    assert not all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_damaged_of_a_task_left_behind_is_said(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run("damaged", "sdpo", **ANCHORED)
    (place / "done.json").unlink()
    shutil.rmtree(place / "anchors/oak")
    assert main(["train", "--resume", str(place)]) == 2
    assert "the anchors of a task left behind cannot be made again" in capsys.readouterr().err


def test_the_files_of_all_tasks_belong_to_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each by its place on the disk and its content, not only the first."""
    files = [tmp_path / name for name in ("own/first.py", "own/second.py", "third.py")]
    (tmp_path / "own").mkdir()
    for file in files:
        file.write_text("from resd.tasks.lab import LabEnvironment as World\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    stream = [
        {"name": "a", "task": "own/first.py:World", "steps": 1},
        {"name": "b", "task": "own/second.py:World", "steps": 1},
        {"name": "c", "task": "third:World", "steps": 1},
    ]
    place = tmp_path / "run"
    values = tiny.settings(tiny_model, place, "sdpo", stream=stream)
    values = {k: v for k, v in values.items() if not k.startswith("task")}
    assert main(["train", *tiny.arguments(values)]) == 0
    (place / "done.json").unlink()
    # Another process: what was imported, and from where, is forgotten.
    monkeypatch.delitem(sys.modules, "third")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(place / "config.toml")
    assert [part.task for part in config.stream] == [
        f"{files[0]}:World",
        f"{files[1]}:World",
        "third:World",
    ]
    for file in files:
        text = file.read_text()
        file.write_text(text + "# another\n")
        assert main(["train", "--resume", str(place)]) == 2, file
        assert "task" in capsys.readouterr().err
        file.write_text(text)
    assert main(["train", "--resume", str(place)]) == 0


def test_a_right_response_is_known_of_all_tasks_or_of_none(tmp_path: Path) -> None:
    assert hasattr(sequence(*HOUSES), "gold")
    file = tmp_path / "secret.py"
    file.write_text(
        "from resd.tasks.lab import LabEnvironment as Lab\n"
        "class World:\n"
        "    templates, examples, evaluate = Lab.templates, Lab().examples, Lab().evaluate\n"
    )
    mixed = sequence(HOUSES[0], {"name": "secret", "task": f"{file}:World"})
    assert mixed.examples_of("secret", "test")
    assert not hasattr(mixed, "gold")


def test_a_whole_stream_can_be_evaluated(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place = run("evaluated", "sdpo")
    capsys.readouterr()
    assert main(["eval", str(place), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [key.split("/")[2] for key in found if key.startswith("eval/tasks/")] == [
        *("birch", "oak", "elm")
    ]


# -- bad input -------------------------------------------------------------------------------------


def test_a_file_of_tasks(tmp_path: Path) -> None:
    from resd.cli.main import _split

    file = tmp_path / "houses.toml"
    file.write_text(
        '[[stream]]\nname = "birch"\ntask_args = {house = "birch"}\n'
        '[[stream]]\nname = "oak"\ntask_args = {house = "oak", dialect = 4}\nsteps = 7\n'
    )
    config = load_config(None, _split(["--stream", str(file), "--task_args.known=2"]).overrides)
    assert config.preset == "lab"
    assert [(part.name, part.steps) for part in config.stream] == [("birch", None), ("oak", 7)]
    setup = prepare(config)
    worlds = [stage.environment for stage in setup.stages]
    assert [(w.number, w.known) for w in worlds] == [(0, 2), (4, 2)]  # type: ignore[attr-defined]
    setup.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no [[stream]] table"),
        ("stream = 3", "holds no [[stream]] table"),
        ("seed = 1\n[[stream]]\nname='a'", "holds seed beside its [[stream]] tables"),
        ("[[stream]]\nname='a'\n[[stream]]\nname='a'", "two tasks are named a"),
        ("[[stream]]\nname='A b'", "stream.0.name"),
        ("[[stream]]\nname='a'\nstep=3", "did you mean steps?"),
        ("[[stream]]\nname='a'\ntask='lob'", "a: unknown task 'lob'; did you mean lab?"),
        ("[[stream]]\nname='a'\ntask_args={hous='elm'}", "a: task lab: task_args"),
    ],
)
def test_bad_streams_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    assert main(["train", "--stream", str(file), "--preset", "lab"]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "setting",
    [
        "method__teacher__at_boundary=rebase",
        "method__anchors__earlier=3",
        "method__playbook__scope=stream",
    ],
)
def test_what_belongs_to_a_stream_is_refused_without_one(
    train_words: Words, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    key, _, value = setting.partition("=")
    assert main(train_words(**{key: int(value) if value.isdigit() else value})) == 2
    assert f"{key.replace('__', '.')} is of streams" in capsys.readouterr().err


def test_a_stream_is_not_extended(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place = run("short", "sdpo")
    assert main(["train", "--resume", str(place), "--train.steps", "9"]) == 2
    assert "is a stream, whose steps belong to its tasks" in capsys.readouterr().err


def test_anchors_of_tasks_left_behind_are_in_the_estimate(tiny_model: Path) -> None:
    from resd.models.memory import Memory

    def held(*over: tuple[str, Any]) -> int:
        words = [("model.path", str(tiny_model)), ("stream", HOUSES), *over]
        words += [("method.anchors.weight", 1.0), ("method.anchors.number", 6)]
        memory = Memory(load_config(None, [*words, ("method.anchors.max_new_tokens", 8)]))
        return {part.name: part.bytes for part in memory.estimate().kept}["anchors"]

    width, vocabulary = 32, 1024
    more = (2 * vocabulary + 2 * 3 * 8) * width * 4
    assert held(("method.anchors.earlier", 3)) - held() == more
    adapters = [("model.lora.rank", 4)]
    assert held(*adapters, ("method.anchors.earlier", 3)) - held(*adapters) == 2 * 3 * 8 * width * 4
