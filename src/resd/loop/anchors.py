"""Anchors: answers of the initial model to unrelated prompts, to which the student is held.

A student that learns one task forgets the others. `KL(initial || student)` on what the initial
model answers elsewhere keeps it where it was there. The initial model's hidden states of these
answers are computed once, and its head is kept: no second model, and no pass of it in a step.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resd.backend import Backend
from resd.config import AnchorConfig, RunConfig, TrainConfig
from resd.distill import divergence_per_token, scoring
from resd.distill.chunked import chunked_loss
from resd.engines import Request, Sampling
from resd.errors import UserError
from resd.loop.micro import Micro, micro_batches
from resd.loop.rollouts import Sampler
from resd.loop.student import Student
from resd.models.head import LogitHead, response_states
from resd.runs import atomic
from resd.runs.seeds import derive
from resd.types import TrainingSample

FILE = "anchors.json"
Answers = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]


class Anchors:
    """The anchors of a run; made while the student still is the initial model.

    Args:
        answers: token ids of prompts and of the initial model's answers, each prompt once.
        student: the model in training.
        config: weight and batch.
        train: how forward passes are cut.
        seed: of the run; with the number of an update it says which anchors stand beside it.
        pad_id: padding token.
        backend: the processes that share the work.
        phase: counts the time.
    """

    def __init__(
        self,
        answers: Answers,
        student: Any,
        config: AnchorConfig,
        train: TrainConfig,
        seed: int,
        pad_id: int,
        backend: Backend,
        phase: Callable[[str], Any],
    ) -> None:
        self._samples = [TrainingSample(prompt, answer) for prompt, answer in answers]
        self._config, self._train, self._seed, self._pad_id = config, train, seed, pad_id
        self._backend, self._phase = backend, phase
        self._head = LogitHead(student)
        with backend.ready(student), scoring(student), phase("anchors"):
            self._states = self._initial_states()
            self._initial_head = self._head.frozen()

    def _initial_states(self) -> Mapping[TrainingSample, Tensor]:
        """Hidden states [R, D] that predict each answer; every process makes all of them."""
        found: dict[TrainingSample, Tensor] = {}
        for micro in self._micros(self._samples):
            states = self._student_states(micro)
            lengths = [len(sample.response_ids) for sample in micro.samples]
            found.update(zip(micro.samples, states.split(lengths), strict=True))
        return found

    def draw(self, update: int) -> list[TrainingSample]:
        """The anchors beside the update of this number, no one twice."""
        rng = random.Random(derive(self._seed, "anchors", update))
        return rng.sample(self._samples, min(self._config.batch, len(self._samples)))

    def pull(self, update: int) -> float:
        """Add the anchors' gradient to the student's.

        Returns:
            This process's share of KL(initial || student), the mean over the tokens of the draw.
        """
        if update == 1:
            # The student still is the initial model, and the gradient zero. What a pass would
            # give is rounding, and AdamW makes full steps of a gradient however small.
            return 0.0
        with self._phase("anchors"):
            micros = self._micros(self.draw(update))
            total = 0.0
            for index in self._backend.share([micro.cost for micro in micros]):
                # A turn without work still takes part in gathering the weights.
                micro = micros[0].without_weight() if index is None else micros[index]
                kl = self._divergence(micro)
                self._backend.backward(self._config.weight * kl)
                total += float(kl.detach())
        return total

    def _micros(self, samples: Sequence[TrainingSample]) -> list[Micro]:
        tokens = sum(len(sample.response_ids) for sample in samples)
        weights = [torch.full((len(sample.response_ids),), 1.0 / tokens) for sample in samples]
        return micro_batches(samples, weights, self._train.micro_batch_tokens)

    def _student_states(self, micro: Micro) -> Tensor:
        prompts = [sample.prompt_ids for sample in micro.samples]
        answers = [sample.response_ids for sample in micro.samples]
        return response_states(self._head, prompts, answers, self._pad_id)

    def _divergence(self, micro: Micro) -> Tensor:
        hidden = self._student_states(micro)
        initial = torch.cat([self._states[sample] for sample in micro.samples])
        weights = micro.weights.to(hidden.device)

        def per_chunk(logits: Tensor, span: slice) -> Tensor:
            with torch.no_grad():
                theirs = self._initial_head(initial[span])
            kl = divergence_per_token(
                logits, theirs, alpha=0.0, top_k=None, ratio_min=None, support="full"
            )
            return (kl * weights[span]).sum()

        return chunked_loss(hidden, self._head, per_chunk, self._train.chunk_tokens)


def make_anchors(
    config: RunConfig,
    prompts: Sequence[tuple[int, ...]],
    place: Path,
    sampler: Sampler,
    student: Student,
    pad_id: int,
    backend: Backend,
    phase: Callable[[str], Any],
) -> Anchors | None:
    """The anchors of a run, or None where they are off; call it before weights are restored.

    The initial model answers once: the answers are kept in the run's directory.

    Args:
        config: of the run.
        prompts: token ids, as `anchor_prompts` gives them.
        place: the run's directory.
        sampler: holds the student, which still is the initial model.
        student: in training.
        pad_id: padding token.
        backend: the processes that share the work.
        phase: counts the time.

    Raises:
        UserError: the model's head cannot be called by itself.
        StorageError: the answers cannot be written.
    """
    anchors = config.method.anchors
    if not anchors.weight:
        return None
    if student.whole_logits:
        raise UserError(
            "method.anchors: this model's head cannot be called by itself, so that the initial "
            "model would have to be kept whole: set method.anchors.weight to 0"
        )
    answers = backend.told(_read(place / FILE) if backend.main else None)
    if answers is None:
        answers = _answered(config, prompts, sampler)
        backend.on_main(lambda: atomic.write_json(place / FILE, {"answers": answers}))
    return Anchors(
        answers, student.model, anchors, config.train, config.seed, pad_id, backend, phase
    )


def _answered(config: RunConfig, prompts: Sequence[tuple[int, ...]], sampler: Sampler) -> Answers:
    anchors = config.method.anchors
    sampling = Sampling(anchors.temperature, config.rollout.top_p, anchors.max_new_tokens)
    # Seeds belong to the prompts: another number of them changes no answer.
    requests = [Request(ids, sampling, derive(config.seed, "anchor", *ids)) for ids in prompts]
    completions = sampler.generate(requests)
    sampler.rest()
    return [
        (ids, completion.token_ids)
        for ids, completion in zip(prompts, completions, strict=True)
        if completion.token_ids
    ]


def _read(file: Path) -> Answers | None:
    """The answers that a run has kept; None where there are none, or the file is damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))["answers"]
        return [(tuple(map(int, prompt)), tuple(map(int, answer))) for prompt, answer in kept]
    except (OSError, ValueError, KeyError, TypeError):
        return None
