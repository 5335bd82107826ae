"""What a person sees of a run: lines when piped, a live display in a terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from resd.config import load_config
from resd.loop.clock import describe_phases
from resd.loop.evaluate import Baseline, Evaluation
from resd.loop.view import LiveView, PlainView, describe, make_view

CONFIG = load_config(None, [("task", "lab"), ("seed", "7")])
NAME = f"{CONFIG.method.name} on lab"
ROW = {
    "rollout/passed": 0.125,
    "train/loss": 0.12345,
    "playbook/entries": 12.0,
    "playbook/candidates": 3.0,
}


def evaluation(**over: Any) -> Evaluation:
    plain = dict.fromkeys(("mean", "best", "case_mean", "case_best"), 0.5)
    return Evaluation(
        **{
            **plain,
            "samples": 4,
            "problems": 2,
            "truncated": 0.0,
            "skipped": 0,
            "failed": 0,
            **over,
        }
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, as the view sees them."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_lines_of_a_run(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    view = PlainView()
    view.begin(CONFIG, 2, 10)
    clock[0] += 30.0
    view.stepped(4, ROW, "close with please")
    view.stepped(5, {"rollout/passed": 1.0}, "")
    view.evaluated(5, evaluation())
    view.finished(Path("runs/a"), 4, [])
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME}, 10 steps from step 2, seed 7",
        "step 4/10  passed 0.12  loss 0.1235  playbook 12  left 90 s  learnt: close with please",
        "step 5/10  passed 1.00  left 50 s",
        "step 5  mean@4 0.500  best@4 0.500",
        f"done: {Path('runs/a')}  (model in {Path('runs/a/final')}, best step 4)",
    ]


def test_a_run_from_the_start_names_no_step(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    view.begin(CONFIG, 0, 10)
    view.warn("the disk\nis full")
    said = capsys.readouterr()
    assert said.out == f"{NAME}, 10 steps, seed 7\n"
    assert said.err == "warning: the disk is full\n"


def test_the_time_left_while_no_step_is_done(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    view = PlainView()
    view.begin(CONFIG, 3, 5)
    clock[0] += 7.0
    view.stepped(3, ROW, "")
    assert capsys.readouterr().out.endswith("left 14 s\n")


def test_a_phase_of_five_milliseconds_is_shown() -> None:
    row = {"time/save_s": 0.005, "time/teacher_s": 0.00499, "time/generate_s": 1.0}
    assert describe_phases(row) == "generate 1.00  save 0.01"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"mean": 0.25}, "mean@4 0.250  best@4 0.500  cases: mean@4 0.500  best@4 0.500"),
        ({"case_best": 0.75}, "mean@4 0.500  best@4 0.500  cases: mean@4 0.500  best@4 0.750"),
        (
            {"baselines": {"silence": Baseline(0.125, 0.125), "echo": Baseline(0.0, 0.5)}},
            "mean@4 0.500  best@4 0.500  (trivial: silence 0.125, echo 0.000, cases 0.500)",
        ),
    ],
)
def test_an_evaluation_in_words(over: dict[str, Any], words: str) -> None:
    assert describe(evaluation(**over)) == words


def seen(view: LiveView, console: Console) -> str:
    console.print(view._render())
    return console.export_text()


def test_the_live_view() -> None:
    console = Console(record=True, width=120, force_terminal=True)
    view = make_view(console)
    assert isinstance(view, LiveView)
    view.begin(CONFIG, 2, 10)
    assert view._live.is_started
    view.stepped(4, ROW, "w" * 101)
    for mean in (0.0, 0.5, 1.0):
        view.evaluated(4, evaluation(mean=mean, case_mean=mean))
    view.close()
    assert not view._live.is_started
    view.close()
    console.export_text()
    text = seen(view, console)
    for words in ("4/10", "12%", "0.1235", "12 lessons, 3 candidates", f"{NAME} "):
        assert words in text, words
    assert "mean@4 1.000  best@4 0.500  ▁▅█" in text
    assert "w" * 100 in text
    assert "w" * 101 not in text
    view.stepped(5, {"rollout/passed": 0.5}, "")
    assert "w" * 100 in seen(view, console)  # the last lesson stays


def test_the_end_of_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=120, force_terminal=True)
    view = LiveView(console)
    view.begin(CONFIG, 0, 3)
    view.warn("[red]no\ncolour")
    view.finished(Path("[red]"), 3, [])
    text = console.export_text()
    assert "warning: [red]no colour" in text
    assert "done: [red]  (model in [red]/final, best step 3)" in text
    assert not view._live.is_started


def test_no_terminal_no_live_view() -> None:
    assert isinstance(make_view(Console(force_terminal=False)), PlainView)


def test_a_long_silence_is_broken_by_how_far_it_is(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    view = PlainView()
    view.begin(CONFIG, 0, 10)
    for done in range(5):
        view.progress("rollout", done, 16)
        clock[0] += 20.0
    for done in range(3):
        view.progress("update", done, 3)
        clock[0] += 31.0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  rollout: 2 of 16, about 280 s left",
        "  rollout: 4 of 16, about 240 s left",
        "  update: 1 of 3, about 62 s left",
        "  update: 2 of 3, about 31 s left",
    ]


def test_a_part_of_the_same_name_begins_anew(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    view = PlainView()
    view.begin(CONFIG, 0, 10)
    view.progress("update", 3, 3)
    clock[0] += 1000.0
    view.progress("update", 0, 3)
    clock[0] += 40.0
    view.progress("update", 1, 3)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  update: 0 of 3",
        "  update: 1 of 3, about 80 s left",
    ]


def test_the_live_view_shows_what_is_done_within_a_step() -> None:
    now = [0.0]
    console = Console(record=True, width=120, force_terminal=True, get_time=lambda: now[0])
    view = LiveView(console)
    view.begin(CONFIG, 0, 10)
    view._live.stop()
    for done in range(4):
        view.progress("evaluation", done, 16)
        now[0] += 10.0
    console.export_text()
    _, steps, part, *_ = [line.split() for line in ("\n" + seen(view, console)).splitlines()]
    assert "0/10" in steps
    assert (part[0], part[-2:]) == ("evaluation", ["3/16", "0:02:10"])
    view.progress("update", 1, 4)
    text = seen(view, console)
    assert "1/4" in text
    assert "evaluation" not in text
    view.stepped(1, ROW, "")
    assert "update" not in seen(view, console)
    view.progress("evaluation", 1, 2)
    view.evaluated(1, evaluation())
    assert "1/2" not in seen(view, console)
