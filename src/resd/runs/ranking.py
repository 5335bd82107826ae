"""Choosing the best step: rank every evaluation on the four validation metrics, sum the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

METRICS = ("mean", "best", "case_mean", "case_best")


def rank_sums(evaluations: Sequence[Mapping[str, float]]) -> list[int]:
    """Sum of the ranks of each evaluation over the four metrics; lower is better.

    Rank 1 is the highest value; equal values share the best rank they span.
    """
    sums = [0] * len(evaluations)
    for metric in METRICS:
        values = [evaluation[metric] for evaluation in evaluations]
        for i, value in enumerate(values):
            sums[i] += 1 + sum(other > value for other in values)
    return sums


def best_indices(evaluations: Sequence[Mapping[str, float]], keep: int) -> list[int]:
    """Indices of the `keep` best rank sums, best first; the earliest of equals first."""
    sums = rank_sums(evaluations)
    return sorted(range(len(sums)), key=lambda i: (sums[i], i))[:keep]
