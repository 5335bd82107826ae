"""GRPO: group-relative advantages and a clipped ratio, no KL term (method.md section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resd.config import GrpoConfig
from resd.distill import clipped_policy_loss, group_advantages
from resd.methods.base import Method, Notes, StepReport, Tokens
from resd.types import Rollout, TrainingSample


class Grpo(Method[GrpoConfig]):
    """Learns from rewards alone; a group without spread teaches nothing."""

    config_class = GrpoConfig

    def samples(
        self, batch: Sequence[Rollout], notes: Notes, report: StepReport
    ) -> list[TrainingSample | None]:
        """One sample for each rollout of a group whose rewards differ."""
        samples: list[TrainingSample | None] = [None] * len(batch)
        for group in _groups(batch):
            rewards = torch.tensor([_reward(batch[i]) for i in group])
            advantages = group_advantages(rewards, len(group), scale=self.config.scale_rewards)
            for i, advantage in zip(group, advantages.tolist(), strict=True):
                completion = batch[i].completion
                if advantage != 0.0 and completion.token_ids:
                    samples[i] = TrainingSample(
                        batch[i].prompt_ids,
                        completion.token_ids,
                        advantage=advantage,
                        log_probs=completion.log_probs,
                    )
        report.counts["nothing_to_say"] += sum(sample is None for sample in samples)
        return samples

    def per_token(
        self, tokens: Tokens, logits: torch.Tensor, report: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The clipped surrogate of every token."""
        loss = clipped_policy_loss(
            tokens.log_probs[:, None],
            tokens.old_log_probs[:, None],
            tokens.advantages,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
        )
        return loss[:, 0]


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
