"""What a run writes of itself: rows of metrics, traces, and what its method wants looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resd.loop.clock import Clock
from resd.methods.base import StepReport
from resd.runs import RunDirectory
from resd.runs.atomic import StorageError
from resd.types import Rollout


class Recorder:
    """Writes rows and traces of a run.

    Args:
        run: the directory, open for writing.
        traces: whether rollouts, reflections and teacher prompts are kept.
        warn: told, once, that traces cannot be written: they never end a run.
    """

    def __init__(self, run: RunDirectory, *, traces: bool, warn: Callable[[str], None]) -> None:
        self.run = run
        self._keeps_traces = traces
        self._warn = warn
        self._traces: list[dict[str, Any]] = []

    def trace(self, kind: str, example: str, **record: Any) -> None:
        """Keep a record for the traces of the step."""
        if self._keeps_traces:
            self._traces.append({"kind": kind, "example": example, **record})

    def step(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        row: Mapping[str, Any],
        artifacts: Mapping[str, str],
    ) -> None:
        """Write a step's row, traces and artifacts."""
        self.run.log(row)
        for rollout in rollouts:
            outcome = rollout.outcome
            self.trace(
                "rollout",
                rollout.example.id,
                response=rollout.completion.text,
                passed=rollout.passed,
                feedback=outcome.feedback if outcome else None,
            )
        if self._keeps_traces:
            try:
                self.run.trace(step, self._traces)
            except (StorageError, ValueError, TypeError) as error:
                self._keeps_traces = False
                self._warn(f"no more traces from step {step} on: {error}")
        self._traces = []
        self.run.save_artifacts(artifacts)


def step_row(
    step: int,
    total_rollouts: int,
    rollouts: Sequence[Rollout],
    report: StepReport,
    clock: Clock,
    written: Mapping[str, int],
) -> dict[str, Any]:
    """The metrics of a step, for metrics.jsonl; `written`: tokens generated beside rollouts."""
    outcomes = [r.outcome for r in rollouts if r.outcome is not None]
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    cut = sum(rollout.completion.finish_reason == "length" for rollout in rollouts)
    unanswered = sum(rollout.completion.answer is None for rollout in rollouts)
    n, responses = max(1, len(outcomes)), max(1, len(rollouts))
    seconds = clock.take()
    return {
        "step": step,
        "rollouts": total_rollouts,
        "rollout/reward": sum(o.reward for o in outcomes) / n,
        "rollout/passed": sum(o.passed for o in outcomes) / n,
        "rollout/cases": sum(o.case_fraction for o in outcomes) / n,
        "rollout/length": sum(lengths) / responses,
        "rollout/truncated": cut / responses,
        "rollout/unfinished_thinking": unanswered / responses,
        "tokens/rollout": sum(lengths),
        **{f"tokens/{purpose}": number for purpose, number in written.items()},
        **_mean_metrics([o.metrics for o in outcomes]),
        **report.metrics,
        **{f"count/{key}": value for key, value in sorted(report.counts.items()) if value},
        "time/step_s": round(sum(seconds.values()), 4),
        **{f"time/{name}_s": round(value, 4) for name, value in seconds.items()},
    }


def _mean_metrics(rows: Sequence[Any]) -> dict[str, float]:
    """The environment's own metrics, averaged over the outcomes that have them."""
    names = sorted({name for row in rows for name in row})
    return {
        f"env/{name}": sum(float(row[name]) for row in rows if name in row)
        / sum(name in row for row in rows)
        for name in names
    }
