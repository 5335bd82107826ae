"""Cleaning and shortening of untrusted text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

CountTokens = Callable[[str], int]

_THINK_TAG = re.compile(r"<(?:\s*(/))?\s*think(?:ing)?\s*(?:\s[\w-]+=[^<>/]*)?>", re.IGNORECASE)
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Control characters, lone surrogates, and what has no width or turns the writing direction. The
# joiners U+200C and U+200D stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufeff\U000e0000-\U000e007f]"
)
_CUT = " [...] "
_ROUNDS = 4


def strip_thinking(text: str) -> str:
    """Remove thinking text.

    Closed blocks go; so does all before a closing tag whose opening tag stood in the chat template,
    and all after an opening tag that was never closed (method.md section 7).
    """
    for _ in range(_ROUNDS):
        stripped = _outside_tags(text)
        if not _THINK_TAG.search(stripped):
            return stripped.strip()
        # What was taken out brought the halves of another tag together.
        text = stripped
    return ""


def _outside_tags(text: str) -> str:
    kept: list[str] = []
    start: int | None = 0
    for tag in _THINK_TAG.finditer(text):
        if not tag.group(1):
            if start is not None:
                kept.append(text[start : tag.start()])
            start = None
        else:
            if start is not None:
                kept.clear()
            start = tag.end()
    if start is not None:
        kept.append(text[start:])
    return "".join(kept)


def printable(text: str) -> str:
    """Drop control and invisible characters and lone surrogates; every line end becomes a newline.

    Newlines and tabs stay.
    """
    return _HIDDEN.sub("", _LINE_END.sub("\n", text))


def says_something(text: str) -> bool:
    """Whether a text holds a letter or a digit; weak models copy the "..." of a form."""
    return any(character.isalnum() for character in text)


def holds_phrase(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase as words of its own, not inside a longer word."""
    return phrase in text and bool(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text))


def one_line(text: str) -> str:
    """Printable text with every run of white space made one space."""
    return " ".join(printable(" ".join(text.split())).split())


def scrubber(special_tokens: Sequence[str]) -> Callable[[str], str]:
    """A function that removes a tokenizer's special tokens from untrusted text.

    Otherwise a model that spells out `<|im_end|>` could close its own chat turn.
    """
    tokens = sorted((token for token in special_tokens if token.strip()), key=len, reverse=True)
    if not tokens:
        return printable
    pattern = re.compile("|".join(map(re.escape, tokens)))

    def scrub(text: str) -> str:
        # First: a character that is dropped later would bring the halves of a token together.
        text = printable(text)
        for _ in range(_ROUNDS):
            shorter = pattern.sub("", text)
            if shorter == text:
                return text
            text = shorter
        # Tokens nested in tokens: nothing that can be put together is left between them.
        return pattern.sub("\ufffd", text)

    return scrub


def approximate_tokens(text: str) -> int:
    """A token count for when there is no tokenizer: a quarter of the UTF-8 bytes, rounded up."""
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def shorten(text: str, budget: int, count_tokens: CountTokens) -> str:
    """Cut the middle out of a text until it has at most `budget` tokens; head and tail stay."""
    if count_tokens(text) <= budget:
        return text
    low, high, best = 1, len(text), ""
    while low <= high:
        keep = (low + high) // 2
        head = (keep * 2 + 2) // 3
        cut = text[:head] + _CUT + text[len(text) - (keep - head) :]
        if count_tokens(cut) <= budget:
            low, best = keep + 1, cut
        else:
            high = keep - 1
    return best
