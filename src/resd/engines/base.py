"""The seam to generation: `Engine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from resd.types import Completion


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


class Engine(Protocol):
    """Generates with the current weights."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """One completion for each prompt of token ids, in order."""
        ...

    def sync(self, model: torch.nn.Module) -> None:
        """Take over the weights of a model."""
        ...


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] and attention mask [B, T], padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row), dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return ids, mask
