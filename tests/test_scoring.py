"""The door to `evaluate()` without workers: order, progress, counts, time limits of threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from resd.errors import UserError
from resd.tasks.outcomes import Verdict
from resd.tasks.registry import TaskSpec
from resd.tasks.scoring import Scorer, Scores, score
from resd.types import Example, Outcome

EXAMPLE = Example("e", [{"role": "user", "content": "x"}])


class World:
    """Does what the response says; notes in which thread, and what it was given."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.examples: list[Example] = []
        self.hang = threading.Event()
        self.both = threading.Barrier(2)

    def evaluate(self, example: Example, response: str) -> Outcome:
        self.threads.add(threading.get_ident())
        self.examples.append(example)
        if response == "raise":
            raise ValueError("broken\npipe")
        if response == "none":
            return None  # type: ignore[return-value]
        if response == "hang":
            self.hang.wait(20)
        if response == "meet":
            self.both.wait(10)
        if response == "slow":
            time.sleep(0.05)
        return Outcome(len(response) / 10, False, "no")


def pairs(*responses: str) -> list[tuple[Example, str]]:
    return [(EXAMPLE, response) for response in responses]


def rewards(scores: Scores) -> list[float | None]:
    return [None if outcome is None else outcome.reward for outcome in scores.outcomes]


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_and_failures_stand_in_order(workers: int) -> None:
    world, told = World(), list[tuple[int, int]]()
    scorer = Scorer(world, workers=workers, mode="thread")  # type: ignore[arg-type]
    with scorer:
        scores = scorer.score(
            pairs("slow", "raise", "a", "none", "slow", "ab"), lambda *done: told.append(done)
        )
    assert rewards(scores) == [0.4, None, 0.1, None, 0.4, 0.2]
    assert dict(scores.counts) == {"env_raised": 1, "env_wrong_type": 1}
    assert [bool(failure) for failure in scores.failures] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert scores.failures[1].startswith("env_raised: ")
    assert "broken" in scores.failures[1]
    assert "\n" not in scores.failures[1]
    assert scores.first_failure == scores.failures[1]
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(example is not EXAMPLE and example == EXAMPLE for example in world.examples)
    here = threading.get_ident()
    assert (world.threads == {here}) if workers == 1 else (here not in world.threads)


def test_alone_and_without_a_limit_progress_goes_one_by_one() -> None:
    told: list[tuple[int, int]] = []
    scorer = Scorer(World(), mode="thread")  # type: ignore[arg-type]
    scorer.score(pairs("a", "raise", "b"), lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_nothing_to_score() -> None:
    for workers in (1, 2):
        scorer = Scorer(World(), workers=workers, mode="thread")  # type: ignore[arg-type]
        assert scorer.score([]) == Scores()
    assert Scores().first_failure == ""


def test_what_hangs_costs_one_response_each_and_holds_no_other() -> None:
    world, told = World(), list[tuple[int, int]]()
    scorer = Scorer(world, workers=2, mode="thread", seconds=0.3)  # type: ignore[arg-type]
    began = time.monotonic()
    scores = scorer.score(
        pairs("hang", "hang", "a", "slow", "hang", "ab"), lambda *done: told.append(done)
    )
    took = time.monotonic() - began
    left = [thread for thread in threading.enumerate() if thread.name == "resd evaluate"]
    assert left and all(thread.daemon for thread in left)  # they hold no process that ends
    world.hang.set()
    assert rewards(scores) == [None, None, 0.1, 0.4, None, 0.2]
    assert dict(scores.counts) == {"env_timeout": 3}
    assert scores.first_failure == "env_timeout: no outcome within 0.3 s"
    assert 0.3 < took < 10
    assert told[-1] == (6, 6)


def test_as_many_at_a_time_as_there_are_workers() -> None:
    scorer = Scorer(World(), workers=2, mode="thread")  # type: ignore[arg-type]
    assert rewards(scorer.score(pairs("meet", "meet"))) == [0.4, 0.4]


def test_threads_end_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    before = threading.enumerate()  # other tests leave hanging ones behind, on purpose
    scorer = Scorer(World(), workers=2, mode="thread")  # type: ignore[arg-type]
    scorer.score(pairs("a", "b", "c"))
    for thread in threading.enumerate():
        if thread.name == "resd evaluate" and thread not in before:
            thread.join(10)
            assert not thread.is_alive()
    assert said == []


def test_one_thread_with_a_limit_is_not_the_callers_own() -> None:
    world = World()
    scorer = Scorer(world, mode="thread", seconds=30.0)  # type: ignore[arg-type]
    assert rewards(scorer.score(pairs("a"))) == [0.1]
    assert threading.get_ident() not in world.threads


def test_fewer_than_one_worker_is_one_and_so_is_the_default() -> None:
    world = World()
    assert rewards(score(world, pairs("a"))) == [0.1]  # type: ignore[arg-type]
    assert rewards(score(world, pairs("a", "pass"), workers=0)) == [0.1, 0.4]  # type: ignore[arg-type]
    assert world.threads == {threading.get_ident()}


class Pool:
    """Stands for the worker processes; the last one that was made."""

    last: Any = None

    def __init__(self, *arguments: Any, fresh: bool) -> None:
        self.made_with, self.fresh, self.closed = arguments, fresh, False
        Pool.last = self

    def score(self, pairs: Any, progress: Any) -> list[Verdict]:
        return [Verdict(Outcome(0.5, False, "no")) for _ in pairs]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("mode", "fresh"), [("process", False), ("fresh", True)])
def test_with_a_task_to_load_there_are_processes(
    mode: Any, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resd.tasks.scoring.WorkerPool", Pool)
    world, spec = World(), TaskSpec("t", {}, 0)
    with Scorer(world, spec, workers=3, mode=mode, seconds=2.0) as scorer:  # type: ignore[arg-type]
        assert rewards(scorer.score(pairs("a", "b"))) == [0.5, 0.5]
        assert (Pool.last.made_with, Pool.last.fresh) == ((spec, 3, 2.0), fresh)
        assert not Pool.last.closed
    assert Pool.last.closed
    assert world.threads == set()


def test_threads_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resd.tasks.scoring.WorkerPool", pytest.fail)
    with Scorer(World(), TaskSpec("t", {}, 0), mode="thread") as scorer:  # type: ignore[arg-type]
        assert rewards(scorer.score(pairs("a"))) == [0.1]


def test_many_responses_come_to_an_end() -> None:
    scorer = Scorer(World(), workers=2, mode="thread")  # type: ignore[arg-type]
    assert rewards(scorer.score(pairs(*["a"] * 300))) == [0.1] * 300


def test_a_mode_that_there_is_not() -> None:
    with pytest.raises(UserError, match="one of process, fresh, thread, found 'x'"):
        Scorer(World(), mode="x")  # type: ignore[arg-type]


def test_without_a_task_to_load_there_are_threads_whatever_the_mode() -> None:
    world = World()
    assert rewards(Scorer(world, mode="process").score(pairs("a"))) == [0.1]  # type: ignore[arg-type]
    assert world.threads == {threading.get_ident()}
