"""Generation with `transformers`, on the very model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from resd.engines.base import Completion, Sampling
from resd.errors import UserError


class HFEngine:
    """`model.generate` over left-padded batches of similar length.

    Args:
        model: the student (or any model to sample from).
        tokenizer: with end and padding tokens.
        batch_size: prompts generated at once.
        max_context: most tokens of prompt and completion together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        max_context: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_context = max_context
        self._end_ids = end_token_ids(model, tokenizer)
        self._pad_id = pad_token_id(tokenizer, self._end_ids)

    def sync(self, model: torch.nn.Module) -> None:
        """Sample from another model from now on; weights are shared, not copied."""
        self._model = model  # type: ignore[assignment]

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """One completion for each prompt, in order; raises ValueError if one fills the context."""
        if not prompts:
            return []
        if max(map(len, prompts)) >= self._max_context:
            raise ValueError("a prompt fills the whole context; leave it out before generating")
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, Completion] = {}
        training = self._model.training
        self._model.eval()
        torch.manual_seed(sampling.seed)
        try:
            for start in range(0, len(order), self._batch_size):
                chunk = order[start : start + self._batch_size]
                done = self._batch([prompts[i] for i in chunk], sampling)
                results.update(zip(chunk, done, strict=True))
        finally:
            self._model.train(training)
        return [results[i] for i in range(len(prompts))]

    def _batch(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad_id)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        model: Any = self._model
        device = model.device
        limit = min(sampling.max_new_tokens, self._max_context - width)
        try:
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._config(sampling, limit),
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise UserError(
                "the model gives no finite probabilities any more: its weights have diverged; "
                "start again with a lower train.lr"
            ) from None
        return [self._completion(row) for row in output[:, width:].tolist()]

    def _config(self, sampling: Sampling, limit: int) -> GenerationConfig:
        # Every sampling value is given: what is left out would come from the model's own
        # generation config (a top-k of 20, say) and silently change the policy.
        greedy = sampling.temperature == 0
        extra: dict[str, Any] = (
            {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p}
        )
        return GenerationConfig(
            do_sample=not greedy,
            top_k=0 if not greedy else None,
            repetition_penalty=1.0,
            max_new_tokens=limit,
            eos_token_id=self._end_ids,
            pad_token_id=self._pad_id,
            **extra,
        )

    def _completion(self, row: list[int]) -> Completion:
        end = next((i for i, token in enumerate(row) if token in self._end_ids), None)
        ids = row if end is None else row[: end + 1]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(tuple(ids), str(text), "length" if end is None else "stop")


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All end tokens: the tokenizer's and those of the model's generation config."""
    config = getattr(model, "generation_config", None)
    ids = config.eos_token_id if config is not None else None
    found = [ids] if isinstance(ids, int) else list(ids or [])
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    return sorted(set(found))


def pad_token_id(tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> int:
    """The padding token, or an end token where there is none (it is masked anyway)."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0])
