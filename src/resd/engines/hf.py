"""Generation with `transformers`, on the very model that is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase

from resd.backend import Backend
from resd.config import RunConfig
from resd.engines.base import EngineKind, OnDone, Request, left_pad
from resd.engines.choice import ChoiceProcessor, SeededChoice
from resd.engines.completion import CompletionReader, check_room, diverged
from resd.engines.decode import decode, why_not
from resd.engines.tokens import embedding_rows, pad_token_id
from resd.models.wrapped import bare
from resd.types import Completion

# Number of a request, the tokens that were chosen, their log-probs.
_Row = tuple[int, list[int], list[float]]


class HFEngine:
    """Generates in left-padded batches of prompts of similar length.

    A model that `decode` cannot drive goes through `model.generate`.

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
        self._slow: dict[type, str | None] = {}
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
        """One completion for each request, in order; `on_done` hears of them as they end.

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
        batch = self._decoded if self._own_loop() else self._generated
        try:
            for start in range(0, len(order), self._batch_size):
                chunk = order[start : start + self._batch_size]
                for i, ids, log_probs in batch([requests[i] for i in chunk]):
                    results[chunk[i]] = self._reader.read(requests[chunk[i]], ids, log_probs)
                    if on_done is not None:
                        on_done(chunk[i], results[chunk[i]])
        except FloatingPointError:
            raise diverged() from None
        finally:
            self._model.train(training)
        return [results[i] for i in range(len(requests))]

    def _own_loop(self) -> bool:
        kind = type(bare(self._model))
        if kind not in self._slow:
            self._slow[kind] = why_not(self._model)
            if self._slow[kind] is not None:
                warnings.warn(
                    f"{kind.__name__} generates by transformers' own loop, which is slower: "
                    f"{self._slow[kind]}",
                    stacklevel=3,
                )
        return self._slow[kind] is None

    def _decoded(self, requests: Sequence[Request]) -> Iterator[_Row]:
        limits = [
            min(request.sampling.max_new_tokens, self._max_context - len(request.prompt_ids))
            for request in requests
        ]
        return decode(self._model, requests, limits, set(self._reader.end_ids), self.pad_id)

    def _generated(self, requests: Sequence[Request]) -> Iterator[_Row]:
        ids, mask = left_pad([request.prompt_ids for request in requests], self.pad_id)
        device, width = self._model.device, ids.shape[1]
        longest = max(request.sampling.max_new_tokens for request in requests)
        choice = ChoiceProcessor(SeededChoice(requests, device), width)
        config = self._config(min(longest, self._max_context - width))
        with _only(config, self._model):
            output = self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                logits_processor=LogitsProcessorList([choice]),
                # Processes have all the weights here, and generate different lengths.
                synced_gpus=False,
            )
        rows = zip(output[:, width:].tolist(), choice.log_probs(), strict=True)
        yield from ((i, *row) for i, row in enumerate(rows))

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
