"""What a run came to: values and curves from its metrics.jsonl, on any axis."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from resd.errors import UserError
from resd.evidence.registry import OWN, At
from resd.evidence.tokens import loss_by_word
from resd.loop.clock import PHASES
from resd.runs.rows import is_step, read_metrics
from resd.runs.traces import trace_files

# A skill that the base has not is none that a student could lose.
LEAST_AT_BASE = 0.5
_NOT_TRAINING = ("time/evaluate_s", "time/save_s")


@dataclass(frozen=True)
class Measured:
    """A finished run.

    Attributes:
        steps: rows of training steps, each with the axes up to its end.
        evaluations: rows of evaluations, each with the axes up to then.
        by_word: the loss by word, of a run with traces (`resd.evidence.tokens`).
    """

    steps: Sequence[Mapping[str, float]]
    evaluations: Sequence[Mapping[str, float]]
    by_word: Sequence[Mapping[str, Any]] = ()

    def at(self, metric: str, at: str | At) -> float:
        """A metric at a point of the run; `best` is its greatest value.

        Between two evaluations it is interpolated, after the last it stays.

        Raises:
            UserError: the run does not hold it.
        """
        if metric in OWN:
            own: dict[str, Callable[[], float]] = {
                "kept": self._kept,
                "learnt": self._learnt,
                "held": self._held,
                "wrong_share": self._wrong_share,
                "writing_share": lambda: self._time_share("reflect", "curate"),
                "anchor_share": lambda: self._time_share("anchors"),
            }
            return own[metric]() if metric in own else float(self.steps[-1][metric])
        axis, limit = "step", None
        if isinstance(at, At):
            ((axis, limit),) = at.axis_and_limit().items()
        curve = self.curve(axis, metric)
        if not curve:
            raise UserError(f"there is no {metric}")
        places, values = [x for x, _ in curve], [y for _, y in curve]
        if limit is not None:
            return float(np.interp([limit], places, values)[0])
        if at == "best":
            return max(values)
        return fmean(values[1:] or values) if at == "mean" else values[-1]

    def curve(self, x: str, y: str) -> list[tuple[float, float]]:
        """A metric over an axis (step, rollouts, tokens, seconds), where both are known."""
        name = y if "/" in y else f"eval/{y}"
        rows = [*self.evaluations] if name.startswith("eval/") else [*self.steps]
        return [(float(row[x]), float(row[name])) for row in rows if x in row and name in row]

    def phases(self) -> dict[str, float]:
        """Mean seconds of a step by phase, without saving, evaluation, and the first step."""
        found = {}
        for phase in PHASES:
            name = f"time/{phase}_s"
            values = [float(row.get(name, 0.0)) for row in self.steps[1:] or self.steps]
            if name not in _NOT_TRAINING and any(values):
                found[phase] = fmean(values)
        return found

    def _kept(self) -> float:
        """The least fraction, over the skills that the base has, that is left of one at the end."""
        first, last = self.evaluations[0], self.evaluations[-1]
        shares = [
            float(last[name]) / float(value)
            for name, value in first.items()
            if name.startswith("eval/retention/") and value >= LEAST_AT_BASE and name in last
        ]
        if not shares:
            raise UserError("its retention was not measured")
        return min(shares)

    def _learnt(self) -> float:
        """Of a stream: the least that a task had at the end of its own training."""
        ends = []
        for before, after in zip(self.evaluations, [*self.evaluations[1:], None], strict=True):
            tasks = _tasks(before)
            if tasks and (after is None or len(_tasks(after)) > len(tasks)):
                ends.append(list(tasks.values())[-1])
        if not ends:
            raise UserError("it is no stream")
        return min(ends)

    def _held(self) -> float:
        """Of a stream: the least that a task has at the end of the run."""
        tasks = _tasks(self.evaluations[-1])
        if not tasks:
            raise UserError("it is no stream")
        return min(tasks.values())

    def _time_share(self, *phases: str) -> float:
        """Share of the time of a step that these phases take."""
        found = self.phases()
        return sum(found.get(phase, 0.0) for phase in phases) / sum(found.values())

    def _wrong_share(self) -> float:
        """How much more of the loss falls on wrong tokens than their share of the tokens.

        0 if the loss knows no difference, near 1 if it falls on few wrong tokens alone.
        """
        rows = self.by_word
        loss, tokens = (sum(float(row[key]) for row in rows) for key in ("loss", "tokens"))
        wrong = [row for row in rows if row["wrong"]]
        if not rows or not loss or not tokens:
            raise UserError("the loss of its tokens was not measured")
        bad_loss, bad = (sum(float(row[key]) for row in wrong) for key in ("loss", "tokens"))
        return bad_loss / loss - bad / tokens


def measure(run: Path) -> Measured:
    """Read a finished run.

    Raises:
        UserError: it holds no step, or no evaluation.
    """
    anchors = _anchor_tokens(run / "anchors.json")
    tokens, seconds = float(anchors), 0.0
    steps: list[dict[str, float]] = []
    evaluations: list[dict[str, float]] = []
    for row in read_metrics(run):
        if is_step(row):
            tokens += sum(v for k, v in row.items() if k.startswith("tokens/"))
            seconds += row.get("time/step_s", 0.0) - sum(row.get(k, 0.0) for k in _NOT_TRAINING)
        axes = {"tokens": tokens, "seconds": seconds}
        if is_step(row):
            steps.append({**row, **axes})
        elif any(key.startswith("eval/mean@") for key in row):
            # mean@4 is `mean` here, whatever n is.
            plain = {k.partition("@")[0]: v for k, v in row.items()}
            evaluations.append({**plain, **axes})
    if not steps or not evaluations:
        raise UserError(f"{run} holds no step, or no evaluation")
    return Measured(steps, evaluations, loss_by_word(run) if trace_files(run) else ())


def _tasks(evaluation: Mapping[str, float]) -> dict[str, float]:
    """Accuracy by task of a stream, in the order in which they were trained."""
    names = [name for name in evaluation if name.startswith("eval/tasks/")]
    return {name: float(evaluation[name]) for name in names if name.endswith("/mean")}


def _anchor_tokens(file: Path) -> int:
    """The tokens that the initial model generated for the anchors."""
    if not file.is_file():
        return 0
    answers = json.loads(file.read_text(encoding="utf-8"))
    return sum(len(answer) for _, answer in answers["answers"])
