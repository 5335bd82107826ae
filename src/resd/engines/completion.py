"""From the tokens that an engine chose to a `Completion`: the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resd.engines.base import Request
from resd.engines.response import ResponseReader
from resd.engines.tokens import end_token_ids
from resd.errors import UserError
from resd.types import Completion


class CompletionReader:
    """Cuts tokens off at the end, and reads what they say.

    Args:
        model: with the tokenizer it says which tokens end a response.
        tokenizer: the model's.

    Attributes:
        end_ids: tokens that end a response, in ascending order.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.end_ids = end_token_ids(model, tokenizer)
        self._reader = ResponseReader(tokenizer)

    def read(self, request: Request, row: Sequence[int], log_probs: Sequence[float]) -> Completion:
        """The completion of a request.

        Args:
            request: what was asked for.
            row: ids of the tokens chosen; what follows an end token is padding.
            log_probs: of these tokens.
        """
        end = next((i for i, token in enumerate(row) if token in self.end_ids), None)
        ids = list(row) if end is None else list(row[: end + 1])
        if len(ids) > request.sampling.max_new_tokens:
            ids, end = ids[: request.sampling.max_new_tokens], None
        # An end token is no part of the text, whether its tokenizer calls it special or not.
        said = ids if end is None else ids[:-1]
        read = self._reader.read(request.prompt_ids, said, end is not None)
        return Completion(
            token_ids=tuple(ids),
            text=read.text,
            finish_reason="length" if end is None else "stop",
            log_probs=tuple(log_probs[: len(ids)]),
            answer=read.answer,
        )


def check_room(requests: Sequence[Request], max_context: int) -> None:
    """Refuse prompts that leave no room for a token.

    Raises:
        ValueError: a prompt fills the whole context.
    """
    if max(len(request.prompt_ids) for request in requests) >= max_context:
        raise ValueError("a prompt fills the whole context; leave it out before generating")


def diverged() -> UserError:
    """What to say where probabilities are not finite."""
    return UserError(
        "the model gives no finite probabilities any more: its weights have diverged; "
        "start again with a lower train.lr"
    )
