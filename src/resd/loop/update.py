"""The policy update: micro-batch gradients that add up to the batch's, whatever their size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from resd.config import TrainConfig
from resd.distill import entropy, token_weights
from resd.methods.base import Method, MicroBatch, StepReport
from resd.models.batch import align, response_logits
from resd.runs.seeds import derive
from resd.types import TrainingSample


class PolicyUpdate:
    """AdamW with linear warm-up on a student.

    Args:
        student: the model in training.
        method: gives the loss of every token.
        config: optimiser settings.
        accelerator: places tensors and runs the backward pass.
        seed: of dropout, where the model has any.
        pad_id: padding token.
    """

    def __init__(
        self,
        student: Any,
        method: Method,
        config: TrainConfig,
        accelerator: Accelerator,
        seed: int,
        pad_id: int,
    ) -> None:
        self.config = config
        self.method = method
        self.accelerator = accelerator
        trained = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )
        self.student, self.optimizer = accelerator.prepare(student, optimizer)
        self.updates = 0
        self._seed = seed
        self._pad_id = pad_id

    def run(self, samples: Sequence[TrainingSample | None], report: StepReport) -> None:
        """`updates_per_batch` optimiser steps on the samples that teach.

        None stands for a sample that teaches nothing: it costs no forward pass, and counts in
        the denominator of the `released` aggregation alone.
        """
        taught = [sample for sample in samples if sample is not None]
        report.metrics["train/taught"] = len(taught) / max(1, len(samples))
        if not taught:
            return
        weights = self._token_weights(samples)
        rows: list[dict[str, float]] = []
        for _ in range(self.config.updates_per_batch):
            row = self._step(taught, weights, report.counts)
            if row is not None:
                rows.append(row)
        for key in rows[0] if rows else ():
            report.metrics[f"train/{key}"] = sum(row[key] for row in rows) / len(rows)

    def _token_weights(self, samples: Sequence[TrainingSample | None]) -> list[torch.Tensor]:
        """The weight of every token of every taught sample, over the whole batch."""
        width = max(len(s.response_ids) for s in samples if s is not None)
        mask = torch.zeros(len(samples), width, dtype=torch.bool)
        for i, sample in enumerate(samples):
            mask[i, : len(sample.response_ids) if sample else 1] = True
        weights = token_weights(
            mask,
            torch.tensor([sample is not None for sample in samples]),
            torch.tensor([sample.weight if sample else 1.0 for sample in samples]),
            self.method.aggregation,
        )
        pairs = zip(samples, weights, strict=True)
        return [row[: len(sample.response_ids)] for sample, row in pairs if sample is not None]

    def _step(
        self,
        samples: Sequence[TrainingSample],
        weights: Sequence[torch.Tensor],
        counts: Counter[str],
    ) -> dict[str, float] | None:
        """One optimiser step; None if it was not finite and therefore skipped."""
        self.updates += 1
        torch.manual_seed(derive(self._seed, "update", self.updates))
        self.student.train()
        self.optimizer.zero_grad()
        total = {"loss": 0.0, "entropy": 0.0, "ratio": 0.0}
        for micro, rows in self._micro_batches(samples, weights):
            loss, numbers = self._micro_loss(micro, rows)
            self.accelerator.backward(loss)
            for key, value in numbers.items():
                total[key] += value
        norm = float(
            self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.max_grad_norm)
        )
        if not (math.isfinite(norm) and math.isfinite(total["loss"])):
            counts["skipped_not_finite"] += 1
            self.optimizer.zero_grad()
            return None
        warm = min(1.0, self.updates / max(1, self.config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * warm
        self.optimizer.step()
        self.method.after_update(self.accelerator.unwrap_model(self.student))
        return {**total, "grad_norm": norm, "lr": self.config.lr * warm}

    def _micro_batches(
        self, samples: Sequence[TrainingSample], weights: Sequence[torch.Tensor]
    ) -> Iterator[tuple[Sequence[TrainingSample], Sequence[torch.Tensor]]]:
        # Alike lengths together: less padding.
        order = sorted(
            range(len(samples)),
            key=lambda i: len(samples[i].teacher_ids) + len(samples[i].response_ids),
        )
        for start in range(0, len(order), self.config.micro_batch_size):
            chunk = order[start : start + self.config.micro_batch_size]
            yield [samples[i] for i in chunk], [weights[i] for i in chunk]

    def _micro_loss(
        self, samples: Sequence[TrainingSample], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The micro-batch's share of the loss, and of the numbers to log."""
        prompts = [sample.prompt_ids for sample in samples]
        texts = [sample.response_ids for sample in samples]
        logits = response_logits(self.student, prompts, texts, self._pad_id)
        responses = align(texts, self._pad_id, logits.device)
        log_probs = (
            logits.float().log_softmax(-1).gather(-1, responses.token_ids[..., None])[..., 0]
        )
        old = _old_log_probs(samples, log_probs.detach())
        micro = MicroBatch(samples, responses, log_probs, old, self._pad_id)
        token_loss = self.method.token_loss(micro, logits)
        weight = torch.zeros_like(token_loss)
        for row, values in enumerate(weights):
            weight[row, -len(values) :] = values.to(weight)
        # Padded positions may hold anything, NaN too: a product with zero would keep it.
        loss = torch.where(responses.mask, token_loss * weight, 0.0).sum()
        with torch.no_grad():
            flat = weight.abs() / weight.abs().sum().clamp(min=1e-12)
            share = weight.abs().sum()
            entropies = torch.where(responses.mask, entropy(logits) * flat, 0.0).sum()
            ratio = torch.where(responses.mask, (log_probs - old).exp() * flat, 0.0).sum()
        numbers = {
            "loss": float(loss.detach()),
            "entropy": float(entropies * share),
            "ratio": float(ratio * share),
        }
        return loss, numbers

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and schedule."""
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = int(state["updates"])


def _old_log_probs(samples: Sequence[TrainingSample], now: torch.Tensor) -> torch.Tensor:
    """Log-probs of the policy that drew the tokens [B, R]; remembered on first sight."""
    old = now.clone()
    for row, sample in enumerate(samples):
        length = len(sample.response_ids)
        if sample.old_log_probs is None:
            sample.old_log_probs = now[row, -length:].clone()
        old[row, -length:] = sample.old_log_probs.to(now)
    return old
