"""A loop of its own for generation: the cache grows in place, rows that have ended are left out.

`model.generate` copies the cache for each token and computes each row until the last one ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import torch
from transformers import DynamicCache, GenerationMixin

from resd.engines.base import Request, left_pad
from resd.engines.cache import GrowingLayer, growing_cache
from resd.engines.choice import SeededChoice
from resd.models.wrapped import bare, forward_extras, is_wrapped

# Rows that have ended are left out once they are so large a share: that copies the others' cache.
_ENDED = 0.25
# What prompts begin with in common is read once if it has so many tokens.
_SHARED = 32
# What a model class may do in its own way when it generates.
_OWN_WAYS = (
    "generate",
    "prepare_inputs_for_generation",
    "_prepare_cache_for_generation",
    "_prepare_position_ids_for_generation",
    "_update_model_kwargs_for_generation",
)
# Image-text models whose own ways are about images alone.
_TRIED = (
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
)


def why_not(model: Any) -> str | None:
    """Why this loop cannot drive a model; None if it can."""
    base = bare(model)
    if type(base).__name__ not in _TRIED:
        if is_wrapped(base):
            return "it takes images too, and was not tried"
        for name in _OWN_WAYS:
            if getattr(type(base), name, None) is not getattr(GenerationMixin, name, None):
                return f"it has its own {name}"
    names = inspect.signature(base.forward).parameters.keys()
    if not {"position_ids", "attention_mask"} <= names or not {"cache", "past_key_values"} & names:
        return "its forward pass takes no positions or no cache"
    if growing_cache(base.config) is None:
        return "a layer of its cache is of an unknown kind"
    return None


@torch.inference_mode()  # less work an operation than `no_grad`, and the same bits
def decode(
    model: Any, requests: Sequence[Request], limits: Sequence[int], ends: Collection[int], pad: int
) -> Iterator[tuple[int, list[int], list[float]]]:
    """Generate for all requests at once.

    Args:
        model: for which `why_not` is None.
        requests: prompts, how to sample, seeds.
        limits: most tokens of each response, at least one.
        ends: tokens that end a response.
        pad: the padding token.

    Yields:
        Number of a request, tokens, log-probs: in the order in which they end.

    Raises:
        FloatingPointError: the logits are not finite.
    """
    step = _Step(bare(model))
    device = next(model.parameters()).device
    # The same prompt is read once.
    prompts = {request.prompt_ids: None for request in requests}
    numbers = {prompt: i for i, prompt in enumerate(prompts)}
    logits, mask = _read(step, list(prompts), pad, device)
    if len(prompts) < len(requests):
        rows = torch.tensor([numbers[request.prompt_ids] for request in requests], device=device)
        logits, mask = logits[rows], mask[rows]
        step.keep(rows)
    choice = SeededChoice(requests, device)
    live = list(range(len(requests)))  # requests of the rows
    written: list[tuple[list[int], list[float]]] = [([], []) for _ in requests]
    done = [False] * len(requests)
    position = mask.sum(-1, keepdim=True)
    padded, width = not bool(mask.all()), mask.shape[1]
    mask = torch.cat([mask, mask.new_ones(len(live), max(limits))], dim=-1)
    for place in range(max(limits)):
        tokens, log_probs = choice.choose(logits, place)
        for i, token, log_prob in zip(live, tokens.tolist(), log_probs.tolist(), strict=True):
            if done[i]:
                continue
            written[i][0].append(token)
            written[i][1].append(log_prob)
            if token in ends or place + 1 >= limits[i]:
                done[i] = True
                yield i, *written[i]
        left = [row for row, i in enumerate(live) if not done[i]]
        if not left:
            return
        if len(live) - len(left) >= _ENDED * len(live):
            rows = torch.tensor(left, device=device)
            live = [live[row] for row in left]
            tokens, position, mask = tokens[rows], position[rows], mask[rows]
            choice.keep(rows)
            step.keep(rows)
        width += 1
        logits = step(tokens[:, None], mask[:, :width] if padded else None, position)
        position = position + 1


def _read(
    step: _Step, prompts: Sequence[tuple[int, ...]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read prompts, and what all of them begin with once.

    Returns:
        Logits [B, V] of the first token, and the mask [B, T] of what was read.
    """
    low, high = min(prompts), max(prompts)  # what these two share, all others share
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    shared = min(shared, len(low) - 1)  # the last token is read to see what follows
    if len(prompts) == 1 or shared < _SHARED or not step.padding_anywhere:
        shared = 0
    ids, mask = (t.to(device) for t in left_pad([prompt[shared:] for prompt in prompts], pad))
    positions = (mask.cumsum(-1) - 1).clamp(min=0) + shared
    if shared:
        begin = torch.tensor([prompts[0][:shared]], device=device)
        step(begin, torch.ones_like(begin), torch.arange(shared, device=device)[None])
        step.keep(torch.zeros(len(prompts), dtype=torch.long, device=device))
        mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=-1)
    return step(ids, mask, positions), mask


class _Step:
    """Forward passes of a model over its cache.

    Attributes:
        padding_anywhere: whether padding may stand between tokens: no layer counts how far back a
            token lies, or carries a state from token to token.
    """

    def __init__(self, base: Any) -> None:
        self._base = base
        self._cache = cast(DynamicCache, growing_cache(base.config))
        self.padding_anywhere = all(type(layer) is GrowingLayer for layer in self._cache.layers)
        names = inspect.signature(base.forward).parameters
        self._named: dict[str, Any] = {
            "cache" if "cache" in names else "past_key_values": self._cache,
            "use_cache": True,
            "return_dict": True,
            **({"logits_to_keep": 1} if "logits_to_keep" in names else {}),
        }
        self._kinds = tuple(forward_extras(base, torch.zeros(1, 1)))

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, V] of the next token after ids [B, N], whose mask [B, T] is of all tokens."""
        extras = {kind: torch.zeros_like(ids) for kind in self._kinds}
        output = self._base(
            input_ids=ids, attention_mask=mask, position_ids=positions, **extras, **self._named
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Leave these rows of the cache, in this order."""
        self._cache.reorder_cache(cast(Any, rows))
