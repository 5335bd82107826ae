"""Micro-batches: within their budget, little padding, every sample once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resd.loop.micro import Micro, micro_batches, padding
from resd.types import TrainingSample

SAMPLES = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 400), st.integers(0, 2000)),
    min_size=1,
    max_size=30,
)


def made(lengths: list[tuple[int, int, int]]) -> list[TrainingSample]:
    return [
        TrainingSample((1,) * p, (2,) * r, (3,) * t, advantage=float(i))
        for i, (p, r, t) in enumerate(lengths)
    ]


@given(SAMPLES, st.integers(1, 8000))
def test_budget_padding_and_completeness(lengths: list[tuple[int, int, int]], budget: int) -> None:
    samples = made(lengths)
    weights = [torch.full((len(s.response_ids),), s.advantage) for s in samples]
    micros = micro_batches(samples, weights, budget)
    found = [sample for micro in micros for sample in micro.samples]
    assert sorted(s.advantage for s in found) == [s.advantage for s in samples]
    for micro in micros:
        widths = [
            max(len(s.prompt_ids), len(s.teacher_ids)) + len(s.response_ids) for s in micro.samples
        ]
        assert len(micro.samples) == 1 or max(widths) * len(widths) <= budget
        assert padding([micro]) <= 0.1 or micro.cost <= 2048
        assert micro.token_ids.tolist() == [2] * sum(len(s.response_ids) for s in micro.samples)
        assert torch.equal(micro.weights, micro.advantages)
        assert micro.sampler is None


def test_padding_by_hand() -> None:
    samples = made([(10, 5, 0), (20, 5, 0)])
    (micro,) = micro_batches(samples, [torch.ones(5)] * 2, 10_000)
    assert micro.cost == 50
    assert padding([micro]) == pytest.approx(10 / 50)
    idle = micro.without_weight()
    assert idle.weights.sum() == 0.0 and idle.samples is micro.samples


def test_a_long_batch_of_like_lengths_has_little_padding() -> None:
    samples = made([(1000 + 10 * i, 500, 3000 + 20 * i) for i in range(32)])
    micros = micro_batches(samples, [torch.ones(500)] * 32, 16384)
    assert padding(micros) < 0.1
    assert len(micros) <= 12


@pytest.mark.parametrize(
    ("lengths", "budget", "sizes"),
    [
        # what is free may be padding, to the token
        ([(10, 1, 0), (1023, 1, 0)], 10_000, [2]),
        ([(10, 1, 0), (10, 1, 0), (682, 1, 0)], 10_000, [2, 1]),
        # beyond it, a tenth
        ([(1199, 1, 0), (1499, 1, 0)], 10_000, [2]),
        ([(1198, 1, 0), (1499, 1, 0)], 10_000, [1, 1]),
        # the wider of the two passes has to fit, to the token
        ([(9, 1, 0)] * 3, 30, [3]),
        ([(9, 1, 0)] * 3, 29, [2, 1]),
        ([(2, 1, 9)] * 2, 20, [2]),
        ([(2, 1, 9)] * 2, 19, [1, 1]),
        ([(9, 1, 2)] * 2, 19, [1, 1]),
        # by both passes of a sample: 3 + 9 are fewer than 20
        ([(19, 1, 0), (2, 1, 8)], 20, [1, 1]),
    ],
)
def test_where_a_batch_is_cut(
    lengths: list[tuple[int, int, int]], budget: int, sizes: list[int]
) -> None:
    samples = made(lengths)
    weights = [torch.ones(len(s.response_ids)) for s in samples]
    assert [len(m.samples) for m in micro_batches(samples, weights, budget)] == sizes


def test_what_a_micro_batch_knows_of_its_tokens() -> None:
    first = TrainingSample((1,), (2, 3), advantage=0.5, log_probs=(-1.0, -2.0))
    second = TrainingSample((1,), (4,), advantage=-1.5, log_probs=(-3.0,))
    weights = [torch.tensor([0.1, 0.2]), torch.tensor([0.3])]
    micro = Micro.of([first, second], weights)
    assert micro.sampler is not None
    assert micro.sampler.tolist() == [-1.0, -2.0, -3.0]
    assert micro.advantages.tolist() == [0.5, 0.5, -1.5]
    assert micro.token_ids.tolist() == [2, 3, 4]
    assert micro.weights.tolist() == pytest.approx([0.1, 0.2, 0.3])
    silent = TrainingSample((1,), (4,))
    assert Micro.of([first, silent], weights).sampler is None
    micro.old, micro.scores = torch.zeros(3), object()  # type: ignore[assignment]
    idle = micro.without_weight()
    assert (idle.old, idle.scores, idle.weights.tolist()) == (None, None, [0.0] * 3)
