"""The chat format: messages to token ids with the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from resd.types import ChatMessage


class ChatFormat:
    """Turns chat messages into token ids with the tokenizer's own chat template.

    Args:
        tokenizer: the student's.
        thinking: passed to the template as `enable_thinking`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinking: bool = True) -> None:
        self.tokenizer = tokenizer
        self._thinking = thinking

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a prompt, with the assistant header."""
        text = self.tokenizer.apply_chat_template(
            [{"role": m["role"], "content": m["content"]} for m in messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self._thinking,
        )
        # The template writes the special tokens itself.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def count(self, messages: Sequence[ChatMessage]) -> int:
        """Tokens of a prompt."""
        return len(self.encode(messages))

    def count_text(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
