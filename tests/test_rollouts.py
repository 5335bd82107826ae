"""The one door to responses: prompts, seeds, grading, hand-over of weights; and the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resd.engines import Completion, Request, Sampling
from resd.loop.clock import Clock, describe_phases
from resd.loop.rollouts import UNFINISHED, Batch, Sampler
from resd.tasks.scoring import Scorer
from resd.types import Example, Outcome

SAMPLING = Sampling(1.0, 0.9, 5)


class Engine:
    """Answers what it is told, in turn."""

    shares_weights = False

    def __init__(self, completions: Sequence[Completion] = ()) -> None:
        self.left = list(completions)
        self.requests: list[Request] = []
        self.synced: list[tuple[Any, str]] = []

    def sync(self, model: torch.nn.Module, version: str) -> None:
        self.synced.append((model, version))

    def generate(self, requests: Sequence[Request], on_done: Any = None) -> list[Completion]:
        self.requests += requests
        plain = Completion((1,), "plain", "stop", answer="plain")
        made = [self.left.pop(0) if self.left else plain for _ in requests]
        for i in range(len(made) - 1, -1, -1) if on_done else ():
            on_done(i, made[i])
        return made

    def rest(self) -> bool:
        return False

    def close(self) -> None: ...


class World:
    """Passes everything but `broken`, with a reward of 3."""

    def __init__(self, reward: float = 3.0) -> None:
        self.seen: list[tuple[str, str]] = []
        self.reward = reward

    def evaluate(self, example: Example, response: str) -> Outcome:
        self.seen.append((example.id, response))
        if response == "broken":
            raise RuntimeError("out of luck")
        return Outcome(self.reward, self.reward > 0, "seen", 2, 2, {"length": len(response)})


def examples(number: int) -> list[Example]:
    return [Example(f"e{i}", [{"role": "user", "content": "x" * (i + 1)}]) for i in range(number)]


def sampler(
    engine: Engine, world: World | None = None, student: Any = None, **over: Any
) -> Sampler:
    def encode(messages: Any) -> list[int]:
        return [7] * len(messages[-1]["content"])

    known = {"max_prompt": 9, "seed": 0, **over}
    scorer = Scorer(world or World())  # type: ignore[arg-type]
    return Sampler(engine, student, encode, scorer, **known)  # type: ignore[arg-type]


def test_responses_of_one_example_stand_side_by_side() -> None:
    engine, world = Engine(), World()
    batch = sampler(engine, world).respond(examples(3), 2, SAMPLING, "rollout", 1)
    assert [r.example.id for r in batch.rollouts] == ["e0", "e0", "e1", "e1", "e2", "e2"]
    assert [len(r.prompt_ids) for r in batch.rollouts] == [1, 1, 2, 2, 3, 3]
    assert [r.prompt_ids for r in batch.rollouts] == [r.prompt_ids for r in engine.requests]
    assert [r.seed for r in batch.rollouts] == [r.seed for r in engine.requests]
    assert {r.sampling for r in engine.requests} == {SAMPLING}
    assert [id_ for id_, _ in world.seen] == ["e0", "e0", "e1", "e1", "e2", "e2"]
    assert (batch.skipped, batch.first_failure, batch.all_failed) == (0, "", False)


def test_a_seed_goes_by_run_purpose_example_and_number() -> None:
    def seeds(number: int, samples: int, seed: int, *purpose: object) -> list[int]:
        made = sampler(Engine(), seed=seed).respond(examples(number), samples, SAMPLING, *purpose)
        return [rollout.seed for rollout in made.rollouts]

    base = seeds(3, 2, 0, "rollout", 1)
    assert len(set(base)) == 6
    assert seeds(3, 2, 0, "rollout", 1) == base
    assert seeds(2, 2, 0, "rollout", 1) == base[:4]  # whatever stands beside it
    assert seeds(3, 1, 0, "rollout", 1) == base[::2]
    for other in (
        seeds(3, 2, 1, "rollout", 1),
        seeds(3, 2, 0, "rollout", 2),
        seeds(3, 2, 0, "evaluation", 1),
    ):
        assert not set(other) & set(base)


def test_a_prompt_that_just_fits_and_one_that_does_not() -> None:
    batch = sampler(Engine(), max_prompt=2).respond(examples(4), 1, SAMPLING)
    assert [rollout.example.id for rollout in batch.rollouts] == ["e0", "e1"]
    assert batch.skipped == 2


def test_without_a_fitting_prompt_nothing_is_done() -> None:
    engine = Engine()
    batch = sampler(engine, student=torch.nn.Linear(1, 1), max_prompt=0).respond(
        examples(2), 3, SAMPLING
    )
    assert (batch.rollouts, batch.skipped) == ([], 2)
    assert engine.synced == engine.requests == []
    assert not batch.all_failed


# -- grading --------------------------------------------------------------------------------------


def test_the_answer_is_graded_and_of_an_unfinished_thought_the_whole_text() -> None:
    done = [
        Completion((1,), "<think>a</think>b", "stop", answer="b"),
        Completion((1,), "<think>a", "length", answer=None),
        Completion((1,), "<think></think>", "stop", answer=""),
    ]
    world = World()
    batch = sampler(Engine(done), world).respond(examples(3), 1, SAMPLING)
    assert world.seen == [("e0", "b"), ("e1", "<think>a"), ("e2", "")]
    answered, unfinished, empty = batch.rollouts
    assert answered.outcome == Outcome(3.0, True, "seen", 2, 2, {"length": 1})
    assert empty.passed
    assert unfinished.outcome == Outcome(0.0, False, UNFINISHED, 0, 2, {"length": 8})
    assert not unfinished.passed
    assert unfinished.answer == ""
    assert "<think>" not in answered.answer


def test_an_unfinished_thought_is_not_better_than_its_outcome() -> None:
    world = World(reward=-2.0)
    done = [Completion((1,), "<think>", "length", answer=None)]
    (rollout,) = sampler(Engine(done), world).respond(examples(1), 1, SAMPLING).rollouts
    assert rollout.outcome is not None
    assert rollout.outcome.reward == -2.0


def test_failures_of_the_environment_are_told() -> None:
    broken = Completion((1,), "broken", "stop", answer="broken")
    unfinished = Completion((1,), "broken", "length", answer=None)
    fine = Completion((1,), "fine", "stop", answer="fine")
    batch = sampler(Engine([fine, broken, unfinished])).respond(examples(3), 1, SAMPLING)
    assert [rollout.outcome is None for rollout in batch.rollouts] == [False, True, True]
    assert batch.counts["env_raised"] == 2
    assert "out of luck" in batch.first_failure
    assert batch.failures[0] == ""
    assert not batch.all_failed
    assert sampler(Engine([broken])).respond(examples(1), 1, SAMPLING).all_failed
    assert not Batch([]).all_failed


# -- weights --------------------------------------------------------------------------------------


def test_weights_are_handed_over_lazily_and_once() -> None:
    student, teacher = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    engine = Engine()
    ours = sampler(engine, student=student)
    request = Request((1,), SAMPLING, 0)
    ours.student_changed()
    ours.student_changed()
    assert engine.synced == []
    ours.generate([request])
    ours.generate([request])
    assert engine.synced == [(student, "student after 2")]
    ours.generate([request], teacher)
    ours.generate([request], teacher)
    ours.generate([request])
    ours.generate([])
    ours.student_changed()
    ours.generate([request], teacher)
    names = ["student after 2", "teacher after 2", "student after 2", "teacher after 3"]
    assert [version for _, version in engine.synced] == names
    assert [model is student for model, _ in engine.synced] == [True, False, True, False]


def test_an_engine_that_holds_the_only_model_is_left_alone() -> None:
    engine = Engine()
    sampler(engine).generate([Request((1,), SAMPLING, 0)])
    assert engine.synced == []


# -- the clock ------------------------------------------------------------------------------------


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the time of the clock pass."""
    now = [0.25]
    fake = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("resd.loop.clock.time", fake)
    return lambda seconds: now.append(now.pop() + seconds)


def test_a_phase_inside_another_is_taken_out_of_it(sleep: Callable[[float], None]) -> None:
    clock = Clock()
    with clock.phase("update"):
        sleep(2)
        for _ in range(2):
            with clock.phase("teacher"):
                sleep(4)
                with clock.phase("generate"):
                    sleep(8)
        sleep(16)
    sleep(32)
    with clock.phase("update"):
        sleep(64)
    assert clock.take() == {"generate": 16, "teacher": 8, "update": 82}
    assert clock.take() == {}


def test_an_evaluation_is_counted_apart(sleep: Callable[[float], None]) -> None:
    clock = Clock()
    with clock.phase("generate"):
        sleep(1)
    for _ in range(2):
        with clock.apart("evaluate"), clock.phase("generate"):
            sleep(2)
    assert clock.take() == {"generate": 1, "evaluate": 4}


def test_responses_are_timed_by_phase() -> None:
    clock = Clock()
    sampler(Engine(), clock=clock).respond(examples(1), 1, SAMPLING)
    assert set(clock.take()) == {"generate", "environment"}


def test_phases_in_a_line() -> None:
    row = {"time/update_s": 1.0, "time/generate_s": 0.005, "time/curate_s": 0.0049, "step": 3}
    assert describe_phases(row) == "generate 0.01  update 1.00"
    assert describe_phases({"time/step_s": 4.0}) == ""
