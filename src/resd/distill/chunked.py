"""The loss without the logits of a whole batch: a few tokens at a time, gradient and all.

One response of 20,480 tokens has logits of 11.6 GiB in float32 under a vocabulary of 151,936, and
a loss computed at once holds several copies. Here each chunk's logits are made, their gradient is
taken to the hidden states and the head, and both are dropped before the next chunk is made.

The gradients are made in the forward pass (as fused cross-entropies do). That costs no second
pass over the head, and hooks on the weights see one gradient, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Head(Protocol):
    """Hidden states [N, D] to logits [N, V]."""

    @property
    def weights(self) -> list[Tensor]:
        """What gets a gradient by it."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """The logits."""


PerChunk = Callable[[Tensor, slice], Tensor]


def chunked_loss(hidden: Tensor, head: Head, per_chunk: PerChunk, size: int) -> Tensor:
    """The sum of a loss over chunks of tokens, differentiable once by `hidden` and the head.

    Args:
        hidden: `[N, D]`, N may be 0.
        head: makes logits.
        per_chunk: called with logits `[n, V]` and the span of tokens that they belong to; returns
            a scalar. It may keep numbers of its own, without gradient. A second model's weights
            get no gradient through it.
        size: tokens of a chunk.

    Returns:
        A scalar in float32 (float64 if a chunk's loss is).

    Raises:
        ValueError: the size is not positive, or `hidden` is no matrix.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if hidden.dim() != 2:
        raise ValueError(f"hidden must be [N, D], got {tuple(hidden.shape)}")
    loss: Tensor = _Chunked.apply(hidden, head, per_chunk, size, *head.weights)  # type: ignore[no-untyped-call]
    return loss


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, per_chunk: PerChunk, size: int, *weights: Tensor
    ) -> Tensor:
        needs_hidden, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        wanted = [weight for weight, needs in zip(weights, needs_weights, strict=True) if needs]
        to_hidden = torch.zeros_like(hidden) if needs_hidden else None
        # Summed in float32: a narrow sum over many chunks would lose the small ones.
        to_weights = [
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for weight in wanted
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), size):
            span = slice(start, min(start + size, len(hidden)))
            piece = hidden[span].detach().requires_grad_(needs_hidden)
            sources = ([piece] if needs_hidden else []) + wanted
            with torch.set_grad_enabled(bool(sources)):
                loss = per_chunk(head(piece), span)
            total = total + loss.detach()
            if not sources or not loss.requires_grad:
                continue
            found = list(torch.autograd.grad(loss, sources, allow_unused=True))
            if to_hidden is not None and (grad := found.pop(0)) is not None:
                to_hidden[span] = grad
            for sum_, grad in zip(to_weights, found, strict=True):
                if grad is not None:
                    sum_ += grad
        ctx.to_hidden, ctx.to_weights = to_hidden, to_weights
        ctx.dtypes = [weight.dtype for weight in wanted]
        ctx.needs_weights = needs_weights
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.to_weights is None:
            raise RuntimeError("the chunked loss can be differentiated once")
        to_hidden = None if ctx.to_hidden is None else ctx.to_hidden.mul_(grad)
        found = iter([s.mul_(grad).to(d) for s, d in zip(ctx.to_weights, ctx.dtypes, strict=True)])
        ctx.to_hidden = ctx.to_weights = None
        to_weights = (next(found) if needs else None for needs in ctx.needs_weights)
        return (to_hidden, None, None, None, *to_weights)
