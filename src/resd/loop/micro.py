"""Micro-batches: samples that go through the model together, by a budget of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from resd.loop.token_numbers import Watched
from resd.methods.base import TeacherStates
from resd.types import TrainingSample

# So many tokens take a forward pass no longer than fewer do: they are not split to save padding.
_FREE_TOKENS = 2048
# Most of a larger micro-batch that may be padding.
_MOST_PADDING = 0.1


@dataclass
class Micro:
    """Samples of one forward pass, for all updates on a batch; tensors are [N], by token.

    Attributes:
        token_ids: of all responses, sample after sample.
        weights: of every token in the batch's loss.
        old: log-probs under the policy that drew the tokens, from the first update on.
        sampler: log-probs that the sampler reported (NaN where it could not); None if it did not.
        scores: a teacher's that does not move.
        watched: responses whose tokens are kept.
    """

    samples: Sequence[TrainingSample]
    token_ids: Tensor
    weights: Tensor
    advantages: Tensor
    sampler: Tensor | None
    old: Tensor | None = None
    scores: TeacherStates | None = None
    watched: Sequence[Watched] = ()

    @classmethod
    def of(cls, samples: Sequence[TrainingSample], weights: Sequence[Tensor]) -> Micro:
        """Samples, and the weights of the tokens of each."""
        known = [sample.log_probs for sample in samples]
        sampler = None
        if all(values is not None for values in known):
            sampler = torch.tensor([v for values in known for v in values or ()])
        advantages = [s.advantage for s in samples for _ in s.response_ids]
        return cls(
            samples,
            torch.tensor([token for s in samples for token in s.response_ids], dtype=torch.long),
            torch.cat(list(weights)),
            torch.tensor(advantages),
            sampler,
        )

    def without_weight(self) -> Micro:
        """The same forward passes, for nothing: a process that has no work left takes part so."""
        nothing = torch.zeros_like(self.weights)
        return replace(self, weights=nothing, old=None, scores=None, watched=())

    @property
    def cost(self) -> int:
        """Tokens of the forward passes, padding included."""
        return _padded(self.samples)


def micro_batches(
    samples: Sequence[TrainingSample],
    weights: Sequence[Tensor],
    budget: int,
    watched: Mapping[int, int] | None = None,
) -> list[Micro]:
    """Cut a batch into micro-batches; alike lengths go together.

    Args:
        samples: that teach.
        weights: of the tokens of each.
        budget: most tokens of a forward pass, padding included; a longer sample stands alone.
        watched: samples whose tokens are kept, and their places in the batch.
    """
    order = sorted(range(len(samples)), key=lambda i: (_length(samples[i]), i))
    groups: list[list[int]] = []
    for i in order:
        if groups and _fits([samples[k] for k in [*groups[-1], i]], budget):
            groups[-1].append(i)
        else:
            groups.append([i])
    micros = [Micro.of([samples[i] for i in g], [weights[i] for i in g]) for g in groups]
    for micro, group in zip(micros, groups, strict=True):
        micro.watched = _watched(group, samples, watched or {})
    return micros


def _watched(
    group: Sequence[int], samples: Sequence[TrainingSample], watched: Mapping[int, int]
) -> list[Watched]:
    ends = list(accumulate(len(samples[i].response_ids) for i in group))
    starts = [0, *ends]
    spans = zip(group, starts, ends, strict=False)
    return [Watched(watched[i], start, end) for i, start, end in spans if i in watched]


def padding(micros: Sequence[Micro]) -> float:
    """The share of the tokens of all forward passes that is padding."""
    real = sum(_length(sample) for micro in micros for sample in micro.samples)
    return 1.0 - real / max(1, sum(micro.cost for micro in micros))


def _fits(samples: Sequence[TrainingSample], budget: int) -> bool:
    student, teacher = _widths(samples)
    if max(student, teacher) * len(samples) > budget:
        return False
    padded = _padded(samples)
    real = sum(map(_length, samples))
    return padded <= _FREE_TOKENS or padded - real <= _MOST_PADDING * padded


def _padded(samples: Sequence[TrainingSample]) -> int:
    return sum(_widths(samples)) * len(samples)


def _widths(samples: Sequence[TrainingSample]) -> tuple[int, int]:
    """Tokens of the longest sequence of the student, and of the teacher (0 without one)."""
    student = max(len(s.prompt_ids) + len(s.response_ids) for s in samples)
    teacher = max(len(s.teacher_ids) + len(s.response_ids) if s.teacher_ids else 0 for s in samples)
    return student, teacher


def _length(sample: TrainingSample) -> int:
    """Tokens that go through a model for it: the student's, and the teacher's."""
    response = len(sample.response_ids)
    teacher = len(sample.teacher_ids) + response if sample.teacher_ids else 0
    return len(sample.prompt_ids) + response + teacher
