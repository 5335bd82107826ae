"""What runs have come to: curves of one run, and the summary of a variant over its seeds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from resd.compare.plan import Run
from resd.compare.variants import Variant
from resd.errors import UserError
from resd.runs.rows import read_metrics

THRESHOLD = 0.5
_MEAN = re.compile(r"eval/mean@(\d+)")


@dataclass(frozen=True)
class Point:
    """One evaluation; the metrics are those of `resd.evaluation.Evaluation`."""

    step: int
    rollouts: float
    mean: float
    best: float
    case_mean: float
    case_best: float


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        samples: n of mean@n.
        curve: its evaluations, in order; at least one.
        precision, recall: of the playbook after the last step, in worlds that know the truth; None
            where there is no playbook, or an empty one.
        seconds: of training steps, without evaluation and loading.
        baselines: fraction of the problems that trivial strategies solve, by name.
        retention: fraction passed of what was to be kept, by group, at the last evaluation.
    """

    seed: int
    path: Path
    samples: int
    curve: tuple[Point, ...]
    rollouts: int
    seconds: float
    precision: float | None = None
    recall: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    retention: Mapping[str, float] = field(default_factory=dict)

    @property
    def final(self) -> Point:
        """The last evaluation."""
        return self.curve[-1]


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds.

    Attributes:
        failures: why runs have no result, by seed.
    """

    variant: Variant
    task: str
    model: str
    results: tuple[RunResult, ...]
    failures: Mapping[int, str]

    @property
    def finals(self) -> list[float]:
        """Final mean@n, a value a seed."""
        return [result.final.mean for result in self.results]

    @property
    def samples(self) -> set[int]:
        """Every n of mean@n; one, unless variants set it differently."""
        return {result.samples for result in self.results}

    @property
    def median_curve(self) -> list[Point]:
        """Medians over seeds, at the steps that every seed evaluated."""
        by_step = [{point.step: point for point in result.curve} for result in self.results]
        steps = set(by_step[0]).intersection(*by_step[1:]) if by_step else set()
        return [_median([points[step] for points in by_step]) for step in sorted(steps)]

    @property
    def rollouts_to_threshold(self) -> float | None:
        """Rollouts at which the median mean@n first reaches one half; None if it never does."""
        reached = (p.rollouts for p in self.median_curve if p.mean >= THRESHOLD)
        return next(reached, None)

    def median_of(self, name: str) -> float | None:
        """The median over seeds of an attribute; None where no seed has a value."""
        values = [getattr(result, name) for result in self.results]
        present = [value for value in values if value is not None]
        return median(present) if present else None

    def median_final(self, name: str) -> float | None:
        """The median over seeds of a metric of the last evaluation; None without a result."""
        values = [getattr(result.final, name) for result in self.results]
        return median(values) if values else None


def read_result(path: Path, seed: int) -> RunResult:
    """Read a finished run.

    Raises:
        UserError: it is not complete, or its files make no sense.
    """
    try:
        done = json.loads((path / "done.json").read_text(encoding="utf-8"))
        rollouts, counts = int(done["rollouts"]), dict(done.get("counts", {}))
    except FileNotFoundError:
        raise UserError(f"{path} is not complete") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'done.json'} cannot be read: {error!r}") from None
    rows = read_metrics(path)
    points = {point.step: point for point in map(_point, rows) if point is not None}
    if not points:
        raise UserError(f"{path / 'metrics.jsonl'} holds no evaluation")
    seconds = sum(value for row in rows if (value := _number(row, "time/step_s")) is not None)
    return RunResult(
        seed=seed,
        path=path,
        samples=max(_samples(row) or 0 for row in rows),
        curve=tuple(points[step] for step in sorted(points)),
        rollouts=rollouts,
        seconds=seconds,
        precision=_after_last_step(rows, "playbook/precision"),
        recall=_after_last_step(rows, "playbook/recall"),
        counts=counts,
        baselines={k: v for row in rows for k, v in _named(row, "baseline/").items()},
        retention={k: v for row in rows for k, v in _named(row, "eval/retention/").items()},
    )


def summarise(runs: Sequence[Run], failures: Mapping[str, str]) -> list[Summary]:
    """A summary of each variant, in the order of their first runs.

    Args:
        runs: all runs of the comparison.
        failures: why runs have no result, by run name.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.variant.label, []).append(run)
    summaries = []
    for group in grouped.values():
        failed = {run.seed: failures[run.name] for run in group if run.name in failures}
        done = [run for run in group if run.seed not in failed]
        summaries.append(
            Summary(
                variant=group[0].variant,
                task=group[0].config.task,
                model=group[0].config.model.path,
                results=tuple(read_result(run.path, run.seed) for run in done),
                failures=failed,
            )
        )
    return summaries


def newest(path: Path, most: int = 32768) -> tuple[int, float | None]:
    """Step and newest mean@n of a run that is going on, from the end of its metrics."""
    try:
        with (path / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return 0, None
    step, mean = 0, None
    for line in lines:
        try:
            row = json.loads(line)
            step = max(step, int(row["step"]))
            point = _point(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        mean = point.mean if point is not None else mean
    return step, mean


def _median(points: Sequence[Point]) -> Point:
    return Point(
        step=points[0].step,
        rollouts=median(point.rollouts for point in points),
        mean=median(point.mean for point in points),
        best=median(point.best for point in points),
        case_mean=median(point.case_mean for point in points),
        case_best=median(point.case_best for point in points),
    )


def _point(row: Mapping[str, Any]) -> Point | None:
    """The evaluation that a row of metrics.jsonl holds, if any."""
    n = _samples(row)
    names = ("mean", "best", "case_mean", "case_best")
    values = [_number(row, f"eval/{name}@{n}") for name in names]
    rollouts = _number(row, "rollouts")
    mean, best, case_mean, case_best = values
    if rollouts is None or mean is None or best is None or case_mean is None or case_best is None:
        return None
    return Point(row["step"], rollouts, mean, best, case_mean, case_best)


def _named(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    values = {name: _number(row, name) for name in row if name.startswith(prefix)}
    return {k.removeprefix(prefix): v for k, v in values.items() if v is not None}


def _samples(row: Mapping[str, Any]) -> int | None:
    found = (match for match in map(_MEAN.fullmatch, row) if match)
    return next((int(match[1]) for match in found), None)


def _after_last_step(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """A score of the playbook after the last step; none if there is nothing to score in it."""
    scored = [row for row in rows if name in row]
    if not scored or not scored[-1].get("playbook/entries", 1):
        return None
    return _number(scored[-1], name)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    usable = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if usable else None  # type: ignore[arg-type]
