"""GRPO: group-relative advantages and a clipped ratio, no KL term (method.md section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from resd.config import GrpoConfig
from resd.distill import Aggregation, clipped_policy_loss, group_advantages
from resd.methods.base import MicroBatch, Services, StepReport
from resd.types import Rollout, TrainingSample


class Grpo:
    """Learns from rewards alone; a group without spread teaches nothing."""

    def __init__(self, config: GrpoConfig, services: Services) -> None:
        self.config = config
        self.rollouts = config.rollouts
        self.aggregation: Aggregation = config.aggregation
        self.services = services

    def learn(self, batch: Sequence[Rollout], report: StepReport) -> None:
        """Remember nothing."""

    def samples(self, batch: Sequence[Rollout], report: StepReport) -> list[TrainingSample | None]:
        """One sample for each rollout of a group whose rewards differ."""
        samples: list[TrainingSample | None] = [None] * len(batch)
        for group in _groups(batch):
            rewards = torch.tensor([_reward(batch[i]) for i in group])
            advantages = group_advantages(rewards, len(group), scale=self.config.scale_rewards)
            for i, advantage in zip(group, advantages.tolist(), strict=True):
                rollout = batch[i]
                if advantage != 0.0 and rollout.completion.token_ids:
                    samples[i] = TrainingSample(
                        rollout.prompt_ids, rollout.completion.token_ids, advantage=advantage
                    )
        report.counts["nothing_to_say"] += sum(sample is None for sample in samples)
        return samples

    def token_loss(self, micro: MicroBatch, logits: torch.Tensor) -> torch.Tensor:
        """The clipped surrogate of every token."""
        advantages = torch.tensor([s.advantage for s in micro.samples], device=logits.device)
        return clipped_policy_loss(
            micro.log_probs,
            micro.old_log_probs,
            advantages,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
        )

    def after_update(self, student: torch.nn.Module) -> None:
        """No teacher."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """No weights besides the student's."""
        return {}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing to restore."""


def _groups(batch: Sequence[Rollout]) -> list[list[int]]:
    """Indices by example, without the rollouts on which the environment failed."""
    groups: dict[str, list[int]] = {}
    for i, rollout in enumerate(batch):
        if rollout.outcome is not None:
            groups.setdefault(rollout.example.id, []).append(i)
    return list(groups.values())


def _reward(rollout: Rollout) -> float:
    assert rollout.outcome is not None
    return rollout.outcome.reward
