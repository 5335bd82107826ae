"""A lenient JSON reader for what models write. Linear in time, bounded in depth, never raises.

It accepts what ends too early, raw newlines, single and curly quotes, words without quotes,
missing and superfluous commas, quotes inside strings that are not escaped, and brackets that do
not match.
"""

from __future__ import annotations

import re
from typing import Any

_MAX_DEPTH = 32
_CLOSING = {'"': '"', "'": "'", "\u201c": "\u201d"}
_WORDS = {"true": True, "false": False, "null": None, "none": None, "": None}
_SPACE = re.compile(r"\s*")
_SEPARATORS = re.compile(r"[\s,]*")
_BARE_KEY = re.compile(r"[^\s,:{}\[\]]+")
_BARE_VALUE = re.compile(r"[^,{}\[\]\n]*")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.)|\Z)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
# A quote ends a value if this follows it; otherwise it is a quote that should have been escaped.
_AFTER_VALUE = re.compile(
    r"""\s*(?: [}\]] | \Z
           | ,\s*(?: ["'\u201c{}\[\]] | \Z | -?\d | true\b | false\b | null\b )
           | ["'\u201c][^"'\u201d\n]{1,40}["'\u201d]\s*:
           | (?<=\n)["'\u201c{] )""",
    re.VERBOSE,
)


def read_object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """Read the object whose brace stands at `start`.

    Returns:
        The object, and where it ends; always after `start`.
    """
    reader = _Reader(text, start)
    return reader.object(0), reader.at


class _Reader:
    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def object(self, depth: int) -> dict[str, Any]:
        self.at += 1
        found: dict[str, Any] = {}
        while True:
            char = self._next(_SEPARATORS)
            # A bracket in the place of a key: this object was never closed.
            if char in ("", "{", "[", "]"):
                return found
            if char == "}":
                self.at += 1
                return found
            key = self._string(char, None) if char in _CLOSING else self._take(_BARE_KEY)
            if self._next(_SPACE) == ":":
                self.at += 1
                found[key] = self._value(depth + 1)

    def _array(self, depth: int) -> list[Any]:
        self.at += 1
        items: list[Any] = []
        while self._next(_SEPARATORS) not in ("", "]", "}"):
            items.append(self._value(depth + 1))
        self.at += self.text.startswith("]", self.at)
        return items

    def _value(self, depth: int) -> Any:
        char = self._next(_SPACE)
        if char in ("{", "["):
            if depth > _MAX_DEPTH:
                self.at += 1
                return None
            return self.object(depth) if char == "{" else self._array(depth)
        if char in _CLOSING:
            return self._string(char, _AFTER_VALUE)
        return _bare(self._take(_BARE_VALUE).strip())

    def _string(self, quote: str, after: re.Pattern[str] | None) -> str:
        """A string in quotes; it ends at a quote that `after` follows, or with the text."""
        begin, closing = self.at + 1, _CLOSING[quote]
        at = begin
        while True:
            at = self.text.find(closing, at)
            if at < 0:
                end = self.at = len(self.text)
                break
            if not self._escaped(at, begin) and (after is None or after.match(self.text, at + 1)):
                end, self.at = at, at + 1
                break
            at += 1
        return _unescape(self.text[begin:end])

    def _escaped(self, at: int, begin: int) -> bool:
        first = at
        while first > begin and self.text[first - 1] == "\\":
            first -= 1
        return (at - first) % 2 == 1

    def _next(self, skipped: re.Pattern[str]) -> str:
        """Skip, and look at the next character; empty at the end."""
        self._take(skipped)
        return self.text[self.at : self.at + 1]

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()


def _bare(word: str) -> Any:
    """A literal, a number, or the word itself."""
    try:
        return float(word)
    except ValueError:
        return _WORDS.get(word.lower(), word)


def _unescape(raw: str) -> str:
    text = _ESCAPE.sub(_character, raw)
    # Two escapes may be one character: \ud83d\ude00.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _character(escape: re.Match[str]) -> str:
    code, char = escape.groups()
    if code:
        return chr(int(code, 16))
    if char is None:
        return ""
    return char if char in "\"'\\/" else _ESCAPED.get(char, escape.group())
