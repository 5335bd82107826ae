"""Writing beside the training: one at a time, and an error comes to light."""

from __future__ import annotations

import threading

import pytest

from resd.loop.background import Background


def test_one_piece_of_work_at_a_time() -> None:
    background, may_end, done = Background(enabled=True), threading.Event(), []
    background.start(lambda: (may_end.wait(10), done.append("first"))[-1])
    assert done == []  # the caller went on
    threading.Timer(0.05, may_end.set).start()
    background.start(lambda: done.append("second"))
    assert done[0] == "first"
    background.wait()
    assert done == ["first", "second"]


@pytest.mark.parametrize("settle", [False, True])
def test_an_error_is_raised_by_who_waits(settle: bool) -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    background = Background(enabled=True)
    background.settle()  # nothing was begun
    background.start(fail)
    if settle:  # something else went wrong: this one is not to hide it
        background.settle()
    else:
        with pytest.raises(OSError, match="the disk is full"):
            background.start(lambda: None)
    background.wait()  # said once


def test_without_a_thread_it_is_done_at_once() -> None:
    done: list[str] = []
    Background(enabled=False).start(lambda: done.append(threading.current_thread().name))
    assert done == [threading.main_thread().name]


def test_who_settles_waits_for_the_end() -> None:
    background, may_end, done = Background(enabled=True), threading.Event(), []
    background.start(lambda: (may_end.wait(10), done.append("work"))[-1])
    threading.Timer(0.05, may_end.set).start()
    background.settle()
    assert done == ["work"]
