"""Choosing the next token: one uniform number a token, drawn from the request's own seed.

A token is the point at which the running sum of the probabilities passes that number, so a
completion does not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from resd.engines.base import Request

# A nucleus is looked for among so many tokens first: sorting a whole vocabulary takes longer.
_FEW = (64, 1024)


class SeededChoice:
    """Chooses a token for each of some requests, again and again.

    Args:
        requests: one a row.
        device: of the logits.
    """

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        samplings = [request.sampling for request in requests]
        self._greedy = torch.tensor([s.temperature == 0 for s in samplings], device=device)
        self._temperature = torch.tensor(
            [[s.temperature or 1.0] for s in samplings], dtype=torch.float32, device=device
        )
        self._top_p = torch.tensor([[s.top_p] for s in samplings], device=device)
        longest = max(s.max_new_tokens for s in samplings)
        numbers = np.stack([_uniforms(request.seed, longest) for request in requests])
        self._uniforms = torch.from_numpy(numbers).to(device)

    def keep(self, rows: Tensor) -> None:
        """Leave these rows, in this order."""
        self._greedy, self._temperature = self._greedy[rows], self._temperature[rows]
        self._top_p, self._uniforms = self._top_p[rows], self._uniforms[rows]

    def choose(self, logits: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probs [B], before temperature and nucleus.

        Args:
            logits: [B, V] of the next token.
            place: tokens that each response has already.

        Raises:
            FloatingPointError: the logits are not finite.
        """
        raw = logits.float().log_softmax(dim=-1)
        best, chosen = raw.max(dim=-1, keepdim=True)
        if not bool(best.isfinite().all()):
            raise FloatingPointError("the logits are not finite")
        if not bool(self._greedy.all()):
            probs = (raw / self._temperature).softmax(dim=-1)
            drawn = _draw(_nucleus(probs, self._top_p), self._uniforms[:, place, None])
            chosen = torch.where(self._greedy[:, None], chosen, drawn)
        return chosen[:, 0], raw.gather(-1, chosen)[:, 0]


class ChoiceProcessor(LogitsProcessor):
    """Leaves one token a row, so that the greedy search of `model.generate` takes it.

    Args:
        choice: of the rows.
        width: tokens of the padded prompts.
    """

    def __init__(self, choice: SeededChoice, width: int) -> None:
        self._choice, self._width = choice, width
        self._log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Minus infinity [B, V] everywhere but at the chosen tokens."""
        chosen, log_probs = self._choice.choose(scores, input_ids.shape[1] - self._width)
        self._log_probs.append(log_probs.cpu())
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen[:, None], 0.0)

    def log_probs(self) -> list[list[float]]:
        """Log-probs of the chosen tokens, a list a row (see `Completion`)."""
        rows: list[list[float]] = torch.stack(self._log_probs, dim=1).tolist()
        return rows


def _uniforms(seed: int, number: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).random(number)


def _nucleus(probs: Tensor, top_p: Tensor) -> Tensor:
    """Probabilities [B, V] with zero outside the smallest set that holds `top_p` [B, 1].

    Tokens as probable as the least probable one of the set stay too: which of equals came first
    would depend on rounding.
    """
    if bool((top_p >= 1.0).all()):
        return probs
    for number in (*_FEW, probs.shape[-1]):
        few = probs.topk(min(number, probs.shape[-1]), dim=-1).values
        sums = few.double().cumsum(dim=-1)
        if bool((sums[:, -1:] >= top_p).all()):
            break
    last = (sums - few < top_p).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return torch.where(probs >= few.gather(-1, last), probs, 0.0)


def _draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The token [B, 1] at which the running sum of `probs` [B, V] passes the share `uniforms`."""
    sums = probs.double().cumsum(dim=-1)
    found = torch.searchsorted(sums, uniforms * sums[:, -1:], right=True)
    return found.clamp(max=probs.shape[-1] - 1)
