"""Sample, token and importance weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resd.distill import importance_weights, success_rate_weights, token_weights

outcomes = st.lists(st.booleans(), min_size=1, max_size=40)
aggregations = st.sampled_from(["token_mean", "sample_mean", "released"])
quick = settings(deadline=None, max_examples=60)


def test_success_rate_weights_worked_example():
    # s = 1/4: a success weighs 3/4, a failure 1/4, the mean is 3/8.
    weights = success_rate_weights([True, False, False, False], 1.0)
    assert weights == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])
    squared = success_rate_weights([True, False, False, False], 2.0)
    assert squared == pytest.approx([3.0, 1 / 3, 1 / 3, 1 / 3])


@quick
@given(outcomes, st.floats(0.0, 5000.0))
def test_success_rate_weights_have_mean_one_and_favour_the_rarer(passed, exponent):
    weights = success_rate_weights(passed, exponent)
    assert len(weights) == len(passed)
    assert sum(weights) / len(weights) == pytest.approx(1.0)
    assert all(math.isfinite(weight) and weight >= 0.0 for weight in weights)
    successes = sum(passed)
    if exponent > 0.01 and 0 < successes < len(passed) and 2 * successes != len(passed):
        rare = successes < len(passed) / 2
        lightest_rare = min(w for w, ok in zip(weights, passed, strict=True) if ok is rare)
        heaviest_common = max(w for w, ok in zip(weights, passed, strict=True) if ok is not rare)
        assert lightest_rare > heaviest_common


@pytest.mark.parametrize("passed", [[True], [False], [True] * 5, [False] * 5])
def test_one_sided_batches_are_not_weighted(passed):
    assert success_rate_weights(passed, 2.0) == [1.0] * len(passed)


def test_success_rate_weights_with_two_exponents():
    """s = 1/4: a success weighs (3/4)^2, a failure (1/4)^1, relative to each other."""
    weights = success_rate_weights([True, False, False, False], 2.0, 1.0)
    assert weights[0] / weights[1] == pytest.approx((3 / 4) ** 2 / (1 / 4))
    assert sum(weights) / 4 == pytest.approx(1.0)


def test_success_rate_weights_edges():
    assert success_rate_weights([], 1.0) == []
    assert success_rate_weights([True, False, False], 0.0) == [1.0, 1.0, 1.0]
    for exponent in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="exponent"):
            success_rate_weights([True, False], exponent)


# Three samples of 3, 1 and 2 tokens; the third is not taught.
MASK = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 1, 0]])
TAUGHT = torch.tensor([True, True, False])
SAMPLE = torch.tensor([1.0, 3.0, 7.0])


@pytest.mark.parametrize(
    ("aggregation", "first", "second"),
    [
        ("token_mean", 1 / 4, 3 / 4),  # 4 tokens are taught
        ("sample_mean", 1 / 6, 3 / 2),  # 1/3 and 1/1 of a sample, 2 samples are taught
        ("released", 1 / 9, 3 / 3),  # the same over all 3 samples
    ],
)
def test_token_weights_worked_example(aggregation, first, second):
    weights = token_weights(MASK, TAUGHT, SAMPLE, aggregation)
    expected = [[first] * 3, [0.0, second, 0.0], [0.0] * 3]
    torch.testing.assert_close(weights, torch.tensor(expected))


@quick
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 7), aggregations)
def test_micro_batches_and_padding_change_nothing(seed, batch, length, aggregation):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    taught = torch.rand(batch, generator=generator) < 0.7
    sample = torch.rand(batch, generator=generator)
    per_token = torch.randn(batch, length, generator=generator, dtype=torch.float64)

    # The definition, one sample at a time.
    total = count = 0.0
    for b in range(batch):
        tokens = per_token[b][mask[b]]
        if not taught[b] or not len(tokens):
            continue
        mean = aggregation != "token_mean"
        total += sample[b].item() * (tokens.mean() if mean else tokens.sum()).item()
        count += 1 if mean else len(tokens)
    expected = total / max(batch if aggregation == "released" else count, 1)

    weights = token_weights(mask, taught, sample, aggregation)
    cut = batch // 2
    halves = [(weights[part] * per_token[part]).sum() for part in (slice(cut), slice(cut, None))]
    assert sum(halves).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    padded = torch.nn.functional.pad(mask.float(), (2, 3))
    wider = token_weights(padded, taught.int(), sample, aggregation)
    assert torch.equal(wider[:, 2:-3], weights)
    assert wider.count_nonzero() == weights.count_nonzero()


@pytest.mark.parametrize("aggregation", ["token_mean", "sample_mean", "released"])
def test_nothing_taught_weighs_nothing(aggregation):
    weights = token_weights(MASK, torch.zeros(3, dtype=torch.bool), SAMPLE, aggregation)
    assert torch.equal(weights, torch.zeros(3, 3))
    assert token_weights(MASK[:0], TAUGHT[:0], SAMPLE[:0], aggregation).shape == (0, 3)


def test_a_taught_sample_without_tokens_is_not_averaged_over():
    mask = torch.tensor([[1, 1], [0, 0]])
    weights = token_weights(mask, torch.ones(2).bool(), torch.ones(2), "sample_mean")
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


def test_token_weights_reject_bad_input():
    with pytest.raises(ValueError, match=r"mask must be \[B, T\]"):
        token_weights(MASK[0], TAUGHT, SAMPLE, "token_mean")
    with pytest.raises(ValueError, match=r"taught must be \[3\]"):
        token_weights(MASK[:, :2], TAUGHT[:2], SAMPLE, "token_mean")
    with pytest.raises(ValueError, match=r"sample_weights must be \[3\]"):
        token_weights(MASK, TAUGHT, SAMPLE[:, None], "token_mean")
    with pytest.raises(ValueError, match="aggregation"):
        token_weights(MASK, TAUGHT, SAMPLE, "mean")


def test_importance_weights_are_capped_ratios_without_gradient():
    old = torch.log(torch.tensor([0.5, 0.5, 0.1, math.nan, 1e-30]))
    new = torch.log(torch.tensor([0.5, 0.25, 0.9, 0.5, 1.0])).requires_grad_()
    weights = importance_weights(new, old)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.5, 2.0, 1.0, 2.0]))
    assert not weights.requires_grad
    assert importance_weights(new, old, cap=1.5).max().item() == 1.5


def test_importance_weights_widen_half_precision():
    old = torch.tensor([-3.0, -200.0], dtype=torch.bfloat16)
    new = torch.tensor([-3.0078125, -1.0], dtype=torch.float32)
    weights = importance_weights(new, old)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([math.exp(-0.0078125), 2.0])


def test_importance_weights_reject_bad_input():
    for new, old in ((2, 3), (3, 2)):
        with pytest.raises(ValueError, match="shape"):
            importance_weights(torch.zeros(new), torch.zeros(old))
    for cap in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="cap"):
            importance_weights(torch.zeros(2), torch.zeros(2), cap=cap)
