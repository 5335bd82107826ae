"""The seam to generation: `Engine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        max_new_tokens: most tokens of a completion.
        seed: the same seed, prompts and weights give the same completions.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        token_ids: with the end token, if it was reached.
        text: decoded without special tokens.
        finish_reason: "stop", or "length" if the limit cut it off.
        log_probs: of each token under the sampler; None if the sampler shares the trainer's
            weights, so that the trainer's own are as good.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    log_probs: tuple[float, ...] | None = None


class Engine(Protocol):
    """Generates with the current weights."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """One completion for each prompt of token ids, in order."""
        ...

    def sync(self, model: torch.nn.Module) -> None:
        """Take over the weights of a model."""
        ...
