"""Chat templates of many families, written out, and small tokenizers that go with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

GENERATE = "{% if add_generation_prompt %}"


@dataclass(frozen=True)
class Style:
    """A chat template: its special tokens, and what opens a user's or an assistant's turn.

    Attributes:
        user, assistant: how a turn opens, in special tokens (then counted among ids) or plain text.
        system: what opens a system message, if anything does.
    """

    template: str
    user: str
    assistant: str
    special: tuple[str, ...] = ()
    eos: str = "</s>"
    bos: str | None = "<s>"
    system: str = ""
    plain: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


STYLES = {
    "chatml": Style(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        + GENERATE
        + "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}",
        "<|im_start|>user",
        "<|im_start|>assistant",
        ("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        bos=None,
        system="<|im_start|>system",
    ),
    "llama 3": Style(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        + GENERATE
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|start_header_id|>user",
        "<|start_header_id|>assistant",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        system="<|start_header_id|>system",
    ),
    "zephyr": Style(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
        "{% endfor %}" + GENERATE + "{{ '<|assistant|>\n' }}{% endif %}",
        "<|user|>",
        "<|assistant|>",
        system="<|system|>",
        plain=("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "llama 2": Style(
        "{% if messages[0].role == 'system' %}{% set head = '<<SYS>>\n' + messages[0].content + "
        "'\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}{% set head = '' %}"
        "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (head if loop.first else '') }}{{ m.content.strip() }} [/INST]"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "[INST]",
        "[/INST]",
        system="<<SYS>>",
        plain=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "vicuna": Style(
        "{% if messages[0].role != 'system' %}A chat between a curious user and an assistant. "
        "{% endif %}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}"
        "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% else %}"
        "{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
        + GENERATE
        + "{{ 'ASSISTANT:' }}{% endif %}",
        "USER:",
        "ASSISTANT:",
        plain=("USER:", "ASSISTANT:"),
    ),
    "gemma": Style(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
        + GENERATE
        + "{{ '<start_of_turn>model\n' }}{% endif %}",
        "<start_of_turn>user",
        "<start_of_turn>model",
        ("<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos="<bos>",
    ),
    "mistral": Style(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + '[/INST]' }}{% elif m.role == 'system' %}"
        "{{ '[SYSTEM_PROMPT] ' + m.content + '[/SYSTEM_PROMPT]' }}{% else %}"
        "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "[INST]",
        "[/INST]",
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        system="[SYSTEM_PROMPT]",
    ),
    "harmony": Style(
        "{% for m in messages %}{{ '<|start|>' + ('developer' if m.role == 'system' else m.role) }}"
        "{% if m.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
        "{{ '<|message|>' + m.content + '<|end|>' }}{% endfor %}"
        + GENERATE
        + "{{ '<|start|>assistant' }}{% endif %}",
        "<|start|>user",
        "<|start|>assistant",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        eos="<|return|>",
        bos=None,
        system="<|start|>developer",
    ),
    "alpaca": Style(
        "{% if messages[0].role != 'system' %}Below is an instruction that describes a task.\n\n"
        "{% endif %}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
        "{% elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}{% else %}"
        "{{ '### Response:\n' + m.content + eos_token + '\n\n' }}{% endif %}{% endfor %}"
        + GENERATE
        + "{{ '### Response:\n' }}{% endif %}",
        "### Instruction:",
        "### Response:",
        plain=("### Instruction:", "### Response:"),
    ),
    "deepseek": Style(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '<｜User｜>' + m.content }}{% elif m.role == 'system' %}{{ m.content }}{% else %}"
        "{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif %}{% endfor %}"
        + GENERATE
        + "{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        "<｜User｜>",
        "<｜Assistant｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        plain=("<｜User｜>", "<｜Assistant｜>"),
        # Tokens of their own, but not special ones.
        added=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "bare words": Style(
        "{% for m in messages %}{{ m.role + '\n' + m.content + '\n\n' }}{% endfor %}"
        + GENERATE
        + "{{ 'assistant\n' }}{% endif %}",
        "\nuser\n",
        "\nassistant\n",
        bos=None,
        plain=("user", "assistant", "system"),
        system="\nsystem\n",
    ),
}


def tokenizer(style: Style) -> Any:
    """A tokenizer of bytes with the style's special tokens and chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=style.eos, **({"bos_token": style.bos} if style.bos else {})
    )
    fast.add_special_tokens({"additional_special_tokens": list(style.special)})
    fast.add_tokens(list(style.added))
    fast.chat_template = style.template
    return fast
