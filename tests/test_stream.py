"""The stream protocol: every example in one batch only, K inner iterations, deterministic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd.config import TrainConfig
from resd.loop.stream import Stream
from resd.types import Example

SIZES = st.integers(1, 40)


def examples(number: int) -> list[Example]:
    return [Example(f"e{i}", [{"role": "user", "content": "x"}]) for i in range(number)]


def stream(number: int, batch: int, inner: int, steps: int | None = None, seed: int = 0) -> Stream:
    config = TrainConfig(batch_size=batch, inner_iterations=inner, steps=steps)
    return Stream(examples(number), config, seed)


def ids(batch: list[Example]) -> list[str]:
    return [example.id for example in batch]


@given(SIZES, st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_one_pass_shows_every_example_in_one_batch_for_k_steps(
    number: int, batch: int, inner: int, seed: int
) -> None:
    it = stream(number, batch, inner, seed=seed)
    size = min(batch, number)
    assert it.steps == number // size * inner
    shown = [ids(it.batch(step)) for step in range(1, it.steps + 1)]
    batches = shown[::inner]
    for start in range(0, it.steps, inner):
        assert shown[start : start + inner] == [shown[start]] * inner
    together = [id_ for one in batches for id_ in one]
    assert len(set(together)) == len(together) == number // size * size
    assert all(len(one) == size for one in batches)


@given(SIZES, st.integers(1, 12), st.integers(1, 4))
def test_first_iterations_are_those_where_the_batch_changes(
    number: int, batch: int, inner: int
) -> None:
    it = stream(number, batch, inner)
    firsts = [step for step in range(1, 4 * inner + 1) if it.is_first_iteration(step)]
    assert firsts == [1 + i * inner for i in range(4)]


def test_any_step_can_be_asked_for_alone() -> None:
    forwards = [ids(stream(20, 4, 2, 60, seed=3).batch(step)) for step in range(1, 61)]
    again = stream(20, 4, 2, 60, seed=3)
    backwards = [ids(again.batch(step)) for step in range(60, 0, -1)]
    assert forwards == backwards[::-1]


def test_seeds_give_other_orders() -> None:
    assert ids(stream(30, 10, 1, seed=0).batch(1)) != ids(stream(30, 10, 1, seed=1).batch(1))


def test_more_steps_than_a_pass_go_on_with_another_order() -> None:
    it = stream(12, 3, 2, steps=24)
    first = [ids(it.batch(step)) for step in range(1, 9, 2)]
    second = [ids(it.batch(step)) for step in range(9, 17, 2)]
    assert sorted(id_ for batch in first for id_ in batch) == sorted(
        id_ for batch in second for id_ in batch
    )
    assert first != second


@pytest.mark.parametrize(("steps", "expected"), [(None, 16), (5, 5), (100, 100)])
def test_number_of_steps(steps: int | None, expected: int) -> None:
    assert stream(13, 3, 4, steps).steps == expected
