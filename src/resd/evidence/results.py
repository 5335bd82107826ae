"""What the runs of an experiment say about its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

from resd.compare.plan import State
from resd.errors import UserError
from resd.evidence.made import Made, read_made
from resd.evidence.measure import Measured, measure
from resd.evidence.plan import Planned
from resd.evidence.registry import At, Claim, Experiment
from resd.evidence.statistics import Effect, by_dialect, differences, effect, judge


@dataclass(frozen=True)
class Result:
    """An experiment, with the runs of it that are finished.

    Attributes:
        wanted: how many runs it takes.
        runs: by label, and by (dialect, seed).
        made: how each run was made, by run name.
        failures: why runs have no result, by run name.
        quick: they are a few steps on few dialects, and decide nothing.
    """

    name: str
    experiment: Experiment
    wanted: int
    runs: Mapping[str, Mapping[tuple[int, int], Measured]]
    made: Mapping[str, Made]
    failures: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False

    @property
    def complete(self) -> int:
        """How many runs are finished."""
        return sum(len(group) for group in self.runs.values())

    def values(self, label: str, metric: str, at: str | At = "last") -> dict[int, float]:
        """A metric of a variant by dialect, over the runs that hold it."""
        found = {}
        for place, run in self.runs.get(label, {}).items():
            try:
                found[place] = run.at(metric, at)
            except UserError:
                continue
        return by_dialect(found)

    def median(self, label: str, metric: str, at: str | At = "last") -> float | None:
        """The median over dialects; None where no run holds the metric."""
        values = self.values(label, metric, at)
        return median(values.values()) if values else None


@dataclass(frozen=True)
class Judged:
    """A claim with what was found.

    Attributes:
        verdict: reproduced, refuted, undecided; `unfinished` while runs are missing, `no result` if
            none holds what the claim looks at, `quick` where runs decide nothing.
        values: by dialect: the differences, or the values where nothing is compared.
    """

    claim: Claim
    verdict: str
    effect: Effect | None
    values: Mapping[int, float]


def judge_claim(result: Result, claim: Claim) -> Judged:
    """The verdict on a claim; one is given only when every registered run is there."""
    of = result.values(claim.of, claim.metric, claim.at)
    if claim.against is not None:
        against = result.values(claim.against, claim.metric, claim.at)
        shared = sorted(of.keys() & against.keys())
        values = dict(zip(shared, differences(of, against), strict=True))
    else:
        values = of
    if not values:
        nothing = "no result" if result.complete else "not run"
        return Judged(claim, nothing, None, {})
    found = effect(list(values.values()))
    verdict = judge(found, above=claim.above, below=claim.below)
    dialects = {dialect for dialect, _ in _all_places(result)}
    if result.complete < result.wanted or dialects - values.keys():
        return Judged(claim, "unfinished", found, values)
    return Judged(claim, "quick" if result.quick else verdict, found, values)


def gather(
    picked: Mapping[str, Experiment],
    plans: Mapping[str, Sequence[Planned]],
    failures: Mapping[str, str],
    output: Path,
    quick: bool = False,
) -> list[Result]:
    """Read what is finished of some experiments."""
    results = []
    for name, experiment in picked.items():
        runs: dict[str, dict[tuple[int, int], Measured]] = {
            variant.label: {} for variant in experiment.variants
        }
        made, failed = {}, {}
        for item in plans[name]:
            if item.run.name in failures:
                failed[item.run.name] = failures[item.run.name]
            elif item.run.state() is State.FINISHED:
                try:
                    runs[item.label][item.dialect, item.seed] = _measured(item.run.path)
                    made[item.run.name] = read_made(output / "made", item.run.name)
                except UserError as error:
                    failed[item.run.name] = str(error)
        wanted = len(plans[name]) or experiment.runs
        results.append(Result(name, experiment, wanted, runs, made, failed, quick))
    return results


def _all_places(result: Result) -> set[tuple[int, int]]:
    return {place for group in result.runs.values() for place in group}


@cache
def _measured(run: Path) -> Measured:
    """A finished run does not change."""
    return measure(run)
