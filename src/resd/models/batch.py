"""Batches of responses: right-aligned token ids, and the forward pass that scores them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resd.engines.base import left_pad
from resd.models.wrapped import bare, forward_extras


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
    inputs, keep = scored_inputs(model, prompts, responses, pad_id)
    logits: torch.Tensor = model(**inputs).logits
    return logits[:, -keep:-1]


def scored_inputs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
) -> tuple[dict[str, Any], int]:
    """What a forward pass that scores responses is given, and how many positions count at its end.

    The last position scores what would follow the responses: leave it out.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    ids, mask = left_pad(rows, pad_id)
    device = next(model.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    keep = max(map(len, responses)) + 1
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "use_cache": False,
        **forward_extras(model, ids),
    }
    if "logits_to_keep" in inspect.signature(bare(model).forward).parameters:
        inputs["logits_to_keep"] = keep
    return inputs, keep
