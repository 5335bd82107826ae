"""Generation with `transformers`, on the very model that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase

from resd.engines.base import Request, left_pad
from resd.engines.choice import SeededChoice
from resd.engines.response import ResponseReader
from resd.engines.tokens import embedding_rows, end_token_ids, pad_token_id
from resd.errors import UserError
from resd.types import Completion


class HFEngine:
    """`model.generate` over left-padded batches of similar length.

    Args:
        model: the student (or any model to sample from).
        tokenizer: the model's; with the model it says which tokens end a response, which pads, and
            what is thinking.
        batch_size: prompts generated at once.
        max_context: most tokens of prompt and completion together.
    """

    shares_weights = True

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        max_context: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_context = max_context
        self._end_ids = end_token_ids(model, tokenizer)
        self.pad_id = pad_token_id(tokenizer, self._end_ids, embedding_rows(model))
        self._reader = ResponseReader(tokenizer)

    def sync(self, model: torch.nn.Module, version: str) -> None:
        """Sample from another model from now on; weights are shared, not copied."""
        self._model = model

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion for each request, in order.

        Raises:
            ValueError: a prompt fills the whole context.
            UserError: the model's probabilities are not finite any more.
        """
        if not requests:
            return []
        if max(len(request.prompt_ids) for request in requests) >= self._max_context:
            raise ValueError("a prompt fills the whole context; leave it out before generating")
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        results: dict[int, Completion] = {}
        training = self._model.training
        self._model.eval()
        try:
            for start in range(0, len(order), self._batch_size):
                chunk = order[start : start + self._batch_size]
                done = self._batch([requests[i] for i in chunk])
                results.update(zip(chunk, done, strict=True))
        finally:
            self._model.train(training)
        return [results[i] for i in range(len(requests))]

    def _batch(self, requests: Sequence[Request]) -> list[Completion]:
        ids, mask = left_pad([request.prompt_ids for request in requests], self.pad_id)
        device, width = self._model.device, ids.shape[1]
        longest = max(request.sampling.max_new_tokens for request in requests)
        choice = SeededChoice(requests, width, device)
        config = self._config(min(longest, self._max_context - width))
        try:
            with _only(config, self._model):
                output = self._model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([choice]),
                )
        except FloatingPointError:
            raise UserError(
                "the model gives no finite probabilities any more: its weights have diverged; "
                "start again with a lower train.lr"
            ) from None
        rows = zip(requests, output[:, width:].tolist(), choice.log_probs(), strict=True)
        return [self._completion(row, request, log_probs) for request, row, log_probs in rows]

    def _config(self, limit: int) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            use_cache=True,
            max_new_tokens=limit,
            eos_token_id=self._end_ids,
            pad_token_id=self.pad_id,
        )

    def _completion(
        self,
        row: Sequence[int],
        request: Request | None = None,
        log_probs: Sequence[float] | None = None,
    ) -> Completion:
        end = next((i for i, token in enumerate(row) if token in self._end_ids), None)
        ids = list(row) if end is None else list(row[: end + 1])
        if request is not None and len(ids) > request.sampling.max_new_tokens:
            ids, end = ids[: request.sampling.max_new_tokens], None
        prompt = request.prompt_ids if request is not None else ()
        # An end token is no part of the text, whether its tokenizer calls it special or not.
        said = ids if end is None else ids[:-1]
        read = self._reader.read(prompt, said, end is not None)
        return Completion(
            token_ids=tuple(ids),
            text=read.text,
            finish_reason="length" if end is None else "stop",
            log_probs=tuple(log_probs[: len(ids)]) if log_probs is not None else None,
            answer=read.answer,
        )


@contextmanager
def _only(config: GenerationConfig, model: Any) -> Iterator[None]:
    """Let no other generation config have a say.

    `generate()` takes what a config leaves out from the model's own: tokens to suppress, a least
    length, stop strings. That would silently change the policy, or crash.
    """
    holders = [m for m in model.modules() if vars(m).get("generation_config") is not None]
    own = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = config
        yield
    finally:
        for holder, its in zip(holders, own, strict=True):
            holder.generation_config = its
