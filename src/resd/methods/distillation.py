"""What the self-distillation methods share: the teacher, the loss, peers' solutions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch

from resd.config import DistillConfig
from resd.context import Reflection, Sections
from resd.distill import (
    divergence_terms,
    importance_weights,
    make_teacher,
    success_rate_weights,
)
from resd.methods.base import Method, Notes, Services, StepReport, TeacherStates, Tokens
from resd.models.head import LogitHead, response_states
from resd.types import Rollout, TrainingSample

Config = TypeVar("Config", bound=DistillConfig)


class Distillation(Method[Config]):
    """A self-teacher with privileged context scores the student's own tokens (paper: Eq. 1).

    Subclasses say what the teacher sees.
    """

    config_class = DistillConfig

    def __init__(self, config: Config, services: Services) -> None:
        super().__init__(config, services)
        copy = services.copy
        if copy is not None and config.teacher.offload:
            copy = partial(copy, offload=True)
        self._rebases = config.teacher.at_boundary == "rebase"
        self.teacher = make_teacher(
            config.teacher.kind,
            services.student,
            config.teacher.rate,
            services.weights,
            copy,
            rebased=self._rebases,
        )

    def begin_task(self, name: str, *, first: bool) -> None:
        """Let the teacher become the student, where that is wanted."""
        if self._rebases and not first:
            self.teacher.rebase(self.services.weights)

    def sections(
        self, rollout: Rollout, peer: str, reflection: Reflection | None
    ) -> Sections | None:
        """What the teacher sees; None if there is nothing to say (no forward pass is spent).

        Args:
            rollout: one that the environment could score.
            peer: a passed answer of another rollout of the same example, or an empty text.
            reflection: on this rollout, if there is one.
        """
        raise NotImplementedError

    def samples(
        self, batch: Sequence[Rollout], notes: Notes, report: StepReport
    ) -> list[TrainingSample | None]:
        """Build the teacher prompts and the sample weights (paper: Eq. 2)."""
        weights = [1.0] * len(batch)
        if self.config.success_weights is not None:
            # What the environment failed on is neither a success nor a failure.
            scored = [i for i, rollout in enumerate(batch) if rollout.outcome is not None]
            passed = [batch[i].passed for i in scored]
            rates = success_rate_weights(passed, *self.config.success_weights)
            for i, weight in zip(scored, rates, strict=True):
                weights[i] = weight
        samples = [
            self._sample(rollout, peer_solution(rollout, batch), reflection, weight, report)
            for rollout, reflection, weight in zip(batch, notes.reflections, weights, strict=True)
        ]
        lengths = [len(sample.teacher_ids) for sample in samples if sample is not None]
        report.metrics["teacher/prompt_tokens"] = sum(lengths) / max(1, len(lengths))
        return samples

    def _sample(
        self,
        rollout: Rollout,
        peer: str,
        reflection: Reflection | None,
        weight: float,
        report: StepReport,
    ) -> TrainingSample | None:
        if rollout.outcome is None:
            return None
        if not rollout.completion.token_ids:
            report.counts["empty_response"] += 1
            return None
        sections = self.sections(rollout, peer, reflection)
        if sections is None:
            report.counts["nothing_to_say"] += 1
            return None
        prompt = self.services.builder.teacher_and_spans(rollout.example, sections)
        if prompt is None:
            report.counts["teacher_prompt_too_long"] += 1
            return None
        messages, spans = prompt
        self.services.trace(
            "teacher", rollout.example.id, seed=rollout.seed, prompt=messages, spans=spans
        )
        return TrainingSample(
            rollout.prompt_ids,
            rollout.completion.token_ids,
            tuple(self.services.encode(messages)),
            weight,
            log_probs=rollout.completion.log_probs,
        )

    def score(self, samples: Sequence[TrainingSample]) -> TeacherStates:
        """The teacher's hidden states: its logits would be too many to hold."""
        with self.services.phase("teacher"), self.teacher.model() as model, torch.no_grad():
            head = LogitHead(model, whole=self.services.whole_logits)
            hidden = response_states(
                head,
                [sample.teacher_ids for sample in samples],
                [sample.response_ids for sample in samples],
                self.services.pad_id,
            )
        return TeacherStates(hidden, head, self.teacher.fixed)

    def per_token(
        self, tokens: Tokens, logits: torch.Tensor, report: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Clipped f-divergence of every token, importance-weighted off policy."""
        config = self.config
        assert tokens.teacher_logits is not None
        terms = divergence_terms(
            logits,
            tokens.teacher_logits,
            alpha=config.alpha,
            top_k=config.top_k,
            ratio_min=config.ratio_min,
            ratio_max=config.ratio_max,
            tail=config.tail,
            support=config.support,
        )
        report["teacher_outside"] = terms.outside
        weights = importance_weights(tokens.log_probs, tokens.old_log_probs, config.importance_cap)
        return terms.loss * weights

    def after_update(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Teacher sync (paper: Algorithm 1, line 6)."""
        self.teacher.update(weights)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The teacher's weights."""
        return self.teacher.state_dict()

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the teacher's weights."""
        self.teacher.load_state_dict(tensors)


def peer_solution(rollout: Rollout, batch: Sequence[Rollout]) -> str:
    """A passed answer of another rollout of the same example at random, or an empty text."""
    peers = [
        other.answer
        for other in batch
        if other is not rollout
        and other.passed
        and other.answer
        and other.example.id == rollout.example.id
    ]
    return random.Random(f"peer/{rollout.seed}").choice(peers) if peers else ""
