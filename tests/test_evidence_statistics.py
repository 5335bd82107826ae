"""Medians over dialects: pairing, seeds within a dialect, what the intervals hold."""

import random
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd.evidence.statistics import Effect, by_dialect, differences, effect, judge

VALUES = st.lists(st.floats(-1, 1), min_size=1, max_size=12)


def test_seeds_are_averaged_within_a_dialect():
    values = {(10, 0): 0.0, (10, 1): 0.6, (11, 0): 1.0}
    assert by_dialect(values) == {10: 0.3, 11: 1.0}


def test_variants_are_paired_by_dialect_and_not_by_order():
    of, against = {11: 1.0, 10: 0.5, 12: 9.0}, {10: 0.25, 11: 0.0, 13: 9.0}
    assert differences(of, against) == [0.25, 1.0]


@given(st.lists(st.floats(-100, 100), min_size=10, max_size=10), st.floats(0.125, 1))
def test_what_dialects_have_in_common_cancels(levels, gain):
    """However much dialects differ, a gain that each has alike is found as it is."""
    of = {dialect: level + gain for dialect, level in enumerate(levels)}
    found = effect(differences(of, dict(enumerate(levels))))
    assert (found.low, found.median, found.high) == pytest.approx((gain, gain, gain))
    assert judge(found, above=0) == "reproduced"


@given(VALUES)
def test_an_effect_is_a_median_within_its_interval(values):
    found = effect(values)
    assert found.median == pytest.approx(median(values))
    assert min(values) <= found.low <= found.high <= max(values)
    assert found.dialects == len(values)


@given(VALUES, st.randoms())
def test_the_order_of_dialects_hardly_matters(values, rng: random.Random):
    """Resampling moves an interval a little; the median not at all."""
    other = values.copy()
    rng.shuffle(other)
    assert effect(other).median == effect(values).median


@given(VALUES, st.floats(-2, 2))
def test_both_sides_are_judged_alike(values, limit):
    found = effect(values)
    turned = {"reproduced": "refuted", "refuted": "reproduced", "undecided": "undecided"}
    assert judge(found, below=limit) == turned[judge(found, above=limit)]


def test_an_interval_that_holds_the_limit_decides_nothing():
    assert judge(Effect(0.2, 0.1, 0.3, 10), above=0.1) == "undecided"
    assert judge(Effect(0.2, 0.1, 0.3, 10), above=0.09) == "reproduced"
    assert judge(Effect(0.2, 0.1, 0.3, 10), above=0.31) == "refuted"
    assert judge(Effect(0.0, 0.0, 0.0, 10), above=0.0) == "undecided"


@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "exponential"])
def test_intervals_hold_the_median_as_often_as_they_say(draw):
    """On ten dialects 95 % are meant; the percentile bootstrap gives some 90 to 97 %."""
    rng = np.random.default_rng(5)
    truth = np.log(2.0) if draw == "exponential" else 0.0
    held = 0
    for _ in range(300):
        found = effect(list(getattr(rng, draw)(size=10)))
        held += found.low <= truth <= found.high
    assert 0.88 <= held / 300 <= 0.985


def test_no_effect_is_seldom_called_one():
    rng = np.random.default_rng(6)
    verdicts = [judge(effect(list(rng.normal(size=10))), above=0) for _ in range(300)]
    assert verdicts.count("reproduced") / 300 <= 0.06
    assert verdicts.count("refuted") / 300 <= 0.06
