"""A run knows what it was made of: what changed is named, and refused unless it is meant."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from resd.cli import main
from resd.config import RunConfig, load_config
from resd.config.paths import anchored
from resd.errors import UserError
from resd.runs import RunDirectory, identity
from resd.runs.rows import read_metrics, read_rows

Capture = pytest.CaptureFixture[str]
SOURCE = "from tiny import TinyWorld\n\nclass World(TinyWorld):\n    pass\n"


def one_line(capsys: Capture) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("resd: ")
    return error.strip()


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, made with relative paths; copy it before changing it."""
    place = tmp_path_factory.mktemp("identity")
    (place / "world.py").write_text(SOURCE)
    shutil.copytree(tiny_model, place / "m")
    values = tiny.settings(Path("m"), Path("run"), "sdpo", train__steps=2)
    values["task"] = "world.py:World"
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main(["train", *tiny.arguments(values)]) == 0
    finally:
        os.chdir(before)
    return place / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The run broken off after its last checkpoint, moved, with a world of its own."""
    place = Path(shutil.copytree(finished, tmp_path / "moved"))
    (place / "done.json").unlink()
    world = tmp_path / "world.py"
    world.write_text(SOURCE)
    spoil_config(place, str(finished.parent / "world.py"), str(world))
    values = json.loads((place / "identity.json").read_text())
    values["settings"]["task"] = f"{world}:World"
    (place / "identity.json").write_text(json.dumps(values))
    return place


def spoil_config(run: Path, old: str, new: str) -> None:
    text = (run / "config.toml").read_text()
    assert old in text
    (run / "config.toml").write_text(text.replace(old, new))


def spoil_version(run: Path, name: str, version: str) -> None:
    values = json.loads((run / "identity.json").read_text())
    values["versions"][name] = version
    (run / "identity.json").write_text(json.dumps(values))


def open_and_close(run: Path, accept: tuple[str, ...] = (), steps: int | None = None) -> RunConfig:
    opened, config = RunDirectory.open(run, accept, steps)
    opened.close()
    return config


# -- paths ----------------------------------------------------------------------------------------


def test_relative_paths_are_kept_absolute(tmp_path: Path) -> None:
    for name in ("m", "data", "lab", "easy"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    (tmp_path / "top.jsonl").touch()
    args = {
        "train": "data/train.jsonl",
        "top": ["top.jsonl"],
        "split": "easy",
        "missing": "data/nothing",
        "number": 3,
    }
    found = anchored(
        load_config(
            None,
            [
                ("task", "world.py:W"),
                ("model.path", "m"),
                ("templates", "t"),
                ("output", "runs/a"),
                ("task_args", args),
            ],
        ),
        tmp_path,
    )
    assert found.task == f"{tmp_path}/world.py:W"
    assert found.model.path == str(tmp_path / "m")
    assert (found.templates, found.output) == (tmp_path / "t", tmp_path / "runs/a")
    assert found.task_args == {
        **args,
        "train": str(tmp_path / "data/train.jsonl"),
        "top": [str(tmp_path / "top.jsonl")],
    }
    assert anchored(found, Path("/elsewhere")) == found


@pytest.mark.parametrize("path", ["lab", "org/name", "x" * 5000, "a\0b"])
def test_names_that_are_no_paths_stay(path: str, tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    config = load_config(None, [("model.path", path), ("task", "package.module:Class")])
    assert anchored(config, tmp_path) == config


def test_a_run_goes_on_from_anywhere(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert main(["train", "--resume", str(run)]) == 0
    for name in ("final/model.safetensors", "done.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_a_module_beside_the_place_of_the_start_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_world.py").write_text(SOURCE)
    config = load_config(None, [("model.path", "m"), ("task", "my_world:World")])
    monkeypatch.chdir(tmp_path)
    RunDirectory.create(tmp_path / "run", config).close()
    monkeypatch.chdir("/")
    open_and_close(tmp_path / "run")
    assert str(tmp_path) in sys.path
    (tmp_path / "my_world.py").write_text(SOURCE + "# changed\n")
    with pytest.raises(UserError, match=r"source of task my_world:World was changed.*accept task"):
        open_and_close(tmp_path / "run")


# -- what was changed -----------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[Path], Any], str, list[str], list[str]]] = {
    "an edited setting": (
        lambda run: spoil_config(run, "lr = 0.01", "lr = 0.02"),
        "train.lr was 0.01 and is now 0.02",
        ["train.lr", "train", "config"],
        ["task", "versions", "train.steps"],
    ),
    "the task's file": (
        lambda run: (run.parent / "world.py").write_text(SOURCE + "# changed\n"),
        "world.py:World was changed",
        ["task"],
        ["config", "versions"],
    ),
    "a library": (
        lambda run: spoil_version(run, "torch", "1.0.0"),
        "made with torch 1.0.0",
        ["torch", "versions"],
        ["transformers", "config"],
    ),
    "Python": (
        lambda run: spoil_version(run, "python", "2.7.18"),
        "made with python 2.7.18",
        ["python", "versions"],
        ["task"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named_and_refused_unless_it_is_meant(
    name: str, run: Path, capsys: Capture
) -> None:
    spoil, wanted, right, wrong = CHANGES[name]
    spoil(run)
    before = (run / "identity.json").read_bytes()
    assert main(["train", "--resume", str(run)]) == 2
    line = one_line(capsys)
    assert wanted in line
    assert f"--accept {right[0]}" in line
    for key in wrong:
        with pytest.raises(UserError):
            open_and_close(run, (key,))
    assert (run / "identity.json").read_bytes() == before
    for key in right:
        (run / "identity.json").write_bytes(before)
        open_and_close(run, (key,))
    open_and_close(run)  # what was accepted once is the run from now on
    assert identity.load(run)["id"] == json.loads(before)["id"]  # type: ignore[index]


def test_several_changes_need_a_word_each(run: Path) -> None:
    spoil_config(run, "lr = 0.01", "lr = 0.02")
    spoil_version(run, "torch", "1.0.0")
    with pytest.raises(UserError, match="and 1 more: versions/torch"):
        open_and_close(run)
    with pytest.raises(UserError, match="torch"):
        open_and_close(run, ("train.lr",))
    open_and_close(run, ("train.lr", "versions"))


def test_a_patch_release_of_python_is_no_change(run: Path) -> None:
    spoil_version(run, "python", ".".join(identity.versions()["python"].split(".")[:2]) + ".999")
    open_and_close(run)


def test_accepting_what_there_is_not(run: Path, capsys: Capture) -> None:
    assert main(["train", "--resume", str(run), "--accept", "train.lrr"]) == 2
    assert "did you mean train.lr?" in one_line(capsys)
    assert main(["train", "--accept", "config"]) == 2
    assert "--accept goes with --resume" in one_line(capsys)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"versions": 3}', "[" * 100_000])
def test_a_damaged_identity(text: str, run: Path, capsys: Capture) -> None:
    (run / "identity.json").write_text(text)
    assert main(["train", "--resume", str(run)]) == 2
    assert "identity.json is damaged" in one_line(capsys)
    (run / "identity.json").unlink()
    open_and_close(run)
    assert identity.load(run) is not None


# -- checkpoints and rows -------------------------------------------------------------------------


def flip(file: Path, position: int = -40) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_falls_back_to_the_checkpoint_before(
    run: Path, finished: Path, capsys: Capture
) -> None:
    flip(run / "checkpoints" / "step-000002" / "tensors" / "__0_0.distcp")
    assert main(["train", "--resume", str(run)]) == 0
    error = capsys.readouterr().err
    assert "tensors/__0_0.distcp is not what was written" in error
    assert "goes on from step 1" in error
    name = "final/model.safetensors"
    assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_no_good_checkpoint_at_all(run: Path, capsys: Capture) -> None:
    for folder in (run / "checkpoints").iterdir():
        flip(folder / "state.json", 5)
    assert main(["train", "--resume", str(run)]) == 2
    assert "there is none before it" in capsys.readouterr().err.splitlines()[-1]


def test_checksums_that_make_no_sense(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    identity.write_checksums(tmp_path)
    assert identity.damage(tmp_path) is None
    (tmp_path / "a").unlink()
    assert identity.damage(tmp_path) == "a is missing"
    for text in ("[]", "{", "[" * 100_000):
        (tmp_path / "checksums.json").write_text(text)
        assert "checksums.json" in str(identity.damage(tmp_path))
    (tmp_path / "checksums.json").unlink()
    assert identity.damage(tmp_path) is None


ROW = '{"step": %d, "rollout/passed": 0.5}\n'
TEXTS = {
    "whole": (ROW % 1 + '{"step": 1, "eval/mean@2": 0}\n' + ROW % 2, None),
    "cut short at the end": (ROW % 1 + ROW % 2 + '{"st', None),
    "torn in the middle": (ROW % 1 + '{"st\n' + ROW % 2, "line 2 cannot be read"),
    "garbage": ("\0\udcff\n[3]\n" + ROW % 1 + ROW % 2, "lines 1, 2 cannot be read"),
    "a step is missing": (ROW % 2, "the rows of step 1 are missing"),
    "an evaluation is no step": (ROW % 1 + '{"step": 2}\n', "the rows of step 2 are missing"),
    "gone": (None, "the rows of steps 1, 2 are missing"),
    "nested": (ROW % 1 + "[" * 100_000 + "\n" + ROW % 2, "line 2"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_rows_are_noticed(name: str, tmp_path: Path) -> None:
    text, wanted = TEXTS[name]
    if text is not None:
        (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    problem = read_rows(tmp_path).problem(2)
    assert (problem is None) == (wanted is None), problem
    assert wanted is None or wanted in str(problem)


def test_damaged_rows_are_said_once_and_the_run_goes_on(run: Path, capsys: Capture) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([lines[0], "garbage\n", *lines[2:]]))
    assert main(["train", "--resume", str(run)]) == 0
    assert capsys.readouterr().err.count("line 2 cannot be read") == 1
    assert read_rows(run).damaged == ()


# -- more steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [True, False])
def test_more_steps_end_as_a_run_that_had_them_from_the_start(
    done: bool, run: Path, finished: Path, tmp_path: Path
) -> None:
    if done:
        shutil.copy(finished / "done.json", run)
    assert main(["train", "--resume", str(run), "--train.steps", "4"]) == 0
    other = tiny.settings(finished.parent / "m", tmp_path / "whole", "sdpo", train__steps=4)
    other["task"] = f"{tmp_path / 'world.py'}:World"
    assert main(["train", *tiny.arguments(other)]) == 0
    for name in ("final/model.safetensors", "best/model.safetensors", "done.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [row["step"] for row in read_metrics(run)] == [0, 1, 2, 2, 3, 4, 4]
    with pytest.raises(UserError, match="complete"):
        open_and_close(run)


@pytest.mark.parametrize(
    "steps", ["1", "0", "-4", "many", "1e3", "[4]", "true", "none", "9" * 5000]
)
def test_steps_that_cannot_be(steps: str, run: Path, capsys: Capture) -> None:
    before = (run / "config.toml").read_bytes()
    assert main(["train", "--resume", str(run), "--train.steps", steps]) == 2
    assert "--train.steps" in one_line(capsys)
    assert (run / "config.toml").read_bytes() == before


def test_a_run_that_breaks_off_again_keeps_its_new_steps(run: Path) -> None:
    (run / "done.json").write_text("{}")
    assert open_and_close(run, steps=4).train.steps == 4
    assert not (run / "done.json").exists()
    assert open_and_close(run).train.steps == 4


# -- two at once ----------------------------------------------------------------------------------


def _create(place: str, gate: Any, out: Any) -> None:
    config = load_config(None, [("model.path", "m")])
    gate.wait()
    run = RunDirectory.create_numbered(Path(place), config)
    out.put(str(run.path))
    gate.wait()
    run.close()


def test_two_runs_at_once_get_two_directories(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, out = context.Barrier(2, timeout=30), context.Queue()
    for number in range(5):
        place = str(tmp_path / f"run{number}")
        both = [context.Process(target=_create, args=(place, gate, out)) for _ in range(2)]
        for process in both:
            process.start()
        assert {out.get(timeout=30) for _ in both} == {place, f"{place}-2"}
        for process in both:
            process.join()
            assert process.exitcode == 0
