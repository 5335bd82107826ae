"""The self-distillation loss: clipped f-divergence of student and teacher (paper Eq. 1, App. A).

Shape letters: V vocabulary, K kept tokens plus the tail bucket, `...` any leading dimensions.

Everything is computed in float32, or in float64 when an input is float64, whatever the dtype of the
model: in bfloat16 the mass of the top 100 tokens exceeds one and the tail is lost. Half-precision
logits are widened a block of rows at a time, so no full-size float32 copy outlives the call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements widened at once; bounds the temporary float32 memory (64 MiB) for any number of rows.
_BLOCK = 1 << 24

Support = Literal["student", "teacher", "both", "full"]

# A tail bucket never holds less mass than this. In float32 a sum of probabilities is not known any
# better, and without a floor a peaked student would make the log-ratio of the tail unbounded.
_TAIL_FLOOR = math.log(-math.expm1(-1e-7))


class DivergenceTerms(NamedTuple):
    """What `divergence_terms` returns, both `[...]`.

    Attributes:
        loss: the clipped f-divergence at every position.
        outside: the teacher's probability outside the support, without gradient. What lies there
            is known to the loss as one number at most: the teacher cannot say which token it means.
    """

    loss: Tensor
    outside: Tensor


def divergence_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float,
    top_k: int | None = 100,
    ratio_min: float | None = 0.2,
    ratio_max: float | None = None,
    tail: bool = True,
    support: Support = "student",
) -> DivergenceTerms:
    """Return the clipped f-divergence at every position (paper Eq. 1 and Appendix A).

    The sum runs over the `top_k` tokens that `support` names and, with `tail`, one bucket that
    holds the rest of each distribution. The teacher is clipped to `[ratio_min, ratio_max]` times
    the student and is not renormalised afterwards, so a value may be slightly negative. No gradient
    reaches the teacher or the clipping bounds.

    Args:
        student_logits: `[..., V]`, any floating dtype.
        teacher_logits: `[..., V]`.
        alpha: 0 is forward KL(teacher || student), 1 is reverse KL(student || teacher), in between
            the generalised Jensen-Shannon divergence. The mixture formula vanishes at both ends,
            which is why the ends are the exact KLs.
        top_k: tokens kept; `None`, or V and more, is the whole vocabulary (`tail` is then moot).
            Logits of minus infinity are harmless outside the support; inside it they give NaN or,
            where the student alone excludes a token, infinity.
        ratio_min: lower bound of teacher / student; `None` or 0 is no bound.
        ratio_max: upper bound of teacher / student; `None` is no bound.
        tail: False renormalises both distributions over the support instead.
        support: whose largest tokens are kept: the `student`'s (paper); the `teacher`'s; `both`,
            the largest of the maximum of the two probabilities; `full`, every token, whatever
            `top_k`. The student's cannot teach a token that the student finds improbable.

    Returns:
        Loss and outside mass, float32, or float64 if an input is float64.

    Raises:
        ValueError: for shapes that differ or a setting out of range.
    """
    _check_shapes(student_logits, teacher_logits)
    _check_settings(alpha, top_k, ratio_min, ratio_max, support)
    shape = student_logits.shape[:-1]
    if not shape:  # blocks are cut along the second to last dimension
        student_logits, teacher_logits = student_logits[None], teacher_logits[None]
    dtype = _working_dtype(student_logits, teacher_logits)
    index = _support(student_logits.detach(), teacher_logits.detach(), top_k, support, dtype)
    student, _ = _log_probs(student_logits, index, tail, dtype)
    with torch.no_grad():
        teacher, outside = _log_probs(teacher_logits, index, tail, dtype)
        teacher = _clip_ratio(teacher, student, ratio_min, ratio_max)
    loss = _f_divergence(student, teacher, alpha)
    return DivergenceTerms(loss.reshape(shape), outside.reshape(shape))


def divergence_per_token(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float,
    top_k: int | None = 100,
    ratio_min: float | None = 0.2,
    ratio_max: float | None = None,
    tail: bool = True,
    support: Support = "student",
) -> Tensor:
    """Return the loss of `divergence_terms` alone, `[...]`; arguments and errors are the same."""
    return divergence_terms(
        student_logits,
        teacher_logits,
        alpha=alpha,
        top_k=top_k,
        ratio_min=ratio_min,
        ratio_max=ratio_max,
        tail=tail,
        support=support,
    ).loss


def divergence_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    alpha: float,
    top_k: int | None = 100,
    ratio_min: float | None = 0.2,
    ratio_max: float | None = None,
    tail: bool = True,
    support: Support = "student",
) -> Tensor:
    """Return the mean of `divergence_per_token` over the tokens in `mask` (paper Eq. 1).

    Args:
        student_logits: `[..., V]`.
        teacher_logits: `[..., V]`.
        mask: `[...]`, boolean or 0/1 (or weights of a weighted mean). Positions of mask 0 are
            never read, so they may hold NaN.
        alpha: see `divergence_terms`, as for the settings below.
        top_k: tokens kept, or `None` for all.
        ratio_min: lower bound of teacher / student, or `None`.
        ratio_max: upper bound of teacher / student, or `None`.
        tail: whether the tokens left out share one bucket.
        support: whose largest tokens are kept.

    Returns:
        A scalar. An empty mask gives a zero that can be differentiated, with zero gradient.

    Raises:
        ValueError: for shapes that do not match or a setting out of range.
    """
    _check_shapes(student_logits, teacher_logits)
    if mask.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, the logits call for "
            f"{tuple(student_logits.shape[:-1])}"
        )
    keep = mask != 0
    values = divergence_per_token(
        student_logits[keep],
        teacher_logits[keep],
        alpha=alpha,
        top_k=top_k,
        ratio_min=ratio_min,
        ratio_max=ratio_max,
        tail=tail,
        support=support,
    )
    weights = mask[keep].to(values.dtype)
    return (values * weights).sum() / (weights.sum() if keep.any() else 1.0)


@torch.no_grad()
def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats at every position, as a metric: no gradient.

    Args:
        logits: `[..., V]`; minus infinity is a token of probability zero.

    Returns:
        `[...]`, float32, or float64 for float64 logits.
    """
    dtype = _working_dtype(logits, logits)
    rows = logits[None] if logits.dim() == 1 else logits
    parts = [
        torch.special.entr(block.to(dtype).softmax(dim=-1)).sum(dim=-1)
        for block in torch.split(rows, _block_rows(rows), dim=-2)
    ]
    return torch.cat(parts, dim=-1).reshape(logits.shape[:-1])


def _support(
    student: Tensor, teacher: Tensor, top_k: int | None, support: Support, dtype: torch.dtype
) -> Tensor | None:
    """Return the indices `[..., k]` of the tokens that are kept, or None for all of them."""
    if support == "full" or top_k is None or top_k >= student.shape[-1]:
        return None
    if support == "student":
        return student.topk(top_k, dim=-1).indices
    if support == "teacher":
        return teacher.topk(top_k, dim=-1).indices
    return torch.cat(
        [
            torch.maximum(ours.to(dtype).log_softmax(dim=-1), theirs.to(dtype).log_softmax(dim=-1))
            .topk(top_k, dim=-1)
            .indices
            for ours, theirs in _blocks(student, teacher)
        ],
        dim=-2,
    )


def _log_probs(
    logits: Tensor, index: Tensor | None, tail: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities `[..., K]` at `index`, then of the tail bucket; and what is outside.

    The second is the probability `[...]` of all tokens that are not at `index`, without gradient.
    """
    if index is None:
        log_probs = logits.to(dtype).log_softmax(dim=-1)
        return log_probs, torch.zeros_like(log_probs[..., 0]).detach()
    top, rest = _split(logits, index, dtype)
    outside = torch.sigmoid(rest.detach() - top.detach().logsumexp(dim=-1))
    if not tail:  # the normaliser of the whole vocabulary would cancel
        return top.log_softmax(dim=-1), outside
    log_probs = torch.cat([top, rest[..., None]], dim=-1).log_softmax(dim=-1)
    floored = log_probs[..., -1:].clamp(min=_TAIL_FLOOR)
    return torch.cat([log_probs[..., :-1], floored], dim=-1), outside


def _clip_ratio(
    teacher: Tensor, student: Tensor, ratio_min: float | None, ratio_max: float | None
) -> Tensor:
    """Bound the teacher's log-probabilities by those of the student plus a constant (App. A)."""
    if ratio_min:
        teacher = torch.maximum(teacher, student + math.log(ratio_min))
    if ratio_max is not None:
        teacher = torch.minimum(teacher, student + math.log(ratio_max))
    return teacher


def _f_divergence(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """Sum the divergence of two sets of log-probabilities `[..., K]` over K (App. A)."""
    if alpha == 0.0:
        return (teacher.exp() * (teacher - student)).sum(dim=-1)
    if alpha == 1.0:
        return (student.exp() * (student - teacher)).sum(dim=-1)
    mixture = torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))
    from_student = (student.exp() * (student - mixture)).sum(dim=-1)
    from_teacher = (teacher.exp() * (teacher - mixture)).sum(dim=-1)
    return (1.0 - alpha) * from_student + alpha * from_teacher


def _split(logits: Tensor, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the logits `[..., K]` at `index` and the logsumexp `[...]` of all the others."""
    top: Tensor
    rest: Tensor
    top, rest = _Split.apply(logits, index, dtype)  # type: ignore[no-untyped-call]
    return top, rest


class _Split(torch.autograd.Function):
    """`_split`, with a backward pass that keeps the logits as they came and makes one gradient.

    Summing the others, rather than taking one minus the mass of the top-k, keeps every digit of a
    small tail in float32. Autograd would save a float32 copy of all logits for it; this does not.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for rows, where in _blocks(logits, index):
            others = rows.to(dtype, copy=True).scatter_(-1, where, -math.inf)
            # A finite bound, so that "no mass at all" stays clear of inf - inf further on.
            parts.append(others.logsumexp(dim=-1).clamp_(min=torch.finfo(dtype).min))
        rest = torch.cat(parts, dim=-1)
        ctx.save_for_backward(logits, index, rest)
        return logits.gather(-1, index).to(dtype), rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_top, grad_rest = grads
        logits, index, rest = ctx.saved_tensors
        grad = torch.empty_like(logits)
        start = 0
        for rows, where in _blocks(logits, index):
            span = slice(start, start + rows.shape[-2])
            block = (rows.to(rest.dtype) - rest[..., span, None]).exp_()
            block.mul_(grad_rest[..., span, None])
            block.scatter_(-1, where, grad_top[..., span, :])
            grad[..., span, :] = block
            start = span.stop
        return grad, None, None


def _blocks(logits: Tensor, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = _block_rows(logits)
    return zip(torch.split(logits, size, dim=-2), torch.split(index, size, dim=-2), strict=True)


def _block_rows(logits: Tensor) -> int:
    """Return how many positions of dimension -2 fit in one block."""
    per_row = logits.numel() // max(logits.shape[-2], 1)
    return max(1, _BLOCK // max(per_row, 1))


def _working_dtype(first: Tensor, second: Tensor) -> torch.dtype:
    dtype = torch.promote_types(first.dtype, second.dtype)
    return torch.promote_types(dtype, torch.float32)


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher logits differ in shape: {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    if student_logits.dim() == 0 or student_logits.shape[-1] == 0:
        raise ValueError(f"logits need a vocabulary dimension, got {tuple(student_logits.shape)}")


def _check_settings(
    alpha: float,
    top_k: int | None,
    ratio_min: float | None,
    ratio_max: float | None,
    support: str,
) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for the vocabulary, got {top_k}")
    if ratio_min is not None and not 0.0 <= ratio_min < math.inf:
        raise ValueError(f"ratio_min must be finite and not negative, or None, got {ratio_min}")
    if ratio_max is not None and not 0.0 < ratio_max < math.inf:
        raise ValueError(f"ratio_max must be finite and positive, or None, got {ratio_max}")
    if ratio_min is not None and ratio_max is not None and ratio_min > ratio_max:
        raise ValueError(f"ratio_min {ratio_min} is above ratio_max {ratio_max}")
    if support not in get_args(Support):
        known = ", ".join(get_args(Support))
        raise ValueError(f"support must be one of {known}, got {support!r}")
