"""The chat format: messages to token ids with the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import count as numbers
from typing import cast

from transformers import PreTrainedTokenizerBase

from resd.models.line_tokens import LineTokens
from resd.models.turns import Finder, role_marks, takes_system
from resd.text import mark_breaker, printable
from resd.types import ChatMessage

_PRIVATE_USE = 0xF0000
_PROMPTS_KEPT = 64


class ChatFormat:
    """Turns chat messages into token ids with the tokenizer's own chat template.

    No content opens or closes a turn, whoever wrote it: a special token that stands in a content
    is text there, and a role mark that the template writes as plain text is broken visibly.
    A system message that the template refuses or drops stands ahead of the first user message.

    Args:
        tokenizer: the student's.
        thinking: passed to the template as `enable_thinking`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinking: bool = True) -> None:
        self.tokenizer = tokenizer
        self._thinking = thinking
        self._lines = LineTokens(tokenizer)
        self._kept = lru_cache(_PROMPTS_KEPT)(self._encode)

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a prompt, with the assistant header.

        Contents without special tokens and role marks give the ids that the tokenizer gives.
        """
        # A prompt is counted when it is built, and encoded when it is used.
        return list(self._kept(tuple((m["role"], m["content"]) for m in messages)))

    def _encode(self, turns: tuple[tuple[str, str], ...]) -> list[int]:
        messages = self._with_system([ChatMessage(role=r, content=c) for r, c in turns])
        contents = [self._break_marks(message["content"]) for message in messages]
        fresh = _unused("".join(contents))
        standing: dict[str, str] = {}
        for place, content in enumerate(contents):
            pieces = self._special.split(content)
            for number, (piece, token) in enumerate(pieces):
                if token:
                    known = standing.get(piece)
                    standing[piece] = known = known or next(fresh)
                    pieces[number] = (known, token)
            contents[place] = "".join(piece for piece, _ in pieces)
        text = self._render(
            [{**m, "content": content} for m, content in zip(messages, contents, strict=True)]
        )
        if not standing:
            ids = self._ids(text)
            # A tokenizer that normalises text may read a special token out of what was none.
            written = sum(token for _, token in self._special.split(text))
            if len(list(filter(self._special_ids.__contains__, ids))) <= written:
                return ids
        return self._ids_apart(text, {char: token for token, char in standing.items()})

    def count(self, messages: Sequence[ChatMessage]) -> int:
        """Tokens of a prompt."""
        return len(self.encode(messages))

    def count_text(self, text: str) -> int:
        """Tokens of a text, special tokens read as text."""
        plain = not any(True for _ in self._special.spans(text))
        return len(self._ids(text) if plain else self._ids_of_text(text))

    def harmless(self, text: str) -> str:
        """Printable text whose role marks are broken: what a prompt may show of untrusted text."""
        return self._break_marks(printable(text))

    # -- the template ----------------------------------------------------------------------

    @cached_property
    def role_marks(self) -> list[str]:
        """Role marks that the chat template writes as plain text."""
        return role_marks(self._render, self._special)

    @cached_property
    def _break_marks(self) -> Callable[[str], str]:
        return mark_breaker(self.role_marks)

    @cached_property
    def _takes_system(self) -> bool:
        return takes_system(self._render)

    def _with_system(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        systems = [m["content"] for m in messages if m["role"] == "system"]
        others = [m for m in messages if m["role"] != "system"]
        asked = next((i for i, m in enumerate(others) if m["role"] == "user"), None)
        if not systems or asked is None or self._takes_system:
            return list(messages)
        content = "\n\n".join((*systems, others[asked]["content"]))
        others[asked] = {"role": "user", "content": content}
        return others

    def _render(self, messages: Sequence[ChatMessage]) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": m["role"], "content": m["content"]} for m in messages],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self._thinking,
            )
        )

    # -- special tokens --------------------------------------------------------------------

    @cached_property
    def _special(self) -> Finder:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        special = [token.content for token in added if token.special]
        return Finder([*self.tokenizer.all_special_tokens, *special])

    @cached_property
    def _special_ids(self) -> set[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        ids = {*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        # Every character that a tokenizer does not know is this one.
        return ids - {self.tokenizer.unk_token_id}

    @cached_property
    def _strips(self) -> dict[str, set[str]]:
        added = list(getattr(self.tokenizer, "added_tokens_decoder", {}).values())
        return {
            side: {token.content for token in added if token.special and getattr(token, side)}
            for side in ("lstrip", "rstrip")
        }

    def _ids(self, text: str) -> list[int]:
        # The template writes the special tokens itself.
        return self._lines.ids(text)

    def _ids_apart(self, text: str, standing: dict[str, str]) -> list[int]:
        """Token ids of a rendered prompt in which characters stand for tokens' names.

        The text between two of the template's own tokens is read without special tokens.
        """
        pieces = [("", True), *self._special.split(text), ("", True)]
        ids: list[int] = []
        for (before, _), (piece, token), (after, _) in zip(
            pieces, pieces[1:], pieces[2:], strict=False
        ):
            if token:
                ids += cast(list[int], self.tokenizer.convert_tokens_to_ids([piece]))
                continue
            # Some tokens take the white space beside them.
            piece = piece.lstrip() if before in self._strips["rstrip"] else piece
            piece = piece.rstrip() if after in self._strips["lstrip"] else piece
            ids += self._ids_of_text("".join(standing.get(char, char) for char in piece))
        return ids

    def _ids_of_text(self, text: str) -> list[int]:
        """Token ids of a text, none of them special."""
        ids = self._lines.ids(text, special_as_text=True)
        if self._special_ids.isdisjoint(ids):
            return ids
        # The vocabulary itself holds the name of a special token: it is read letter by letter.
        ids = []
        for piece, token in self._special.split(text):
            for part in piece if token else (piece,):
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids


def _unused(text: str) -> Iterator[str]:
    """Characters of private use that do not stand in a text."""
    used = set(text)
    yield from (char for char in map(chr, numbers(_PRIVATE_USE)) if char not in used)
