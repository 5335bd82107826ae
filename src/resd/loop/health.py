"""Health: the ways in which such runs die, seen in the metrics that a run writes anyway.

Each signal reads means over a window of steps (`health.window`), so that no odd step shouts, and
says its line once; again only after it was gone for two windows. Numbers that are means over all
tokens of a step, or of the first update alone, are judged at once. docs/health.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from resd.config import HealthConfig
from resd.loop.evaluate import Evaluation

Means = Mapping[str, float]
# Of these the monitor remembers the last steps; a count that is missing was zero.
_KEYS = (
    "rollout/passed",
    "rollout/reward",
    "rollout/length",
    "rollout/truncated",
    "rollout/unfinished_thinking",
    "rollout/names_hints",
    "train/taught",
    "train/entropy",
    "rejected/reflection",
    "rejected/curation",
    "playbook/entries",
    "playbook/gone",
)
_SKIPPED = "count/skipped_not_finite"
# How far reward and test accuracy have come apart since the best evaluation.
_APART = "apart"
# From so many passed rollouts on there is little left to teach, reflect on or be unsure of.
_SOLVED = 0.9


@dataclass(frozen=True)
class Signal:
    """One way to die.

    Attributes:
        limit: a value above it is bad.
        text: what is wrong; takes `value`.
        remedy: what to set.
        value: from means now, and over the first window of the task; a KeyError says nothing.
        at_once: judged on every step that has the number, not over a window.
        evaluated: judged at evaluations, by the monitor itself.
    """

    limit: float
    text: str
    remedy: str
    value: Callable[[Means, Means], float] = lambda now, first: 0.0
    at_once: bool = False
    evaluated: bool = False


def _unsolved(now: Means, value: float) -> float:
    return value if now["rollout/passed"] <= _SOLVED else 0.0


def _factor(ratio: float) -> float:
    """How many times too large or too small."""
    return max(ratio, 1.0 / ratio) if ratio > 0 else math.inf


SIGNALS: dict[str, Signal] = {
    # Of 32 responses fewer than two teach: the step is as noisy as a batch of one.
    "nothing_taught": Signal(
        0.95,
        "{value:.0%} of the responses teach nothing",
        "with grpo raise method.rollouts, or start with --method.name handoff; else let evaluate() "
        "say in its feedback what went wrong, or raise method.max_teacher_tokens (count/* in "
        "metrics.jsonl has the reasons)",
        lambda now, first: _unsolved(now, 1.0 - now["train/taught"]),
    ),
    # Most of what is graded and taught is a fragment.
    "truncated": Signal(
        0.5,
        "{value:.0%} of the responses are cut off at the length limit",
        "raise rollout.max_new_tokens; if they should be short, the model's end token may be wrong",
        # A thought that was never closed is a signal of its own.
        lambda now, first: now["rollout/truncated"] - now["rollout/unfinished_thinking"],
    ),
    # Most responses hold no answer, and count as failed whatever the model knows.
    "unfinished_thinking": Signal(
        0.5,
        "{value:.0%} of the responses end inside their thinking",
        "raise rollout.max_new_tokens, or set rollout.thinking false",
        lambda now, first: now["rollout/unfinished_thinking"],
    ),
    # More is thrown away than kept: the teacher's context is written by chance.
    "reflections": Signal(
        0.5,
        "{value:.0%} of the reflections cannot be used",
        "set method.retry_unparsed true, raise method.reflection_tokens, lower "
        "method.reflection_temperature, or let a frozen teacher write (method.reflector teacher, "
        "method.teacher.kind frozen)",
        lambda now, first: now["rejected/reflection"],
    ),
    "curations": Signal(
        0.5,
        "{value:.0%} of the curations cannot be used",
        "set method.retry_unparsed true, raise method.curation_tokens, lower "
        "method.reflection_temperature, or set method.playbook.operations add",
        lambda now, first: now["rejected/curation"],
    ),
    # Not one lesson a step on average: the method is SDPO with a detour.
    "playbook_empty": Signal(
        0.0,
        "the playbook is empty while rollouts fail",
        "set method.playbook.admission immediate, or lower method.playbook.confirmations; see the "
        "rejected texts in resd report",
        lambda now, first: _unsolved(now, 1.0 - now["playbook/entries"]),
    ),
    # A lesson lives five steps: it is gone before a second batch of the paper's four inner
    # iterations could confirm it. Of fewer than five lessons one that goes is no churn.
    "playbook_churn": Signal(
        0.2,
        "{value:.0%} of the playbook goes at every step",
        "raise method.playbook.max_entries and max_tokens, lower "
        "method.playbook.max_changes_per_update, or set method.playbook.operations add",
        lambda now, first: now["playbook/gone"] / max(5.0, now["playbook/entries"]),
    ),
    # Entropy falls in every run that learns: to 2 % of its start on the lab, with 94 % passed. It
    # is a collapse where most still fails: all samples of a prompt are the same wrong answer.
    "entropy": Signal(
        0.9,
        "the student's entropy has lost {value:.0%} of its start while most rollouts fail",
        "lower train.lr or train.updates_per_batch, raise rollout.temperature, or set method.alpha "
        "0; resume from an earlier checkpoint if there is one",
        lambda now, first: (
            1.0 - now["train/entropy"] / first["train/entropy"]
            if now["rollout/passed"] < 0.5
            else 0.0
        ),
    ),
    # A new form of answer changes the length by less than that on the tasks of this project (the
    # lab by a tenth); growth comes before truncation, and thinking that wastes away is a known
    # death of self-distillation (2607.05184).
    "length": Signal(
        3.0,
        "the length of the responses has changed by a factor of {value:.1f} since the start",
        "read responses in resd report; lower train.lr, set method.anchors.weight above 0, or "
        "tell the length in the task's prompt",
        lambda now, first: _factor(now["rollout/length"] / first["rollout/length"]),
    ),
    # The limit is the rounding of the trainer's dtype: `Monitor` is told it.
    "ratio": Signal(
        0.01,
        "before an update the log-probs of trainer and sampler differ by {value:.3f} a token: they "
        "do not hold the same policy",
        "look for dropout, a sampler that was not given the weights, or another precision "
        "(model.compute_dtype)",
        lambda now, first: now["train/sampler_gap"],
        at_once=True,
    ),
    # One update that is skipped happens; two of eight are a run that learns from what is left.
    "not_finite": Signal(
        0.2,
        "{value:.0%} of the steps had an update that was skipped: its loss or gradient was not "
        "finite",
        "lower train.lr, set method.ratio_max, or compute in model.compute_dtype float32",
        lambda now, first: now[_SKIPPED],
    ),
    # AdamW's first step has a known size; half or twice of it is no rounding of single weights.
    "weights": Signal(
        2.0,
        "the first update moved the weights by {value:.3g} times too little or too much for "
        "train.lr: they are too coarse for it",
        "keep them in float32 (model.dtype), and compute in bfloat16 with model.compute_dtype",
        lambda now, first: _factor(now["train/moved"]),
        at_once=True,
    ),
    # A teacher's token that the loss does not look at cannot be taught. Said at once: two updates
    # were enough to ruin a student (method.md, section 2).
    "outside": Signal(
        0.1,
        "{value:.0%} of the teacher's probability lies outside the tokens that the loss looks at, "
        "and cannot be taught",
        "set method.support to both or full, or raise method.top_k",
        lambda now, first: now["train/teacher_outside"],
        at_once=True,
    ),
    # The student sees no hint: what names one was taught. One response in twenty is no slip.
    "leak": Signal(
        0.05,
        '{value:.0%} of the responses name hints that only the teacher sees ("the playbook says")',
        "resume from an earlier checkpoint; let a teacher template of your own (templates) forbid "
        "it, lower train.lr, or set method.use_trial and method.use_reflection false",
        lambda now, first: now["rollout/names_hints"],
    ),
    # Answers are greedy: nothing is chance but the choice of problems. Without anchors the lab's
    # student loses all of it (docs/anchors.md).
    "retention": Signal(
        0.1,
        "the student has lost {value:.0%} of what it is to keep, on average over its groups",
        "set method.anchors.weight above 0, or lower train.lr (docs/anchors.md)",
        evaluated=True,
    ),
    # The mean of a window of 128 rollouts has a standard error of 0.044 at most; both would have to
    # be off by more than two of them, in opposite directions.
    "reward": Signal(
        0.1,
        "reward has risen while exact grading has fallen, each by at least {value:.2f}",
        "let evaluate() pay for passing alone (resd report shows what was paid for); if only the "
        "test problems fall, take the best evaluation (best/)",
        lambda now, first: max(
            now[_APART],
            min(
                now["rollout/reward"] - first["rollout/reward"],
                first["rollout/passed"] - now["rollout/passed"],
            ),
        ),
    ),
}


class Monitor:
    """Judges every step and evaluation of a run.

    Args:
        config: windows, limits, actions.
        state: of the run's checkpoint, plain JSON that the monitor changes in place.
        warn: told the line of a signal.
        gap: limit of the signal `ratio`: what rounding may do to a log-prob.

    Attributes:
        stops: signals that want the run to end, since it was started or resumed.
    """

    def __init__(
        self, config: HealthConfig, state: dict[str, Any], warn: Callable[[str], None], gap: float
    ) -> None:
        self._config, self._warn = config, warn
        limits = {name: signal.limit for name, signal in SIGNALS.items()}
        self._limits = limits | {"ratio": gap} | config.limits
        self._state = state
        state |= {"kept": {}} | state
        if "rows" not in state:
            self.begin_task()
        self.stops: list[str] = []

    def begin_task(self) -> None:
        """Another task has another start; what is to be kept stays."""
        self._state |= {"rows": [], "first": {}, "told": {}, "best": {}, _APART: 0.0}

    def stepped(self, row: Mapping[str, Any]) -> None:
        """Judge a step by its row."""
        step = int(row["step"])
        kept = {key: float(row[key]) for key in _KEYS if key in row}
        kept[_SKIPPED] = float(row.get(_SKIPPED, 0) > 0)
        rows = self._state["rows"]
        rows.append(kept)
        del rows[: -self._config.window]
        full = len(rows) == self._config.window
        now = self._means()
        if full:
            # The start of a number is its first full window, whenever it comes.
            self._state["first"] = {**now, **self._state["first"]}
        for name, signal in SIGNALS.items():
            if signal.evaluated or not (full or signal.at_once):
                continue
            try:
                value = signal.value(row if signal.at_once else now, self._state["first"])
            except (KeyError, ZeroDivisionError):
                continue
            since = step if signal.at_once else step - len(rows) + 1
            self._judge(name, value, since, step)

    def evaluated(self, step: int, result: Evaluation) -> None:
        """Judge an evaluation: what is kept, and whether the reward still means anything."""
        kept, best = self._state["kept"], self._state["best"]
        for name, value in result.retention.items():
            kept.setdefault(name, value)
        if result.retention:
            lost = [kept[name] - value for name, value in result.retention.items()]
            self._judge("retention", sum(lost) / len(lost), step, step)
        reward = self._means().get("rollout/reward")
        if reward is None:
            return
        if not best or result.mean >= best["mean"]:
            best |= {"mean": result.mean, "reward": reward}
        apart = min(reward - best["reward"], best["mean"] - result.mean)
        self._state[_APART] = apart
        if apart > self._limits["reward"]:  # else the steps have a say too
            self._judge("reward", apart, step, step)

    def _means(self) -> dict[str, float]:
        """Means of the numbers that at least half of the remembered steps have."""
        rows: list[dict[str, float]] = self._state["rows"]
        found = {}
        for key in (*_KEYS, _SKIPPED):
            values = [row[key] for row in rows if key in row]
            if values and 2 * len(values) >= len(rows):
                found[key] = sum(values) / len(values)
        return {**found, _APART: self._state[_APART]}

    def _judge(self, name: str, value: float, since: int, step: int) -> None:
        """Say a signal's line if it is new; `told` counts steps since it was last seen."""
        told, action, signal = self._state["told"], self._config.action_of(name), SIGNALS[name]
        if value <= self._limits[name]:
            if name in told:
                told[name] += 1
                # One good step makes a whole window of means good.
                if told[name] >= (1 if signal.evaluated else 2 * self._config.window):
                    del told[name]
            return
        new = name not in told
        told[name] = 0
        if not new or action == "off":
            return
        when = f"step {step}" if since == step else f"steps {since} to {step}"
        ends = "; the run ends with the checkpoint of this step" if action == "stop" else ""
        what = signal.text.format(value=value)
        self._warn(f"{what} ({when}): {signal.remedy} [health.{name}]{ends}")
        if action == "stop":
            self.stops.append(name)
