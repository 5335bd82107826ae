"""Stand-ins of model families: chat templates and marks on the lab's tokenizer; tiny models."""

from __future__ import annotations

from typing import Any

LAB_TOKENS = "<|user|> <|assistant|> <|system|>"


def tokenizer(template: str, special: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> Any:
    """The lab's tokenizer with more tokens (special ones and plain ones) and another template."""
    from transformers import AutoTokenizer

    from resd.models.load import LAB_MODEL

    made = AutoTokenizer.from_pretrained(LAB_MODEL)
    made.add_tokens(list(special), special_tokens=True)
    made.add_tokens(list(plain), special_tokens=False)
    made.chat_template = template
    return made


def turns(before: str, after: str, generation: str, thoughts: str = "") -> str:
    """A chat template: marks around each turn (ROLE stands for its role), and the header."""
    opening = before.replace("ROLE", "' + m['role'] + '")
    return (
        "{% for m in messages %}{{ '"
        + opening
        + "' }}"
        + (
            "{% if m['reasoning_content'] %}{{ '"
            + thoughts.replace("THOUGHT", "' + m['reasoning_content'] + '")
            + "' }}{% endif %}"
            if thoughts
            else ""
        )
        + "{{ m['content'] }}{{ '"
        + after
        + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + generation + "' }}{% endif %}"
    )


CHATML = turns("<|im_start|>ROLE\\n", "<|im_end|>\\n", "<|im_start|>assistant\\n")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
