"""A lenient JSON reader for what models write. Linear in time, bounded in depth, never raises.

It accepts what ends too early, raw newlines, quotes of any kind or none, full-width punctuation,
comments, Python's literals and tuples, missing and superfluous commas, quotes inside strings that
are not escaped, keys that stand twice, and brackets that do not match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_MAX_DEPTH = 32
_DOUBLE, _SINGLE = "\u201c\u201d\u201e\u201f\uff02\u00ab\u00bb", "\u2018\u2019\u201a\u201b\uff07"
# The characters that end a string, by the one that opened it.
_CLOSING = {
    **{'"': '"', "'": "'", "`": "`", "\u300c": "\u300d", "\u300e": "\u300f"},
    **dict.fromkeys(_DOUBLE, _DOUBLE),
    **dict.fromkeys(_SINGLE, _SINGLE),
}
_PLAIN = {
    **{"\uff5b": "{", "\uff5d": "}", "\uff3b": "[", "\uff3d": "]", "\u3010": "[", "\u3011": "]"},
    **{"\uff08": "(", "\uff09": ")", "\uff1a": ":", "=": ":"},
}
_WORDS = {
    **{"true": True, "false": False, "null": None, "none": None, "": None},
    **{"nan": None, "undefined": None},
}
# Bounded, so that a comment that never ends costs little at each of many places.
_COMMENT = r"(?:(?://|\#)[^\n]{0,300}(?:\n|\Z)|/\*(?:[^*]|\*(?!/)){0,300}\*/)"
_SPACE = re.compile(rf"\s*(?:{_COMMENT}\s*)*")
_SEPARATORS = re.compile(rf"(?:[\s,;\uff0c\uff1b\u3001]|{_COMMENT})*")
_COLON = re.compile(r":=|=>|[:=\uff1a]")
_BARE_KEY = re.compile(r"[^\s,:={}\[\]\uff1a\uff5b\uff5d]+")
_KEY_FOLLOWS = r"""\s*(?:["'\u201c\u201d\u2018]|[\w-]{1,40}\s*[:=]|[}\]\n]|\Z)"""
_BARE_VALUE = re.compile(rf"(?:[^,{{}}\[\]\n\uff5d]|,(?!{_KEY_FOLLOWS}))*")
_BARE_ITEM = re.compile(r"[^,{}\[\]\n)\uff0c\uff3d\uff5d]*")
_AFTER_BARE = re.compile(r"\s+(?://|#).*", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.)|\Z)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_QUOTES = "\"'`\u300c\u300e" + _DOUBLE + _SINGLE
# A quote ends a value if this follows it; otherwise it is a quote that should have been escaped.
_AFTER_VALUE = re.compile(
    rf"""\s*(?:{_COMMENT}\s*){{0,3}}(?: [}}\])\uff5d\uff3d] | \Z
           | [,;\uff0c]\s*(?:{_COMMENT}\s*){{0,3}}(?:
                [{_QUOTES}{{}}\[\](\uff5b\uff5d] | \Z | -?\d | true\b | false\b | null\b
                | None\b | True\b | False\b | [A-Za-z_]\w{{0,30}}\s*[:=] )
           | ["'\u201c][^"'\u201d\n]{{1,40}}["'\u201d]\s*:
           | (?<=\n)["'\u201c{{] )""",
    re.VERBOSE,
)
_AFTER_KEY = re.compile(r"\s*[:=\uff1a]")


class Cut(str):
    """A string that the text ended in the middle of."""

    __slots__ = ()


def read_value(text: str, start: int) -> tuple[Any, int, bool]:
    """Read the object or array whose bracket stands at `start`.

    Returns:
        The value; where it ends, always after `start`; and whether the text ended before it did.
    """
    reader = _Reader(text, start)
    return reader.bracket(0), reader.at, reader.cut


def read_string(text: str, start: int) -> int:
    """Where the string value ends whose quote stands at `start`."""
    reader = _Reader(text, start)
    reader.string(_PLAIN.get(text[start], text[start]), _AFTER_VALUE)
    return reader.at


def pairs(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its members; of a key that stands twice nothing is lost.

    What is empty yields to what is not, objects become a list, everything else: the last counts.
    """
    found: dict[str, Any] = {}
    repeated: set[str] = set()
    for key, value in items:
        old = found.get(key)
        if key not in found or old in (None, "", [], {}):
            found[key] = value
        elif isinstance(value, dict) and (isinstance(old, dict) or key in repeated):
            found[key] = [*(old if key in repeated else [old]), value]
            repeated.add(key)
        elif value not in (None, "", [], {}):
            found[key] = value
            repeated.discard(key)
    return found


class _Reader:
    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at
        self.cut = False

    def bracket(self, depth: int) -> Any:
        char = self._next(_SPACE)
        if depth > _MAX_DEPTH:
            self.at += 1
            return None
        return self._object(depth) if char == "{" else self._array(depth)

    def _object(self, depth: int) -> dict[str, Any]:
        self.at += 1
        found: list[tuple[str, Any]] = []
        while True:
            char = self._next(_SEPARATORS)
            # A bracket in the place of a key: this object was never closed.
            if char in ("", "{", "[", "]"):
                self.cut |= not char
                return pairs(found)
            if char == "}":
                self.at += 1
                return pairs(found)
            before = self.at
            key = self.string(char, None) if char in _CLOSING else self._take(_BARE_KEY)
            self._take(_SPACE)
            if self._take(_COLON):
                found.append((key, self._value(depth + 1, _BARE_VALUE)))
            self.at = max(self.at, before + 1)

    def _array(self, depth: int) -> list[Any]:
        self.at += 1
        items: list[Any] = []
        while self._next(_SEPARATORS) not in ("", "]", "}", ")"):
            before = self.at
            items.append(self._value(depth + 1, _BARE_ITEM))
            self.at = max(self.at, before + 1)
        char = self._next(_SPACE)
        self.cut |= not char
        self.at += char in ("]", ")")
        return items

    def _value(self, depth: int, bare: re.Pattern[str]) -> Any:
        char = self._next(_SPACE)
        if char in ("{", "[", "("):
            return self.bracket(depth)
        if char in _CLOSING:
            return self.string(char, _AFTER_VALUE)
        return _bare(_AFTER_BARE.sub("", self._take(bare)).strip())

    def string(self, quote: str, after: re.Pattern[str] | None) -> str:
        """A string in quotes; it ends at a quote that `after` follows, or with the text."""
        triple = self.text.startswith(quote * 3, self.at)
        begin, closing = self.at + (3 if triple else 1), _CLOSING[quote]
        at = begin
        while True:
            at = self._find(quote * 3 if triple else closing, at, whole=triple)
            if at < 0:
                self.at, self.cut = len(self.text), True
                return Cut(unescape(self.text[begin:]))
            size = 3 if triple else 1
            if not self._escaped(at, begin) and (
                triple or after is None or after.match(self.text, at + 1)
            ):
                self.at = at + size
                return unescape(self.text[begin:at])
            at += 1

    def _find(self, characters: str, at: int, *, whole: bool) -> int:
        if whole or len(characters) == 1:
            return self.text.find(characters, at)
        match = re.compile(f"[{characters}]").search(self.text, at)
        return match.start() if match else -1

    def _escaped(self, at: int, begin: int) -> bool:
        first = at
        while first > begin and self.text[first - 1] == "\\":
            first -= 1
        return (at - first) % 2 == 1

    def _next(self, skipped: re.Pattern[str]) -> str:
        """Skip, and look at the next character, full-width ones as plain; empty at the end."""
        self._take(skipped)
        char = self.text[self.at : self.at + 1]
        return _PLAIN.get(char, char)

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


def unescape(raw: str) -> str:
    """The text that a string's escapes stand for."""
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
