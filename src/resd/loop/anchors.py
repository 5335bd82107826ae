"""Anchors: answers of the initial model to unrelated prompts, to which the student is held.

A student that learns one task forgets the others. `KL(initial || student)` on what the initial
model answers elsewhere keeps it where it was there. The initial model's hidden states of these
answers are computed once, and its head is kept: no second model, and no pass of it in a step.

In a stream, answers of the student as it left a task can join them, in the same way.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from resd.backend import Backend
from resd.config import AnchorConfig, RunConfig, TrainConfig
from resd.distill import divergence_per_token, scoring
from resd.distill.chunked import chunked_loss
from resd.engines import Request, Sampling
from resd.errors import UserError
from resd.loop.micro import Micro, micro_batches
from resd.loop.rollouts import Sampler
from resd.loop.stream import Stage
from resd.loop.student import Student
from resd.models.chat import ChatFormat
from resd.models.head import LogitHead, response_states
from resd.runs import atomic
from resd.runs.seeds import derive
from resd.types import TrainingSample

FILE = "anchors.json"
KEPT = "anchors"  # a directory in it for each task left behind
Answers = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class _Group:
    """Answers, and how they were given.

    Attributes:
        states: hidden states [R, D] that predict each answer.
        head: makes logits of them.
    """

    samples: list[TrainingSample]
    states: dict[TrainingSample, Tensor]
    head: LogitHead


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
        place: the run's directory.
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
        place: Path = Path(),
    ) -> None:
        self._place = place
        self._config, self._train, self._seed, self._pad_id = config, train, seed, pad_id
        self._backend, self._phase = backend, phase
        self._student, self._head = student, LogitHead(student)
        self._owner: dict[TrainingSample, _Group] = {}
        self._initial = self._added(self._as_now(answers))

    def _as_now(self, answers: Answers) -> _Group:
        """What the student makes of answers now; every process makes all of it."""
        samples = [TrainingSample(prompt, answer) for prompt, answer in answers]
        states: dict[TrainingSample, Tensor] = {}
        with self._backend.ready(self._student), scoring(self._student), self._phase("anchors"):
            for micro in self._micros(samples):
                lengths = [len(sample.response_ids) for sample in micro.samples]
                parts = self._student_states(micro).split(lengths)
                states.update(zip(micro.samples, parts, strict=True))
            return _Group(samples, states, self._head.frozen())

    def _added(self, group: _Group) -> _Group:
        for sample in group.samples:
            self._owner.setdefault(sample, group)
        return group

    def leave(self, task: Stage, config: RunConfig, chat: ChatFormat, sampler: Sampler) -> None:
        """Hold the student to a task as it leaves it; written down for `restore`.

        Args:
            task: the first of its examples, as many as the setting says, are answered.
            config: of the run.
            chat: the student's format.
            sampler: holds the student.

        Raises:
            StorageError: it cannot be written.
        """
        most, wanted = self._config.max_prompt_tokens, self._config.earlier
        prompts = [tuple(chat.encode(example.prompt)) for example in task.train[:wanted]]
        answers = answered(config, [ids for ids in prompts if len(ids) <= most], sampler)
        if answers:
            self._keep(answers, self._place / KEPT / task.name)

    def _keep(self, answers: Answers, place: Path) -> None:
        group = self._as_now(answers)
        # A head that is not trained is the initial one for ever.
        head = group.head.tensors() if self._head.weights else {}
        tensors = {"states": torch.cat([group.states[s] for s in group.samples])}
        tensors |= {f"head.{name}": tensor for name, tensor in head.items()}

        def fill(scratch: Path) -> None:
            atomic.write_json(scratch / FILE, {"answers": answers})
            kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
            save_file(kept, scratch / "states.safetensors")

        self._backend.on_main(lambda: atomic.write_directory(place, fill))
        self._added(group)

    def restore(self, task: str) -> None:
        """Hold the student to a task that it left before the run was broken off.

        Raises:
            UserError: what was written of it is damaged.
        """
        place = self._place / KEPT / task
        if not self._config.earlier:
            return
        answers = _read(place / FILE)
        try:
            tensors = load_file(place / "states.safetensors")
            states = tensors.pop("states").to(self._device)
            head = {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
            samples = [TrainingSample(prompt, answer) for prompt, answer in answers or ()]
            parts = states.split([len(sample.response_ids) for sample in samples])
            states_of = dict(zip(samples, parts, strict=True))
            self._added(_Group(samples, states_of, self._frozen_head(head)))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{place} is damaged ({what}): the anchors of a task left behind cannot be made "
                "again; start the stream anew, or with method.anchors.earlier 0"
            ) from None

    @property
    def _device(self) -> torch.device:
        return next(iter(self._initial.states.values())).device

    def _frozen_head(self, tensors: Mapping[str, Tensor]) -> LogitHead:
        if not tensors:
            return self._initial.head
        with self._backend.ready(self._student):
            return self._head.frozen(tensors)

    def draw(self, update: int) -> list[TrainingSample]:
        """The anchors beside the update of this number, no one twice."""
        rng = random.Random(derive(self._seed, "anchors", update))
        samples = list(self._owner)
        return rng.sample(samples, min(self._config.batch, len(samples)))

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
            drawn = self.draw(update)
            micros = [
                (micro, group)
                for group in dict.fromkeys(self._owner.values())
                for micro in self._micros([s for s in drawn if self._owner[s] is group], drawn)
            ]
            total = 0.0
            for index in self._backend.share([micro.cost for micro, _ in micros]):
                # A turn without work still takes part in gathering the weights.
                micro, group = micros[index or 0]
                kl = self._divergence(micro.without_weight() if index is None else micro, group)
                self._backend.backward(self._config.weight * kl)
                total += float(kl.detach())
        return total

    def _micros(
        self, samples: Sequence[TrainingSample], of: Sequence[TrainingSample] | None = None
    ) -> list[Micro]:
        """Every token of `of`, of which the samples are a part, weighs the same."""
        tokens = sum(len(sample.response_ids) for sample in of or samples)
        weights = [torch.full((len(sample.response_ids),), 1.0 / tokens) for sample in samples]
        return micro_batches(samples, weights, self._train.micro_batch_tokens) if samples else []

    def _student_states(self, micro: Micro) -> Tensor:
        prompts = [sample.prompt_ids for sample in micro.samples]
        answers = [sample.response_ids for sample in micro.samples]
        return response_states(self._head, prompts, answers, self._pad_id)

    def _divergence(self, micro: Micro, group: _Group) -> Tensor:
        hidden = self._student_states(micro)
        initial = torch.cat([group.states[sample] for sample in micro.samples])
        weights = micro.weights.to(hidden.device)

        def per_chunk(logits: Tensor, span: slice) -> Tensor:
            with torch.no_grad():
                theirs = group.head(initial[span])
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
        answers = answered(config, prompts, sampler)
        backend.on_main(lambda: atomic.write_json(place / FILE, {"answers": answers}))
    return Anchors(
        answers, student.model, anchors, config.train, config.seed, pad_id, backend, phase, place
    )


def answered(config: RunConfig, prompts: Sequence[tuple[int, ...]], sampler: Sampler) -> Answers:
    """Token ids of prompts, and of what the student answers now, where it says anything."""
    anchors = config.method.anchors
    sampling = Sampling(anchors.temperature, config.rollout.top_p, anchors.max_new_tokens)
    # Seeds belong to the prompts: another number of them changes no answer.
    requests = [Request(ids, sampling, derive(config.seed, "anchor", *ids)) for ids in prompts]
    completions = sampler.generate(requests, what="anchors")
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
