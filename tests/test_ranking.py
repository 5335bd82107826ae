"""The rank rule by hand-made examples: rank on four metrics, sum the ranks, take the best sum."""

from __future__ import annotations

from resd.runs.ranking import best_indices, rank_sums


def evaluation(mean: float, best: float, case_mean: float, case_best: float) -> dict[str, float]:
    return {"mean": mean, "best": best, "case_mean": case_mean, "case_best": case_best}


def best(rows: list[dict[str, float]]) -> int:
    return best_indices(rows, 1)[0]


def test_the_best_on_most_metrics_wins() -> None:
    rows = [
        evaluation(0.10, 0.90, 0.10, 0.10),  # ranks 3, 1, 3, 3
        evaluation(0.30, 0.20, 0.30, 0.30),  # ranks 1, 3, 1, 1
        evaluation(0.20, 0.30, 0.20, 0.20),  # ranks 2, 2, 2, 2
    ]
    assert rank_sums(rows) == [10, 6, 8]
    assert best(rows) == 1


def test_ranks_count_not_sizes() -> None:
    """A huge lead on one metric is worth no more than a small one."""
    rows = [evaluation(1.0, 0.1, 0.1, 0.1), evaluation(0.1, 0.11, 0.11, 0.11)]
    assert best(rows) == 1


def test_equal_values_share_the_best_rank_they_span() -> None:
    rows = [
        evaluation(0.5, 0.0, 0.0, 0.0),
        evaluation(0.5, 0.0, 0.0, 0.0),
        evaluation(0.1, 0.0, 0.0, 0.0),
    ]
    assert rank_sums(rows) == [4, 4, 6]


def test_the_earliest_of_equals_wins() -> None:
    rows = [evaluation(0.1, 0.1, 0.1, 0.1), evaluation(0.5, 0.5, 0.5, 0.5)]
    assert best([*rows, rows[1]]) == 1


def test_the_best_few_come_best_first() -> None:
    rows = [evaluation(x, x, x, x) for x in (0.2, 0.4, 0.1, 0.3)]
    assert best_indices(rows, 3) == [1, 3, 0]
    assert best_indices(rows, 9) == [1, 3, 0, 2]


def test_a_single_evaluation_is_the_best() -> None:
    assert best([evaluation(0, 0, 0, 0)]) == 0
