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
        # Asked of the requests, not of the tensors: an answer from a device takes time.
        self._all_greedy = all(s.temperature == 0 for s in samplings)
        self._tempered = any(s.temperature not in (0.0, 1.0) for s in samplings)
        self._cut = any(s.top_p < 1.0 for s in samplings)
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
        if not self._all_greedy:
            probs = (raw / self._temperature if self._tempered else raw).softmax(dim=-1)
            uniforms = self._uniforms[:, place, None]
            drawn = _drawn(probs, self._top_p, uniforms) if self._cut else _draw(probs, uniforms)
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


def _drawn(probs: Tensor, top_p: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [B, 1] drawn of the smallest sets of `probs` [B, V] that hold `top_p` [B, 1].

    Tokens as probable as the least probable one of a set belong to it too: which of equals came
    first would depend on rounding. A token is drawn in the order of the vocabulary, so that it is
    the same however many were looked at.
    """
    for number in _FEW:
        if number < probs.shape[-1]:
            found = _drawn_of_few(*probs.topk(number, dim=-1), top_p, uniforms)
            if found is not None:
                return found
    every = probs.sort(dim=-1, descending=True).values
    least = _least(every, top_p)
    return _draw(torch.where(probs >= least, probs, 0.0), uniforms)


def _drawn_of_few(few: Tensor, places: Tensor, top_p: Tensor, uniforms: Tensor) -> Tensor | None:
    """As `_drawn`, of the largest [B, K] and their places; None if more must be looked at."""
    least = _least(few, top_p)
    # A set that ends with the last of the few may go on beyond them.
    if not bool((few[:, -1:] < least).all()):
        return None
    places, order = places.sort(dim=-1)
    few = few.gather(-1, order)
    return places.gather(-1, _draw(torch.where(few >= least, few, 0.0), uniforms))


def _least(largest: Tensor, top_p: Tensor) -> Tensor:
    """The least probability [B, 1] of each set, of the largest [B, K]; if need be the last."""
    sums = largest.double().cumsum(dim=-1)
    last = (sums - largest < top_p).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return largest.gather(-1, last)


def _draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The place [B, 1] at which the running sum of `probs` [B, K] passes the share `uniforms`."""
    sums = probs.double().cumsum(dim=-1)
    found = torch.searchsorted(sums, uniforms * sums[:, -1:], right=True)
    return found.clamp(max=probs.shape[-1] - 1)
