"""How much each sample and each token counts in the loss (paper Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sample_mean", "released"]


def success_rate_weights(
    passed: Sequence[bool], success_exponent: float, failure_exponent: float | None = None
) -> list[float]:
    """Return one weight per sample that favours the rarer outcome of a batch (paper Eq. 2).

    With success rate s, a success weighs `(1-s)^a` and a failure `s^b`, divided by the mean over
    the batch. The paper clamps nothing and is 0/0 when all samples pass or all fail;
    clamping s to `[1/B, 1-1/B]` makes every weight of such a batch 1.

    Args:
        passed: the outcome of each sample of the batch.
        success_exponent: a; 0 for both turns the weighting off, 1 is proportional.
        failure_exponent: b; by default the same as a.

    Raises:
        ValueError: for an exponent that is negative or not finite.
    """
    a = success_exponent
    b = a if failure_exponent is None else failure_exponent
    for exponent in (a, b):
        if not 0.0 <= exponent < math.inf:
            raise ValueError(f"exponent must be finite and not negative, got {exponent}")
    count, successes = len(passed), sum(map(bool, passed))
    if successes in (0, count):
        return [1.0] * count
    rate = successes / count
    logs = [a * math.log(1.0 - rate) if ok else b * math.log(rate) for ok in passed]
    largest = max(logs)  # taken out first: a large exponent would underflow to 0/0
    raw = [math.exp(value - largest) for value in logs]
    mean = sum(raw) / count
    return [value / mean for value in raw]


def token_weights(
    mask: Tensor, taught: Tensor, sample_weights: Tensor, aggregation: Aggregation
) -> Tensor:
    """Return weights such that the loss of the batch is `sum(weights * per_token_loss)`.

    Computed once for the whole batch, they make the loss and its gradient independent of how the
    batch is then cut into micro-batches. (Across data-parallel ranks that average gradients, pass
    the tensors of all ranks, keep your rows, and multiply by the number of ranks.)

    Args:
        mask: `[B, T]`, boolean or 0/1, the response tokens.
        taught: `[B]`, boolean, the samples that are distilled.
        sample_weights: `[B]`, for instance `success_rate_weights`.
        aggregation: `token_mean` divides by the number of taught tokens; `sample_mean` averages
            over the tokens of a sample, then over the taught samples that have a token;
            `released` averages over the tokens, then over all B samples, taught or not, as the
            scripts released with the paper in effect do.

    Returns:
        `[B, T]` float32, zero where nothing is taught.

    Raises:
        ValueError: for shapes that do not match or an unknown aggregation.
    """
    if mask.dim() != 2:
        raise ValueError(f"mask must be [B, T], got {tuple(mask.shape)}")
    for name, tensor in (("taught", taught), ("sample_weights", sample_weights)):
        if tensor.shape != mask.shape[:1]:
            raise ValueError(f"{name} must be [{mask.shape[0]}], got {tuple(tensor.shape)}")
    tokens = ((mask != 0) & (taught != 0)[:, None]).float()
    weighted = tokens * sample_weights.to(tokens)[:, None]
    lengths = tokens.sum(dim=1, keepdim=True)
    if aggregation == "token_mean":
        return weighted / tokens.sum().clamp(min=1.0)
    if aggregation == "sample_mean":
        return weighted / lengths.clamp(min=1.0) / (lengths > 0).sum().clamp(min=1)
    if aggregation == "released":
        return weighted / lengths.clamp(min=1.0) / max(mask.shape[0], 1)
    raise ValueError(f"aggregation must be one of {get_args(Aggregation)}, got {aggregation!r}")


def importance_weights(new_log_probs: Tensor, old_log_probs: Tensor, cap: float = 2.0) -> Tensor:
    """Return the truncated importance weight of every sampled token, without gradient.

    It corrects for responses drawn by another engine than the one that trains: the ratio of the
    trainer's probability to the sampler's, at most `cap`.

    Args:
        new_log_probs: `[...]`, of the trainer.
        old_log_probs: `[...]`, of the sampler. NaN marks a token that it could not score; such a
            token gets weight 1.
        cap: the largest weight.

    Returns:
        `[...]`, float32, or float64 if an input is float64.

    Raises:
        ValueError: for shapes that differ or a cap that is not positive.
    """
    if new_log_probs.shape != old_log_probs.shape:
        raise ValueError(
            f"log-probs differ in shape: {tuple(new_log_probs.shape)} and "
            f"{tuple(old_log_probs.shape)}"
        )
    if not cap > 0.0:
        raise ValueError(f"cap must be positive, got {cap}")
    dtype = torch.promote_types(new_log_probs.dtype, old_log_probs.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    with torch.no_grad():
        ratio = (new_log_probs.to(dtype) - old_log_probs.to(dtype)).exp().clamp(max=cap)
        return torch.where(old_log_probs.isnan(), torch.ones_like(ratio), ratio)
