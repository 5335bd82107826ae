"""The lab's tokenizer: byte-level BPE, a chat template, and prompts' JSON in few tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

USER, ASSISTANT, SYSTEM, END, PAD = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# One token each: a reflection costs a dozen tokens rather than sixty, and is the same JSON.
JSON_PIECES = (
    '{"what_went_wrong":"',
    '","what_to_do":"',
    '","tags":[',
    '{"tags":[',
    '{"id":"',
    '","tag":"helpful"}',
    '","tag":"harmful"}',
    '","tag":"neutral"}',
    '{"operations":[',
    '{"op":"ADD","section":"code","content":"',
    '{"op":"ADD","section":"calc","content":"',
    '{"op":"UPDATE","id":"',
    '{"op":"REMOVE","id":"',
    '","content":"',
    '"}',
    "]}",
)
_PATTERN = r"[a-z]+-00| ?[A-Za-z]+:?| ?\d| ?[^\sA-Za-z\d]|\s"


def turn(text: str) -> str:
    """A user message in the chat format, up to and with the assistant header."""
    return f"{USER}{text}{ASSISTANT}"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Train the tokenizer; deterministic for the same texts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(JSON_PIECES),
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in JSON_PIECES])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, SYSTEM]})
    fast.chat_template = CHAT_TEMPLATE
    return fast
