"""Cleaning and shortening of untrusted text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

CountTokens = Callable[[str], int]

_CLOSED_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_LAST_CLOSE = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)
_UNCLOSED = re.compile(r"<think(?:ing)?>.*$", re.DOTALL)
_CUT = " [...] "


def strip_thinking(text: str) -> str:
    """Remove thinking text.

    Closed blocks go; so does all before a closing tag whose opening tag stood in the chat template,
    and all after an opening tag that was never closed (method.md section 7).
    """
    text = _CLOSED_THINKING.sub("", text)
    text = _LAST_CLOSE.sub("", text)
    return _UNCLOSED.sub("", text).strip()


def printable(text: str) -> str:
    """Drop control characters and lone surrogates; newlines and tabs stay."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


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
        # Removing a token can bring the halves of another together.
        while pattern.search(text):
            text = pattern.sub("", text)
        return printable(text)

    return scrub


def approximate_tokens(text: str) -> int:
    """A token count for when there is no tokenizer: a quarter of the UTF-8 bytes, rounded up."""
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def shorten(text: str, budget: int, count_tokens: CountTokens) -> str:
    """Cut the middle out of a text until it has at most `budget` tokens; head and tail stay."""
    if count_tokens(text) <= budget:
        return text
    low, high, best = 0, len(text), ""
    while low <= high:
        keep = (low + high) // 2
        head = (keep * 2 + 2) // 3
        cut = text[:head] + _CUT + text[len(text) - (keep - head) :]
        if count_tokens(cut) <= budget:
            low, best = keep + 1, cut
        else:
            high = keep - 1
    return best
