"""Hand-off: RESD until rewards carry a signal of their own, then GRPO.

The paper suggests it and does not test it: reflection finds the first successes, rewards are
cheaper and unbiased once there are enough of them. Playbook, solutions and teacher rest after the
switch, and serve again where success is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from resd.config import HandoffConfig
from resd.distill import Aggregation
from resd.methods.base import Method, Notes, Services, StepReport, TeacherStates, Tokens
from resd.methods.grpo import Grpo
from resd.methods.resd import Resd
from resd.types import Rollout, TrainingSample


class Handoff(Method[HandoffConfig]):
    """Two methods, one of which is at work; the switch takes effect with the next step."""

    def __init__(self, config: HandoffConfig, services: Services) -> None:
        super().__init__(config, services)
        self._resd = Resd(config, services)
        self._grpo = Grpo(config.grpo, services)
        self._by_rewards = self._next_by_rewards = False
        self._steps = 0
        self._window: list[tuple[float, float]] = []

    def begin_task(self, name: str, *, first: bool) -> None:
        """A new task is reflected on, until its rewards carry a signal."""
        self._resd.begin_task(name, first=first)
        self._by_rewards = self._next_by_rewards = False
        self._steps, self._window = 0, []

    @property
    def _at_work(self) -> Resd | Grpo:
        return self._grpo if self._by_rewards else self._resd

    @property
    def rollouts(self) -> int:
        """Of the method that is at work in the step to come."""
        return self.config.grpo.rollouts if self._next_by_rewards else self.config.rollouts

    @property
    def aggregation(self) -> Aggregation:
        """Of the method at work."""
        return self._at_work.aggregation

    @property
    def updates_per_batch(self) -> int | None:
        """Of the method at work."""
        return self.config.grpo_updates if self._by_rewards else None

    def learn(self, batch: Sequence[Rollout], report: StepReport) -> Notes:
        """Let the method at work learn, and see which one is due next."""
        self._by_rewards = self._next_by_rewards
        report.metrics["handoff/by_rewards"] = float(self._by_rewards)
        notes = self._at_work.learn(batch, report)
        self._look(batch, report)
        return notes

    def _look(self, batch: Sequence[Rollout], report: StepReport) -> None:
        """Decide on the next step, by the schedule or by what was measured."""
        switch = self.config.switch
        self._steps += 1
        if switch.rule == "schedule":
            self._next_by_rewards = self._steps >= switch.after
            return
        groups: dict[str, list[bool]] = {}
        for rollout in batch:
            if rollout.outcome is not None:
                groups.setdefault(rollout.example.id, []).append(rollout.passed)
        if not groups:
            return
        passed = _mean([_mean(group) for group in groups.values()])
        spread = _mean([self._spread(group, passed) for group in groups.values()])
        self._window = [*self._window, (passed, spread)][-switch.window :]
        passed = _mean([row[0] for row in self._window])
        spread = _mean([row[1] for row in self._window])
        report.metrics |= {"handoff/passed": passed, "handoff/spread": spread}
        if len(self._window) < switch.window:
            return
        if self._by_rewards:
            turn = passed < switch.back
        else:
            turn = passed >= switch.passed and spread >= switch.spread
        if turn:
            self._next_by_rewards = not self._by_rewards
            self._window = []

    def _spread(self, group: Sequence[bool], passed: float) -> float:
        """Whether a group of GRPO's holds both outcomes; of smaller groups, the chance that it did.

        A single rollout tells nothing of its own prompt: there the batch's share of successes
        stands for it.
        """
        size = self.config.grpo.rollouts
        if len(group) >= size:
            return float(0 < sum(group) < len(group))
        chance = passed if len(group) == 1 else _mean(group)
        return 1.0 - chance**size - (1.0 - chance) ** size

    def samples(
        self, batch: Sequence[Rollout], notes: Notes, report: StepReport
    ) -> list[TrainingSample | None]:
        """Of the method at work."""
        return self._at_work.samples(batch, notes, report)

    def score(self, samples: Sequence[TrainingSample]) -> TeacherStates | None:
        """Of the method at work."""
        return self._at_work.score(samples)

    def per_token(
        self, tokens: Tokens, logits: torch.Tensor, report: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Of the method at work."""
        return self._at_work.per_token(tokens, logits, report)

    def after_update(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The teacher follows, also while it rests."""
        self._resd.after_update(weights)

    def state_dict(self) -> dict[str, Any]:
        """What RESD remembers, who is at work, and what the rule has seen."""
        return {
            "resd": self._resd.state_dict(),
            "by_rewards": self._next_by_rewards,
            "steps": self._steps,
            "window": self._window,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._resd.load_state_dict(state["resd"])
        self._by_rewards = self._next_by_rewards = bool(state["by_rewards"])
        self._steps = int(state["steps"])
        self._window = [(float(passed), float(spread)) for passed, spread in state["window"]]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The teacher's."""
        return self._resd.tensors()

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the teacher."""
        self._resd.load_tensors(tensors)

    def artifacts(self, title: str) -> dict[str, str]:
        """The playbook."""
        return self._resd.artifacts(title)

    def metrics(self, environment: Any) -> dict[str, float]:
        """Of the playbook."""
        return self._resd.metrics(environment)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
