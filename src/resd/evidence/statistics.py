"""Statistics of the claims: seeds averaged within a dialect, dialects paired, medians bootstrapped.

A dialect is a task of its own, so dialects are what is drawn again; two seeds of one dialect are
no two observations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["reproduced", "refuted", "undecided"]
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Effect:
    """A median over dialects with its bootstrap interval.

    Attributes:
        dialects: how many it stands on.
    """

    median: float
    low: float
    high: float
    dialects: int


def by_dialect(values: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """The mean over the seeds of each dialect, from values by (dialect, seed)."""
    found: dict[int, list[float]] = {}
    for (dialect, _), value in sorted(values.items()):
        found.setdefault(dialect, []).append(value)
    return {dialect: sum(group) / len(group) for dialect, group in found.items()}


def differences(of: Mapping[int, float], against: Mapping[int, float]) -> list[float]:
    """What `of` has more than `against`, for every dialect that both have."""
    return [of[dialect] - against[dialect] for dialect in sorted(of.keys() & against.keys())]


def effect(values: Sequence[float], seed: int = 0) -> Effect:
    """The median of one value a dialect, and its percentile bootstrap interval at `LEVEL`.

    Args:
        values: one a dialect, at least one.
        seed: of the resampling; the same values give the same interval.
    """
    sample = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(sample), size=(RESAMPLES, len(sample)))
    medians = np.median(sample[draws], axis=1)
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(medians, [tail, 1.0 - tail])
    return Effect(float(np.median(sample)), float(low), float(high), len(sample))


def judge(found: Effect, *, above: float | None = None, below: float | None = None) -> Verdict:
    """Whether the whole interval lies on the claimed side of a limit, on the other, or on both.

    Args:
        found: the effect.
        above: the claim is that it lies above this; or
        below: below this. Exactly one is given.
    """
    limit = above if above is not None else below
    assert limit is not None
    over, under = found.low > limit, found.high < limit
    if above is None:
        over, under = under, over
    return "reproduced" if over else "refuted" if under else "undecided"
