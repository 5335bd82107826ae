"""The seam to generation: `Engine`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from resd.backend import Backend
from resd.config import RunConfig
from resd.types import Completion

# Called with the place of a request in the list, and its completion.
OnDone = Callable[[int, Completion], None]


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        max_new_tokens: most tokens of a completion.
    """

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Request:
    """One completion that is asked for.

    Attributes:
        prompt_ids: token ids of the prompt, with the assistant header.
        seed: of this completion alone: it is the same in any batch and in any order (up to
            the rounding of the logits, which a batch's shape may change).
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int


class Engine(Protocol):
    """Generates with the weights it was last given.

    Attributes:
        shares_weights: True if it samples from the very module that is trained, so that the
            trainer's own log-probs are as good as the sampler's.
    """

    shares_weights: bool

    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None
    ) -> list[Completion]:
        """One completion for each request, in order.

        Args:
            requests: what is asked for.
            on_done: called in this thread once for each request, when its completion is there,
                while others are still generated.
        """
        ...

    def sync(self, model: torch.nn.Module, version: str) -> None:
        """Take over the weights of a model.

        Args:
            model: holds them now.
            version: names them: the same version is the same weights, and need not be copied
                again.
        """
        ...

    def rest(self) -> bool:
        """Nothing is generated for a while: give back what memory can be given back.

        Returns:
            Whether the weights are gone with it, and must be handed over again before `generate`.
        """
        ...

    def close(self) -> None:
        """End what the engine has started; nothing is generated any more."""
        ...


@dataclass(frozen=True)
class EngineKind:
    """What a file of an engine says of it.

    Attributes:
        options: names of the options in `EngineConfig` that it reads.
        check: raises UserError if it cannot work, before a model is loaded; gets the configuration
            and the most tokens of prompt and response together.
        make: an engine for a model; gets the configuration, the model, its tokenizer, the same
            number of tokens, and the processes that share the model.
    """

    options: tuple[str, ...]
    check: Callable[[RunConfig, int], None]
    make: Callable[[RunConfig, Any, Any, int, Backend], Engine]


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] and attention mask [B, T], padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row), dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return ids, mask
