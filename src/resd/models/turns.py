"""Turns that nobody can forge: special tokens in a text, and a chat template's role marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from resd.types import ChatMessage

Render = Callable[[Sequence[ChatMessage]], str]

# Words that stand in no chat template, trimmed or not.
_SYSTEM, _ASKED, _SAID, _ASKED_AGAIN = "qzsystemqz", "qzfirstqz", "qzanswerqz", "qzsecondqz"
_CONTENTS = re.compile("|".join((_SYSTEM, _ASKED, _SAID, _ASKED_AGAIN)))
_BRACKETED = re.compile(r"<<[^<>\s]{1,60}>>|<[^<>\s]{1,60}>|\[[^\[\]\n]{1,40}\]")
# Thinking is no turn: who writes of `</think>` is shown as he writes.
_THINKING = re.compile(r"\W*(?:think|thinking|thought|reasoning)\W*", re.IGNORECASE)
_LONGEST_MARK = 60


class Finder:
    """Finds the longest of many tokens at each place of a text; thousands of tokens cost nothing.

    Args:
        tokens: strings; those of one character, or of white space alone, are no marks.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = {token for token in tokens if len(token) > 1 and token.strip()}
        lengths: dict[str, set[int]] = {}
        for token in self._tokens:
            lengths.setdefault(token[0], set()).add(len(token))
        self._lengths = {first: sorted(some, reverse=True) for first, some in lengths.items()}
        self._first = re.compile("|".join(map(re.escape, lengths)) or r"(?!)")

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of every token in a text, left to right, none inside another."""
        done = 0
        for match in self._first.finditer(text):
            begin = match.start()
            if begin < done:
                continue
            for length in self._lengths[match.group()]:
                if text[begin : begin + length] in self._tokens:
                    done = begin + length
                    yield begin, done
                    break

    def split(self, text: str) -> list[tuple[str, bool]]:
        """A text in pieces, each with whether it is a token; together they are the text."""
        pieces, done = [], 0
        for begin, end in self.spans(text):
            pieces += [(text[done:begin], False), (text[begin:end], True)]
            done = end
        pieces.append((text[done:], False))
        return [(piece, token) for piece, token in pieces if piece]


def role_marks(render: Render, special: Finder) -> list[str]:
    """What a chat template writes as plain text where one turn ends and the next begins.

    Special tokens are left out: plain text never becomes one (`ChatFormat.encode`). Found by
    rendering conversations: whatever stands between two contents is the template's.

    Args:
        render: chat messages to text, with the assistant header; may raise what it likes.
        special: finds the tokenizer's special tokens.
    """
    system: ChatMessage = {"role": "system", "content": _SYSTEM}
    turns: list[ChatMessage] = [
        {"role": "user", "content": _ASKED},
        {"role": "assistant", "content": _SAID},
        {"role": "user", "content": _ASKED_AGAIN},
    ]
    marks: dict[str, None] = {}
    for messages in ([system, *turns], turns, turns[:1], [system, turns[0]]):
        try:
            text = render(messages)
        except Exception:  # the template is a program: it may refuse a role as it likes
            continue
        before, *after = _CONTENTS.split(text)
        # Ahead of the first content may stand a whole default system message.
        last_line = before.rstrip().rpartition("\n")[2]
        for literal in (last_line, *after):
            marks |= dict.fromkeys(_marks_in(literal, special))
    return list(marks)


def takes_system(render: Render) -> bool:
    """Whether a chat template shows a system message; some refuse it, some drop it in silence."""
    system: ChatMessage = {"role": "system", "content": _SYSTEM}
    user: ChatMessage = {"role": "user", "content": _ASKED}
    try:
        return _SYSTEM in render([system, user])
    except Exception:
        pass
    try:
        render([user])
    except Exception:  # it renders nothing at all: the system message is not to blame
        return True
    return False


def _marks_in(literal: str, special: Finder) -> Iterator[str]:
    parts: list[str] = []
    bare = True
    for piece, token in special.split(literal):
        if token:
            bare = False
            continue
        found = _BRACKETED.findall(piece)
        bare = bare and not found
        parts += found + [line for rest in _BRACKETED.split(piece) for line in rest.splitlines()]
    for part in map(str.strip, parts):
        named = any(character.isalpha() for character in part)
        if not named or len(part) > _LONGEST_MARK or _THINKING.fullmatch(part):
            continue
        if part.isalnum():
            # A role's name beside a token is no mark; alone on its line it is the only one.
            if bare:
                yield part
        elif _BRACKETED.fullmatch(part) or (
            part[-1] not in ".,;!?" and (not part[0].isalnum() or not part[-1].isalnum())
        ):
            yield part
