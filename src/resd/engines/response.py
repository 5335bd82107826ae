"""What a response says: its thinking and its answer, told apart on the token ids.

Marks of thinking are special tokens in many families, and gone once they are decoded away; where
the chat template opens the thinking, the response holds no opening mark at all. So a response is
read by its tokens and the end of its prompt, before anything is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from resd.engines.tokens import added_tokens, generation_header

# Opening and closing mark; a family counts only where its tokenizer or template knows it.
_PAIRS = (
    ("<think>", "</think>"),  # Qwen, DeepSeek, GLM, Hunyuan, Phi-4, Nemotron, Olmo, MiniMax, ...
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),  # Reka
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|think|>", "<|content|>"),  # Solar
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_HARMONY = (_CHANNEL, _MESSAGE, "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
_HARMONY_MARK = re.compile("|".join(map(re.escape, _HARMONY)))
# Families that put the answer between marks too.
_WRAPPERS = (("<answer>", "</answer>"), ("<response>", "</response>"))
_TAIL = 256


@dataclass(frozen=True)
class ReadResponse:
    """A response, read.

    Attributes:
        text: all of it, thinking between `<think>` and `</think>` whatever the family's marks
            are; it starts with the mark where the prompt opened the thinking, so that who judges
            the text by itself sees unfinished thinking as unfinished. Without thinking, it is the
            decoded text.
        thinking: without its marks and the white space around it; None if there is none.
        answer: what follows the thinking; the decoded text as it is where there is no thinking;
            None if the response ended inside its thinking.
    """

    text: str
    thinking: str | None
    answer: str | None


@dataclass(frozen=True)
class _Raw:
    """Decoded text, and where in it single tokens that are marks begin."""

    text: str
    tokens: frozenset[int]


class ResponseReader:
    """Reads responses of one model.

    Args:
        tokenizer: the student's; its vocabulary, chat template and response template say which
            marks of thinking the model knows. A model that knows none has no thinking: its
            answers are its decoded text, whatever they hold.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = added_tokens(tokenizer)
        self._source = _template_source(tokenizer)
        declared = list(_declared_pairs(tokenizer))
        self._pairs = declared + [p for p in _PAIRS if p not in declared and self._knows(p)]
        self._certain = {c for o, c in self._pairs if (o, c) in declared or c in self._source}
        self._harmony = _CHANNEL in self._added and _MESSAGE in self._added
        marks = {m for pair in self._pairs for m in pair} | set(_HARMONY if self._harmony else ())
        pieces = {self._token_of(mark) for mark in marks} - {None}
        self._mark_ids = {self._added[piece]: piece for piece in pieces if piece is not None}
        self._header = self._bare_header() if self._pairs or self._harmony else ""

    def read(
        self, prompt_ids: Sequence[int], token_ids: Sequence[int], finished: bool = True
    ) -> ReadResponse:
        """Read one response.

        Args:
            prompt_ids: of the prompt that it continues.
            token_ids: of the response, with the end token if it was reached.
            finished: whether the end token was reached.
        """
        if self._harmony:
            return self._read_channels(prompt_ids, token_ids)
        if not self._pairs:
            return self._plain(token_ids)
        return self._read_marks(prompt_ids, token_ids, finished)

    def _plain(self, token_ids: Sequence[int]) -> ReadResponse:
        text = self._decode(token_ids)
        return ReadResponse(text, None, text)

    # -- opening and closing marks -----------------------------------------------------------

    def _read_marks(
        self, prompt_ids: Sequence[int], token_ids: Sequence[int], finished: bool
    ) -> ReadResponse:
        begun, pair, closed = self._prefilled(prompt_ids)
        raw = self._raw(token_ids)
        thoughts, before, at = [begun], "", 0
        while True:
            if pair is not None:
                end = self._find(raw, pair[1], at)
                if end < 0:
                    thoughts.append(raw.text[at:])
                    break
                thoughts.append(raw.text[at:end])
                at, closed, pair = end + len(pair[1]), True, None
                continue
            start, opened = self._opening(raw, at, closed)
            if opened is not None:
                before += raw.text[at:start] if not closed else ""
                at, pair = start + len(opened[0]), opened
                continue
            if not closed and (lone := self._lone_closing(raw)):
                thoughts.append(raw.text[: lone[0]])
                at, closed = lone[1], True
                continue
            break
        text = raw.text
        if pair is None and not closed and not finished and self._begins_a_mark(text):
            return ReadResponse(text, "", None)
        if pair is None and at == 0:  # no thinking in the response
            return self._plain(token_ids)
        thinking = "".join(thoughts)
        if pair is not None:
            return ReadResponse(f"{before}<think>{thinking}", thinking.strip(), None)
        rest = text[at:]
        answer = self._unwrapped(before + rest.lstrip())
        return ReadResponse(f"{before}<think>{thinking}</think>{rest}", thinking.strip(), answer)

    def _opening(self, raw: _Raw, at: int, closed: bool) -> tuple[int, tuple[str, str] | None]:
        """Where thinking begins next, and by which marks.

        Once thinking was closed, an answer that writes about the mark is an answer. A mark that is
        plain text counts at the start alone.
        """
        found = []
        for pair in self._pairs:
            start = self._find(raw, pair[0], at)
            first = not raw.text[at:start].strip()
            if start >= 0 and (first or (not closed and self._token_of(pair[0]))):
                found.append((start, pair))
        return min(found, default=(-1, None))

    def _lone_closing(self, raw: _Raw) -> tuple[int, int] | None:
        """A closing token whose opening one was left out; plain text may be about the mark."""
        found = [
            (at, at + len(close))
            for _, close in self._pairs
            if close in self._certain and self._token_of(close)
            if (at := self._find(raw, close, 0)) >= 0
        ]
        return min(found, default=None)

    def _begins_a_mark(self, text: str) -> bool:
        """Whether a response was cut off inside an opening mark that is plain text."""
        text = text.lstrip()
        return len(text) > 1 and any(
            o.startswith(text) for o, _ in self._pairs if not self._token_of(o)
        )

    def _unwrapped(self, answer: str) -> str:
        for opening, closing in _WRAPPERS:
            if opening in self._source and answer.startswith(opening):
                answer = answer[len(opening) :]
                cut = answer.rstrip()
                return cut.removesuffix(closing).strip()
        return answer

    def _prefilled(self, prompt_ids: Sequence[int]) -> tuple[str, tuple[str, str] | None, bool]:
        """What the prompt began: text of open thinking, its marks, and whether it was closed."""
        begun = self._begun(prompt_ids)
        state: tuple[str, tuple[str, str] | None, bool] = ("", None, False)
        last = -1
        for pair in self._pairs:
            start, end = begun.rfind(pair[0]), begun.rfind(pair[1])
            if max(start, end) <= last:
                continue
            last = max(start, end)
            state = (
                (begun[start + len(pair[0]) :], pair, False) if start > end else ("", None, True)
            )
        return state

    def _begun(self, prompt_ids: Sequence[int]) -> str:
        """What the prompt holds of the response: all after the bare header of its turn."""
        tail = self._tokenizer.decode(list(prompt_ids[-_TAIL:]), skip_special_tokens=False)
        if self._header and self._header in tail:
            return str(tail.rpartition(self._header)[2])
        # No header to go by: a mark counts only at the very end, where no user writes.
        for mark in sorted((m for pair in self._pairs for m in pair), key=len, reverse=True):
            if tail.rstrip().endswith(mark):
                return str(tail[tail.rindex(mark) :])
        return ""

    def _bare_header(self) -> str:
        """The header of an assistant's turn, up to what it begins of the response."""
        header = generation_header(self._tokenizer)
        marks = [m for pair in self._pairs for m in pair]
        marks += [_CHANNEL, _MESSAGE] if self._harmony else []
        cuts = [header.index(mark) for mark in marks if mark in header]
        bare = header[: min(cuts)] if cuts else header
        return bare if bare.strip() else ""

    # -- channels (gpt-oss) ------------------------------------------------------------------

    def _read_channels(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> ReadResponse:
        """The channel `final` is the answer, all others are thinking."""
        pieces = [*_split(self._begun(prompt_ids)), *self._items(token_ids)]
        if not any(mark and text in (_CHANNEL, _MESSAGE) for text, mark in pieces):
            return self._plain(token_ids)
        final: list[str] = []
        thoughts: list[str] = []
        answered, inside, channel = False, False, ""
        for text, mark in pieces:
            if mark and text == _MESSAGE:
                inside = True
                answered = answered or _is_final(channel)
                if not _is_final(channel):
                    thoughts.append("")
            elif mark and text == "<|constrain|>":
                continue
            elif mark:
                inside, channel = False, ""
            elif not inside:
                channel += text
            elif _is_final(channel):
                final.append(text)
            else:
                thoughts[-1] += text
        thinking, answer = "\n".join(thoughts), "".join(final)
        if not answered:
            return ReadResponse(f"<think>{thinking}", thinking.strip(), None)
        if not thoughts:
            return ReadResponse(answer, None, answer)
        return ReadResponse(f"<think>{thinking}</think>{answer}", thinking.strip(), answer)

    # -- tokens ------------------------------------------------------------------------------

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _items(self, token_ids: Sequence[int]) -> Iterator[tuple[str, bool]]:
        """The response as pieces of text and marks; other special tokens are dropped."""
        run: list[int] = []
        for token in token_ids:
            if token not in self._mark_ids:
                run.append(token)
                continue
            if run:
                yield self._decode(run), False
            run = []
            yield self._mark_ids[token], True
        if run:
            yield self._decode(run), False

    def _raw(self, token_ids: Sequence[int]) -> _Raw:
        text, tokens = "", set()
        for piece, mark in self._items(token_ids):
            if mark:
                tokens.add(len(text))
            text += piece
        return _Raw(text, frozenset(tokens))

    def _find(self, raw: _Raw, mark: str, at: int) -> int:
        """Where a mark stands; one that is a token counts as a token alone, not spelt out."""
        token = self._token_of(mark) is not None
        while (at := raw.text.find(mark, at)) >= 0:
            if not token or at in raw.tokens:
                return at
            at += 1
        return -1

    def _token_of(self, mark: str) -> str | None:
        """The single token that a mark is, or begins with."""
        fitting = [name for name in self._added if name and mark.startswith(name)]
        return max(fitting, key=len, default=None)

    def _knows(self, pair: tuple[str, str]) -> bool:
        in_vocabulary = all(self._token_of(mark) for mark in pair)
        return in_vocabulary or any(mark in self._source for mark in pair)


def _is_final(channel: str) -> bool:
    name = channel.strip()
    return not name or name.startswith(("final", "assistant"))


def _split(text: str) -> Iterator[tuple[str, bool]]:
    at = 0
    for mark in _HARMONY_MARK.finditer(text):
        if mark.start() > at:
            yield text[at : mark.start()], False
        yield mark.group(), True
        at = mark.end()
    if at < len(text):
        yield text[at:], False


def _template_source(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)


def _declared_pairs(tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Marks that the tokenizer's own response template names."""
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields") if isinstance(template, dict) else None
    for name, field in fields.items() if isinstance(fields, dict) else ():
        if isinstance(field, dict) and ("think" in name or "reason" in name):
            opening, closing = field.get("open"), field.get("close")
            openings = [opening] if isinstance(opening, str) else opening or []
            closings = [closing] if isinstance(closing, str) else closing or []
            yield from ((str(o).strip(), str(c).strip()) for o in openings for c in closings)
