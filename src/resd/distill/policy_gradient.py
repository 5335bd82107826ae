"""GRPO: group-relative advantages and the clipped policy loss (method.md, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

# Added to the standard deviation, so that a group of nearly equal rewards is not blown up.
_STD_EPSILON = 1e-4
# Log-ratios beyond this are cut: exp would overflow, and inf times a zero advantage is NaN.
_MAX_LOG_RATIO = 20.0


def group_advantages(rewards: Tensor, group: int, *, scale: bool) -> Tensor:
    """Return each reward minus the mean of its group, divided by the group's deviation if `scale`.

    Args:
        rewards: `[B]`, the samples of one prompt side by side.
        group: samples per prompt; must divide B.
        scale: divide by the group's standard deviation (with Bessel's correction) plus 1e-4.

    Returns:
        `[B]`, float32, or float64 for float64 rewards. Exactly zero in a group whose rewards are
        all equal, so also for a group of one.

    Raises:
        ValueError: if the rewards are not `[B]` or `group` does not divide B.
    """
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be [B], got {tuple(rewards.shape)}")
    if group < 1 or len(rewards) % group:
        raise ValueError(f"{len(rewards)} rewards do not form groups of {group}")
    grouped = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group)
    advantages = grouped - grouped.mean(dim=1, keepdim=True)
    if scale:
        variance = advantages.square().sum(dim=1, keepdim=True) / max(group - 1, 1)
        advantages = advantages / (variance.sqrt() + _STD_EPSILON)
    # The mean of equal numbers may be off by a rounding error, which is no reason to learn.
    constant = (grouped == grouped[:, :1]).all(dim=1, keepdim=True)
    return advantages.masked_fill(constant, 0.0).flatten()


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """Return the clipped surrogate loss of every token (PPO's, with GRPO's advantages; no KL term).

    Args:
        log_probs: `[B, T]`, of the policy in training.
        old_log_probs: `[B, T]`, of the policy that drew the tokens. No gradient reaches it.
        advantages: `[B]`.
        clip_low: the ratio is clipped below at `1 - clip_low`.
        clip_high: the ratio is clipped above at `1 + clip_high`.

    Returns:
        `[B, T]`, float32, or float64 if an input is float64. Aggregate with `token_weights`.

    Raises:
        ValueError: for shapes that do not match or a clip range out of bounds.
    """
    if log_probs.dim() != 2 or log_probs.shape != old_log_probs.shape:
        raise ValueError(
            f"log-probs must both be [B, T], got {tuple(log_probs.shape)} and "
            f"{tuple(old_log_probs.shape)}"
        )
    if advantages.shape != log_probs.shape[:1]:
        raise ValueError(
            f"advantages must be [{log_probs.shape[0]}], got {tuple(advantages.shape)}"
        )
    if not 0.0 <= clip_low <= 1.0 or not clip_high >= 0.0:
        raise ValueError(f"clip_low must be in [0, 1] and clip_high >= 0: {clip_low}, {clip_high}")
    dtype = torch.promote_types(log_probs.dtype, old_log_probs.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    log_ratio = log_probs.to(dtype) - old_log_probs.detach().to(dtype)
    ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    advantage = advantages.detach().to(dtype)[:, None]
    return -torch.minimum(ratio * advantage, clipped * advantage)
