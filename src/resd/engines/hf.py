"""Generation with `transformers`, on the very model that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase

from resd.backend import Backend
from resd.config import RunConfig
from resd.engines.base import EngineKind, OnDone, Request, left_pad
from resd.engines.choice import SeededChoice
from resd.engines.completion import CompletionReader, check_room, diverged
from resd.engines.tokens import embedding_rows, pad_token_id
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
        self._reader = CompletionReader(model, tokenizer)
        self.pad_id = pad_token_id(tokenizer, self._reader.end_ids, embedding_rows(model))

    def sync(self, model: torch.nn.Module, version: str) -> None:
        """Sample from another model from now on; weights are shared, not copied."""
        self._model = model

    def rest(self) -> bool:
        """Nothing to give back: the weights are the trainer's."""
        return False

    def close(self) -> None:
        """Nothing to end."""

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None
    ) -> list[Completion]:
        """One completion for each request, in order; `on_done` hears of them batch by batch.

        Raises:
            ValueError: a prompt fills the whole context.
            UserError: the model's probabilities are not finite any more.
        """
        if not requests:
            return []
        check_room(requests, self._max_context)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        results: dict[int, Completion] = {}
        training = self._model.training
        self._model.eval()
        try:
            for start in range(0, len(order), self._batch_size):
                chunk = order[start : start + self._batch_size]
                done = self._batch([requests[i] for i in chunk])
                results.update(zip(chunk, done, strict=True))
                if on_done is not None:
                    for i in sorted(chunk):
                        on_done(i, results[i])
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
                    # Processes have all the weights here, and generate different lengths.
                    synced_gpus=False,
                )
        except FloatingPointError:
            raise diverged() from None
        rows = zip(requests, output[:, width:].tolist(), choice.log_probs(), strict=True)
        return [self._reader.read(request, row, log_probs) for request, row, log_probs in rows]

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
            eos_token_id=self._reader.end_ids,
            pad_token_id=self.pad_id,
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


def _make(
    config: RunConfig, model: Any, tokenizer: Any, context: int, backend: Backend
) -> HFEngine:
    return HFEngine(model, tokenizer, config.rollout.batch_size, context)


ENGINE = EngineKind(options=(), check=lambda config, context: None, make=_make)
