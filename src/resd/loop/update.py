"""The policy update: micro-batch gradients that add up to the batch's, whatever their size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from resd.backend import Backend, Local, local_part, whole_tensor
from resd.config import TracesConfig, TrainConfig
from resd.distill import entropy, token_weights
from resd.distill.chunked import chunked_loss
from resd.loop.anchors import Anchors
from resd.loop.masters import Masters
from resd.loop.micro import Micro, micro_batches, padding
from resd.loop.optimizer import make_optimizer
from resd.loop.token_numbers import Watch
from resd.methods.base import Method, StepReport, TeacherStates, Tokens
from resd.models.head import LogitHead, response_states
from resd.types import TrainingSample

# A ratio to the sampler further off than this, on average over the tokens, is no rounding.
_RATIO_OFF = {torch.float32: 0.01, torch.float64: 0.01}
_RATIO_OFF_NARROW = 0.1
# Hidden states of a teacher that does not move, kept for a batch's next updates: at most 1 GiB.
_KEPT_NUMBERS = 1 << 28


class PolicyUpdate:
    """AdamW with linear warm-up on a student.

    No dropout: the student is in eval mode, so that the policy that is updated is the one that was
    sampled from.

    Args:
        student: the model in training.
        masters: the weights that the optimiser updates.
        method: gives the loss of every token.
        config: optimiser settings.
        pad_id: padding token.
        on_sampler: True if the sampler's log-probs are those of another engine, and so count as
            those of the policy that drew the tokens.
        backend: the processes that share the work.
        anchors: stand beside every optimiser step, if there are any.
        traces: how much is kept of the tokens that are watched.
        progress: told what is done, how many forward and backward passes, and of how many.
    """

    def __init__(
        self,
        student: Any,
        masters: Masters,
        method: Method[Any],
        config: TrainConfig,
        pad_id: int,
        *,
        on_sampler: bool = False,
        backend: Backend | None = None,
        anchors: Anchors | None = None,
        traces: TracesConfig | None = None,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self.student = student
        self.masters = masters
        self.method = method
        self.config = config
        self.updates = 0
        self.optimizer = make_optimizer(list(masters.weights.values()), config)
        self._head = LogitHead(student, whole=method.services.whole_logits)
        self._pad_id = pad_id
        self._on_sampler = on_sampler
        self._backend = backend or Local()
        self._anchors = anchors
        self._keep_scores = False
        self._progress = progress
        self._traces = traces or TracesConfig()
        self._watch: Watch | None = None

    def run(
        self,
        samples: Sequence[TrainingSample | None],
        report: StepReport,
        watched: Collection[int] = (),
    ) -> bool:
        """`updates_per_batch` optimiser steps on the samples that teach.

        Args:
            samples: None stands for one that teaches nothing: it costs no forward pass, and counts
                in the denominator of the `released` aggregation alone.
            report: takes metrics, and the numbers of watched tokens.
            watched: places of samples whose tokens are kept, as they are at the first update.

        Returns:
            Whether the weights are others now.
        """
        taught = [sample for sample in samples if sample is not None]
        places = [place for place, sample in enumerate(samples) if sample is not None]
        report.metrics["train/taught"] = len(taught) / max(1, len(samples))
        if not taught:
            return False
        budget = self.config.micro_batch_tokens
        kept = {i: place for i, place in enumerate(places) if place in watched}
        self._watch = Watch(self._traces.tokens, self._traces.alternatives) if kept else None
        micros = micro_batches(taught, self._token_weights(samples), budget, kept)
        report.metrics["train/padding"] = padding(micros)
        # A turn without work still takes part in gathering the weights.
        turns = [
            micros[0].without_weight() if index is None else micros[index]
            for index in self._backend.share([micro.cost for micro in micros])
        ]
        updates = self.method.updates_per_batch or self.config.updates_per_batch
        self._keep_scores = updates > 1 and self._fits(micros)
        rows: list[dict[str, float]] = []
        for number in range(updates):
            row = self._step(turns, report, number, updates)
            if row is not None:
                rows.append(row)
            if number == 0 and kept:
                self._tell_tokens(report)
        for key in rows[0] if rows else ():
            report.metrics[f"train/{key}"] = sum(row[key] for row in rows) / len(rows)
        if rows and "sampler_gap" in rows[0]:
            # Later updates on the batch are of a policy that has moved.
            report.metrics["train/sampler_gap"] = rows[0]["sampler_gap"]
        return bool(rows)

    def _tell_tokens(self, report: StepReport) -> None:
        """What every process has seen of the watched responses."""
        found = self._watch.taken() if self._watch else {}
        self._watch = None
        for part in self._backend.spread(range(self._backend.world), lambda _: found):
            report.tokens |= part

    def _token_weights(self, samples: Sequence[TrainingSample | None]) -> list[torch.Tensor]:
        """The weight of every token of every taught sample, over the whole batch."""
        width = max(len(s.response_ids) for s in samples if s is not None)
        mask = torch.zeros(len(samples), width, dtype=torch.bool)
        for i, sample in enumerate(samples):
            if sample is not None:
                mask[i, : len(sample.response_ids)] = True
        weights = token_weights(
            mask,
            torch.tensor([sample is not None for sample in samples]),
            torch.tensor([sample.weight if sample else 1.0 for sample in samples]),
            self.method.aggregation,
        )
        pairs = zip(samples, weights, strict=True)
        return [row[: len(sample.response_ids)] for sample, row in pairs if sample is not None]

    def _step(
        self, micros: Sequence[Micro], report: StepReport, number: int, updates: int
    ) -> dict[str, float] | None:
        """One optimiser step of a batch's; None if it was not finite and therefore skipped."""
        self.updates += 1
        _without_dropout(self.student)
        total: dict[str, float] = {}
        for place, micro in enumerate(micros, start=number * len(micros)):
            self._progress("update", place, updates * len(micros))
            loss, numbers = self._micro_loss(micro)
            self._backend.backward(loss)
            for key, value in numbers.items():
                total[key] = total.get(key, 0.0) + value
        if self._anchors is not None:
            total["anchor_kl"] = self._anchors.pull(self.updates)
        total = self._backend.sum(total)
        weights = list(self.masters.weights.values())
        limit = self.config.max_grad_norm
        norm = float(whole_tensor(torch.nn.utils.clip_grad_norm_(weights, limit)))
        if not (math.isfinite(norm) and math.isfinite(total["loss"])):
            report.counts["skipped_not_finite"] += 1
            self.optimizer.zero_grad()
            return None
        warm = min(1.0, self.updates / max(1, self.config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * warm
        # The optimiser knows nothing of its weights before the first step that it takes.
        before = None if self.optimizer.state else self._sampled_weights()
        self.optimizer.step()
        if before is not None:
            report.metrics |= self._movement(before, self.config.lr * warm)
        self.optimizer.zero_grad()  # what is generated next may have their memory
        self.masters.publish()
        self.method.after_update(self.masters.weights)
        share = max(total.pop("weight"), 1e-12)
        whole = {key: total.pop(key) for key in ("loss", "anchor_kl") if key in total}
        means = {k: v / share for k, v in total.items()}
        return {**whole, **means, "grad_norm": norm, "lr": self.config.lr * warm}

    def _micro_loss(self, micro: Micro) -> tuple[torch.Tensor, dict[str, float]]:
        """The micro-batch's share of the loss, and of the numbers to log."""
        scores = self._scores(micro)
        apart = scores is not None and scores.head.model is not self.student
        with self._backend.ready(scores.head.model) if scores and apart else nullcontext():
            return self._loss(micro, scores)

    def _loss(
        self, micro: Micro, scores: TeacherStates | None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        prompts = [sample.prompt_ids for sample in micro.samples]
        texts = [sample.response_ids for sample in micro.samples]
        hidden = response_states(self._head, prompts, texts, self._pad_id)
        device, sampler = hidden.device, micro.sampler
        ids, weights = micro.token_ids.to(device), micro.weights.to(device)
        advantages = micro.advantages.to(device)
        sampler = None if sampler is None else sampler.to(device)
        first = micro.old is None
        old = torch.empty(len(ids), device=device) if micro.old is None else micro.old
        sums: dict[str, torch.Tensor] = {"weight": weights.abs().sum()}

        def per_chunk(logits: torch.Tensor, span: slice) -> torch.Tensor:
            now = token_log_probs(logits, ids[span])
            # Where the sampler could not score a token (NaN), the student's own stands for it.
            drawn = now.detach() if sampler is None else _where_known(sampler[span], now.detach())
            if first:
                old[span] = drawn if self._on_sampler else now.detach()
            theirs = None if scores is None else scores.head(scores.hidden[span])
            tokens = Tokens(now, old[span], advantages[span], theirs)
            numbers: dict[str, torch.Tensor] = {}
            loss = self.method.per_token(tokens, logits, numbers)
            if self._watch is not None and micro.watched:
                self._watch.chunk(micro.watched, span, ids[span], now, loss, logits, theirs)
            with torch.no_grad():
                numbers["entropy"] = entropy(logits)
                numbers["ratio"] = (now - old[span]).exp()
                if sampler is not None:
                    numbers["sampler_gap"] = (now - drawn).abs()
                share = weights[span].abs()
                for key, value in numbers.items():
                    sums[key] = sums.get(key, 0.0) + (value * share).sum()
            return (loss * weights[span]).sum()

        loss = chunked_loss(hidden, self._head, per_chunk, self.config.chunk_tokens)
        micro.old = old
        return loss, {"loss": float(loss.detach()), **{k: float(v) for k, v in sums.items()}}

    def _fits(self, micros: Sequence[Micro]) -> bool:
        """Whether a teacher's hidden states of a batch may be kept, in every process or in none."""
        width = self._head.width
        return sum(len(micro.token_ids) for micro in micros) * width <= _KEPT_NUMBERS

    def _scores(self, micro: Micro) -> TeacherStates | None:
        """The teacher's; of one that does not move, computed once for all updates on a batch."""
        if micro.scores is not None:
            return micro.scores
        scores = self.method.score(micro.samples)
        if scores is not None and scores.fixed and self._keep_scores:
            micro.scores = scores
        return scores

    # -- what the first update tells -----------------------------------------------------------

    @property
    def most_gap(self) -> float:
        """Largest mean difference of a log-prob to the sampler's that rounding explains."""
        dtype = next(self.student.parameters()).dtype
        return _RATIO_OFF.get(dtype, _RATIO_OFF_NARROW)

    def _sampled_weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Some of the weights that get a gradient, and their values now."""
        found = []
        for weight in self.masters.weights.values():
            if weight.grad is not None:
                flat = local_part(weight.detach()).flatten()
                grad = local_part(weight.grad).flatten()
                every = max(1, flat.numel() // 4096)
                found.append((flat[::every], torch.stack([flat[::every].clone(), grad[::every]])))
        return found

    def _movement(
        self, before: Sequence[tuple[torch.Tensor, torch.Tensor]], lr: float
    ) -> dict[str, float]:
        """How far the first step moved the weights, of what it should; nothing if it should not.

        AdamW's moves a weight by lr * g / (|g| + eps), apart from its decay. Weights too coarse
        for the learning rate stay where they are.
        """
        moved = expected = 0.0
        for now, (then, grad) in before:
            step = lr * grad / (grad.abs() + 1e-8) + lr * self.config.weight_decay * then
            moved += float((now - then).abs().sum())
            expected += float(step.abs().sum())
        sums = self._backend.sum({"moved": moved, "expected": expected})
        expected = sums["expected"]
        return {"train/moved": sums["moved"] / expected} if expected > 0.0 else {}

    # -- state ---------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Any]:
        """Weights, and what the optimiser keeps of each, by the model's names; not copies."""
        weights = dict(self.masters.weights)
        kept = {
            name: {k: v for k, v in self.optimizer.state[weight].items() if torch.is_tensor(v)}
            for name, weight in weights.items()
            if weight in self.optimizer.state
        }
        return {"weights": weights, "optimizer": kept}

    def expect(self, names: Collection[str]) -> None:
        """Make room for the optimiser's tensors of a checkpoint, given all names in it."""
        for full in sorted(name for name in names if name.startswith("optimizer.")):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            weight = self.masters.weights[name]
            room = torch.zeros(()) if key == "step" else torch.zeros_like(weight)
            self.optimizer.state[weight][key] = room

    def restored(self, updates: int) -> None:
        """The tensors hold a checkpoint now, which was written after so many updates."""
        self.updates = updates
        self.masters.publish()


def token_log_probs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Log-probs [n] of tokens under logits [n, V], in float32 at least."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.gather(-1, token_ids[:, None])[:, 0] - wide.logsumexp(-1)


def _where_known(sampler: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.where(sampler.isnan(), own, sampler.to(own))


def _without_dropout(model: torch.nn.Module) -> None:
    """Eval mode; only what gradient checkpointing switches on by train mode stays in it, alone.

    Attention drops out by a function, as its own mode says, so its blocks' mode must not reach it.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            # Some blocks drop out by a function of their own, with a rate that they hold.
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
