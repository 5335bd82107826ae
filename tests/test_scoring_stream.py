"""Responses are scored while others are generated; what fails on the way costs no run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_rollouts import SAMPLING, Engine, World, examples, sampler

from resd.engines import Completion
from resd.errors import UserError
from resd.tasks.registry import TaskSpec
from resd.tasks.scoring import Scorer
from resd.types import Example

WORLD = """
import os, time
from pathlib import Path
from resd import Example, Outcome

class World:
    def __init__(self, place):
        self.place = Path(place)
    def examples(self, split):
        return []
    def evaluate(self, example, response):
        if response == "die":
            os._exit(3)
        if response == "slow":
            time.sleep(30)
        with (self.place / "log").open("a") as log:
            log.write(f"{example.id} {response} {os.getpid()}\\n")
        if response == "broken":
            raise RuntimeError("out of luck")
        return Outcome(len(response) / 10, True, "", metrics={"length": len(response)})
"""


@pytest.fixture
def spec(tmp_path: Path) -> TaskSpec:
    (tmp_path / "world.py").write_text(WORLD)
    return TaskSpec(f"{tmp_path / 'world.py'}:World", {"place": str(tmp_path)}, 0)


@pytest.fixture
def scorer(spec: TaskSpec) -> Iterator[Scorer]:
    with Scorer(World(), spec, workers=2, seconds=20) as made:  # type: ignore[arg-type]
        yield made


def log(place: Path) -> list[list[str]]:
    file = place / "log"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def pair(number: int, response: str) -> tuple[Example, str]:
    return examples(number + 1)[number], response


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Slow(Engine):
    """Goes on once the response before was scored."""

    def __init__(self, place: Path, texts: list[str]) -> None:
        super().__init__([Completion((1,), text, "stop", answer=text) for text in texts])
        self.place = place

    def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
        assert on_done is not None
        made = [self.left.pop(0) for _ in requests]
        for done, number in enumerate(reversed(range(len(made)))):
            until(lambda done=done: len(log(self.place)) == done)
            on_done(number, made[number])
        return made


def test_responses_are_scored_while_others_are_generated(scorer: Scorer, tmp_path: Path) -> None:
    ours = sampler(Slow(tmp_path, ["a", "bbb", "broken", "cc"]))
    ours.scorer = scorer
    batch = ours.respond(examples(4), 1, SAMPLING)
    rewards = [None if r.outcome is None else r.outcome.reward for r in batch.rollouts]
    assert rewards == [0.1, 0.3, None, 0.2]
    assert [word for _, word, _ in log(tmp_path)] == ["cc", "broken", "bbb", "a"]
    assert [bool(failure) for failure in batch.failures] == [False, False, True, False]
    assert batch.counts == {"env_raised": 1}
    assert "out of luck" in batch.first_failure


def test_an_engine_that_tells_of_some_or_twice(scorer: Scorer, tmp_path: Path) -> None:
    class Terse(Engine):
        def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
            made = super().generate(requests)
            for _ in range(2):
                on_done(1, made[1])
            # Another worker may be ready sooner, and the others be scored by it.
            until(lambda: len(log(tmp_path)) == 1)
            return made

    ours = sampler(Terse())
    ours.scorer = scorer
    assert len(ours.respond(examples(3), 1, SAMPLING).rollouts) == 3
    assert log(tmp_path)[0][0] == "e1"
    assert len(log(tmp_path)) == 3


def test_a_stream_gives_what_score_gives(scorer: Scorer) -> None:
    pairs = [pair(i, "x" * i if i != 3 else "broken") for i in range(9)]
    whole = scorer.score(pairs)
    with scorer.stream() as stream:
        for number in (8, 0, 3, 1, 2, 7, 6, 5, 4):
            stream.add(number, pairs[number])
        parts = stream.finish()
    assert (parts.outcomes, parts.counts, parts.failures) == (
        whole.outcomes,
        whole.counts,
        whole.failures,
    )
    with scorer.stream() as stream:
        assert stream.finish().outcomes == []


def test_without_workers_everything_is_scored_at_the_end_and_in_order() -> None:
    world = World()
    scorer = Scorer(world)  # type: ignore[arg-type]
    with scorer.stream() as stream:
        assert not stream.early
        for number in (2, 0, 1):
            stream.add(number, pair(number, f"r{number}"))
        assert world.seen == []
        assert len(stream.finish().outcomes) == 3
    assert [response for _, response in world.seen] == ["r0", "r1", "r2"]


def test_a_stop_gives_up_what_is_left_and_the_next_stream_works(
    scorer: Scorer, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), scorer.stream() as stream:
        for number in range(4):
            stream.add(number, pair(number, "slow"))
        time.sleep(0.3)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10
    for _ in range(2):
        with scorer.stream() as stream:
            stream.add(0, pair(0, "a"))
            assert stream.finish().outcomes[0] is not None
    assert [word for _, word, _ in log(tmp_path)] == ["a", "a"]


def test_workers_that_a_stream_has_started_outlive_it(scorer: Scorer, tmp_path: Path) -> None:
    with scorer.stream() as stream:
        for number in range(2):
            stream.add(number, pair(number, "die"))
        assert stream.finish().outcomes == [None, None]
    for _ in range(2):
        with scorer.stream() as stream:
            for number in range(8):
                stream.add(number, pair(number, "ok"))
            assert None not in stream.finish().outcomes
        time.sleep(0.2)
    first, second = log(tmp_path)[:8], log(tmp_path)[8:]
    assert {pid for *_, pid in second} & {pid for *_, pid in first}
    assert str(os.getpid()) not in {pid for *_, pid in second}
    assert not [t for t in threading.enumerate() if t.name == "resd score"]


def test_an_error_of_the_workers_reaches_the_caller(spec: TaskSpec, tmp_path: Path) -> None:
    (tmp_path / "world.py").write_text("raise RuntimeError('no world')")
    scorer = Scorer(World(), spec)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no world"), scorer, scorer.stream() as stream:
        stream.add(0, pair(0, "a"))
        stream.finish()


def test_progress_of_the_generation() -> None:
    seen: list[tuple[str, int, int]] = []
    ours = sampler(Engine(), progress=lambda *told: seen.append(told))
    ours.respond(examples(3), 1, SAMPLING, "evaluation", 7)
    assert seen == [("evaluation", done, 3) for done in range(4)]


def test_an_engine_that_rests_is_handed_the_weights_again() -> None:
    import torch

    class Sleeper(Engine):
        def rest(self) -> bool:
            return True

    from resd.engines import Request

    for engine, times in ((Engine(), 1), (Sleeper(), 2)):
        student = torch.nn.Linear(1, 1)
        ours = sampler(engine, student=student)
        for _ in range(2):
            ours.generate([Request((1,), SAMPLING, 0)])
            ours.rest()
        assert len(engine.synced) == times
