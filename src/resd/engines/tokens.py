"""End and padding tokens: what the model's files say, held against the model's embedding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from resd.errors import UserError

_PROBE = "zqxanswerzqx"
# In these formats the mark that closes a turn also closes the thinking, which goes before.
_MESSAGE_MARKS = ("<|channel|>", "<|message|>")
_INSIDE_A_TURN = ("<|end|>", "<|message|>", "<|channel|>", "<|constrain|>")
_THOUGHT = "zqxthoughtzqx"


def embedding_rows(model: Any) -> int:
    """Rows of the token embedding: token ids from there on do not exist for the model."""
    return int(model.get_input_embeddings().weight.shape[0])


def as_ids(value: Any) -> list[int]:
    """Token ids of a field that holds one, several or none."""
    values = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """All tokens that end a response, in ascending order.

    They are the tokenizer's, those of the generation config and of the config, and the token that
    the chat template writes after an assistant's turn; ids beyond the embedding are left out.

    Raises:
        UserError: none is left.
    """
    found = set(as_ids(tokenizer.eos_token_id))
    for config in (
        getattr(model, "generation_config", None),
        model.config,
        model.config.get_text_config(),
    ):
        found.update(as_ids(getattr(config, "eos_token_id", None)))
    turn = end_of_turn(tokenizer)
    if turn is not None:
        found.add(turn)
    rows = embedding_rows(model)
    kept = sorted(i for i in found if 0 <= i < rows)
    if not kept:
        raise UserError(
            f"model.path: every end token of the model ({sorted(found)}) lies beyond its "
            f"embedding of {rows} rows: no response could end; the tokenizer belongs to another "
            "model"
        )
    return kept


def pad_token_id(tokenizer: Any, end_ids: Sequence[int], rows: int | None = None) -> int:
    """The padding token, or an end token where there is none that the model knows.

    Padding is masked wherever it stands: any token of the embedding serves.

    Args:
        tokenizer: the student's.
        end_ids: end tokens, at least one.
        rows: of the token embedding, if known.
    """
    own = tokenizer.pad_token_id
    if own is not None and own >= 0 and (rows is None or own < rows):
        return int(own)
    return int(end_ids[0])


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that the chat template writes after an assistant's answer.

    Instruct models end their turns with it whatever the files call the end token: `<|im_end|>`
    where `eos_token` is `<|endoftext|>`. Where the template writes nothing after a turn, the mark
    that opens the user's next turn ends this one (GLM).

    Returns:
        None if the answer is followed by plain text, by nothing, or by a mark that stands inside
        turns too.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    after = _after_answer(tokenizer, ())
    if after is not None and not after.strip():
        after = _after_answer(tokenizer, ("user",))
    marks = added_tokens(tokenizer)
    if not after or not after.strip():
        return None
    mark = _leading(after, marks)
    if mark is None or (all(m in marks for m in _MESSAGE_MARKS) and mark in _INSIDE_A_TURN):
        return None
    thought = _render(tokenizer, ["user", "assistant"], _THOUGHT)
    if thought is not None and mark == _leading(thought.rpartition(_THOUGHT)[2], marks):
        return None
    return marks[mark]


def _leading(text: str, marks: Iterable[str]) -> str | None:
    """The longest mark that a text begins with, after white space."""
    fitting = [mark for mark in marks if mark and text.lstrip().startswith(mark)]
    return max(fitting, key=len, default=None)


def _after_answer(tokenizer: Any, further: Sequence[str]) -> str | None:
    """What a rendered chat holds after an assistant's answer; None if it cannot be rendered."""
    text = _render(tokenizer, ["user", "assistant", *further])
    return None if text is None else text.rpartition(_PROBE)[2]


def _render(tokenizer: Any, roles: Sequence[str], thought: str | None = None) -> str | None:
    """A chat whose assistant answers the probe; None if the template does not show it."""
    for in_parts in (False, True):
        messages: list[dict[str, Any]] = []
        for role in roles:
            text = _PROBE if role == "assistant" else "hello"
            message: dict[str, Any] = {"role": role, "content": text}
            if in_parts:
                message["content"] = [{"type": "text", "text": text}]
            if thought is not None and role == "assistant":
                message |= {"reasoning_content": thought, "thinking": thought}
            messages.append(message)
        try:
            shown = str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
            )
        except Exception:  # a template may refuse anything; then it says nothing
            continue
        if _PROBE in shown and (thought is None or thought in shown):
            return shown
    return None


def generation_header(tokenizer: Any) -> str:
    """What the chat template writes to let the assistant speak; empty if that cannot be seen."""
    for content in ("hello", [{"type": "text", "text": "hello"}]):
        messages = [{"role": "user", "content": content}]
        try:
            bare, full = (
                str(
                    tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=add
                    )
                )
                for add in (False, True)
            )
        except Exception:  # as above
            continue
        if full.startswith(bare) and "hello" in bare:
            return full[len(bare) :]
    return ""


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens that are no pieces of text, special and added ones: their ids by their text."""
    added = {
        token.content: int(i) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
    }
    special = {
        token: int(i)
        for token, i in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    }
    return {**added, **special}
