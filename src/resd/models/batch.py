"""Batches of responses: right-aligned token ids, and the forward pass that scores them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resd.engines.base import left_pad
from resd.models.wrapped import forward_extras


@dataclass(frozen=True)
class Responses:
    """Right-aligned responses of a micro-batch.

    Attributes:
        token_ids [B, R]: the responses, padded on the left.
        mask [B, R]: which of them are tokens.
    """

    token_ids: torch.Tensor
    mask: torch.Tensor


def align(responses: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Responses:
    """Responses padded on the left to a common length R."""
    ids, mask = left_pad(responses, pad_id)
    return Responses(ids.to(device), mask.bool().to(device))


def response_logits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
) -> torch.Tensor:
    """Logits [B, R, V] that predict each response token, right-aligned as by `align`.

    The whole sequence is padded on the left, so the responses end at one column and the model
    makes logits for the last R + 1 positions alone.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    ids, mask = left_pad(rows, pad_id)
    device = next(model.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    keep = max(map(len, responses)) + 1
    extra = {"logits_to_keep": keep} if _keeps_logits(model) else {}
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
        **forward_extras(model, ids),
        **extra,
    )
    logits: torch.Tensor = output.logits
    return logits[:, -keep:-1]


def _keeps_logits(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
