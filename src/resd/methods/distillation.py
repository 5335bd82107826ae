"""What the self-distillation methods share: the teacher, the loss, peers' solutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from resd.config import DistillConfig
from resd.context import Sections
from resd.distill import (
    Aggregation,
    divergence_per_token,
    importance_weights,
    make_teacher,
    success_rate_weights,
)
from resd.methods.base import MicroBatch, Services, StepReport, messages_or_count
from resd.models.batch import response_logits
from resd.types import Rollout, TrainingSample


class Distillation:
    """A self-teacher with privileged context scores the student's own tokens (paper: Eq. 1).

    Subclasses say what the teacher sees.

    Args:
        config: of the method.
        services: of the run.
    """

    def __init__(self, config: DistillConfig, services: Services) -> None:
        self.config: Any = config
        self.rollouts = config.rollouts
        self.aggregation: Aggregation = config.aggregation
        self.services = services
        self.teacher = make_teacher(config.teacher.kind, services.student, config.teacher.rate)

    def learn(self, batch: Sequence[Rollout], report: StepReport) -> None:
        """Remember nothing."""

    def sections(self, rollout: Rollout, peer: str) -> Sections | None:
        """What the teacher sees; None if there is nothing to say (no forward pass is spent)."""
        raise NotImplementedError

    def samples(self, batch: Sequence[Rollout], report: StepReport) -> list[TrainingSample | None]:
        """Build the teacher prompts and the sample weights (paper: Eq. 2)."""
        weights = [1.0] * len(batch)
        exponents = self.config.success_weights
        if exponents is not None:
            weights = success_rate_weights([rollout.passed for rollout in batch], *exponents)
        samples = [
            self._sample(rollout, peer_solution(rollout, batch), weight, report)
            for rollout, weight in zip(batch, weights, strict=True)
        ]
        lengths = [len(sample.teacher_ids) for sample in samples if sample is not None]
        report.metrics["teacher/prompt_tokens"] = sum(lengths) / max(1, len(lengths))
        return samples

    def _sample(
        self, rollout: Rollout, peer: str, weight: float, report: StepReport
    ) -> TrainingSample | None:
        if rollout.outcome is None:
            return None
        if not rollout.completion.token_ids:
            report.counts["empty_response"] += 1
            return None
        sections = self.sections(rollout, peer)
        if sections is None:
            report.counts["nothing_to_say"] += 1
            return None
        messages = self.services.builder.teacher(rollout.example, sections)
        self.services.trace("teacher", rollout.example.id, prompt=messages)
        ids = messages_or_count(messages, self.services, report, "teacher")
        if ids is None:
            return None
        return TrainingSample(rollout.prompt_ids, rollout.completion.token_ids, ids, weight)

    def token_loss(self, micro: MicroBatch, logits: torch.Tensor) -> torch.Tensor:
        """Clipped f-divergence of every token, importance-weighted off policy."""
        with self.teacher.model() as teacher, torch.no_grad():
            teacher_logits = response_logits(
                teacher,
                [sample.teacher_ids for sample in micro.samples],
                [sample.response_ids for sample in micro.samples],
                micro.pad_id,
            )
        config, mask = self.config, micro.responses.mask
        loss = torch.zeros_like(micro.log_probs)
        loss[mask] = divergence_per_token(
            logits[mask],
            teacher_logits[mask],
            alpha=config.alpha,
            top_k=config.top_k,
            ratio_min=config.ratio_min,
            ratio_max=config.ratio_max,
            tail=config.tail,
        )
        weights = importance_weights(micro.log_probs, micro.old_log_probs, config.importance_cap)
        return loss * weights

    def after_update(self, student: torch.nn.Module) -> None:
        """Teacher sync (paper: Algorithm 1, line 6)."""
        self.teacher.update(student)

    def state_dict(self) -> dict[str, Any]:
        """Nothing but the teacher, which is among the tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The teacher's weights."""
        return self.teacher.state_dict()

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the teacher's weights."""
        self.teacher.load_state_dict(tensors)


def peer_solution(rollout: Rollout, batch: Sequence[Rollout]) -> str:
    """A passed response of another rollout of the same example, or an empty text."""
    for other in batch:
        if other is not rollout and other.passed and other.example.id == rollout.example.id:
            return other.completion.text
    return ""
