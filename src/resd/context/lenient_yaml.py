"""A reader of the little YAML that models write: mappings, lists, scalars, block scalars.

PyYAML refuses what models write most (a lesson with a colon, a backtick, an apostrophe); this
takes any text, in linear time, and reads what is indented like YAML.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from resd.context.lenient_json import pairs, read_string, read_value, unescape

_MAX_DEPTH = 16
_FENCE = re.compile(r"\s*(?:```.*|---|\.\.\.)\s*")
_KEY = re.compile(
    r"""(?:\*\*)?["']?([A-Za-z][\w &/-]{0,60}?)["']?(?:\*\*)?\s?:(?:\*\*)?(?:\s+|$)"""
)
_DASH = re.compile(r"[-*\u2022]\s+")
_COMMENT = re.compile(r"\s+#\s.*")


def read_yaml(text: str, keys: Collection[str]) -> Any:
    """The mapping or list that begins at the first line with one of the plain `keys`, or None."""
    lines = []
    for line in text.expandtabs(2).split("\n"):
        if not _FENCE.fullmatch(line) and not line.lstrip().startswith("#"):
            lines.append((len(line) - len(line.lstrip()), line.strip()))
    for number, (_, content) in enumerate(lines):
        key = _KEY.match(_DASH.sub("", content, count=1))
        if key and "".join(c for c in key.group(1).lower() if c.isalnum()) in keys:
            return _Reader(lines[number:]).block(lines[number][0], 0)
    return None


class _Reader:
    """Lines as pairs of indent and content; an empty content is an empty line."""

    def __init__(self, lines: list[tuple[int, str]]) -> None:
        self.lines = lines
        self.at = 0

    def block(self, indent: int, depth: int) -> Any:
        """What stands at this indent, from here on."""
        _, content = self.lines[self.at]
        return self._list(indent, depth) if _is_item(content) else self._mapping(indent, depth)

    def _list(self, indent: int, depth: int) -> list[Any]:
        items: list[Any] = []
        while self._here(indent) and _is_item(self.lines[self.at][1]):
            content = self.lines[self.at][1]
            dash = _DASH.match(content)
            rest = content[dash.end() :] if dash else ""
            if dash and _KEY.match(rest) and depth < _MAX_DEPTH:
                inner = indent + dash.end()
                self.lines[self.at] = (inner, rest)
                items.append(self._mapping(inner, depth + 1))
            else:
                self.at += 1
                items.append(self._value(rest, indent, depth))
        return items

    def _mapping(self, indent: int, depth: int) -> dict[str, Any]:
        members: list[tuple[str, Any]] = []
        while self._here(indent):
            content = self.lines[self.at][1]
            key = _KEY.match(content)
            if key is None:
                break
            self.at += 1
            members.append((key.group(1), self._value(content[key.end() :], indent, depth)))
        return pairs(members)

    def _value(self, rest: str, indent: int, depth: int) -> Any:
        """A value whose first line is `rest`, of a key or item at `indent`."""
        if re.fullmatch(r"[|>][+-]?\d?", rest):
            return ("\n" if rest[0] == "|" else " ").join(self._deeper(indent))
        if not _COMMENT.sub("", " " + rest).strip():
            inner = self._next_indent()
            nested = inner > indent or (inner == indent and _is_item(self.lines[self.at][1]))
            if not nested or depth >= _MAX_DEPTH:
                return None
            if _is_item(self.lines[self.at][1]) or _KEY.match(self.lines[self.at][1]):
                return self.block(inner, depth + 1)
            return " ".join(self._deeper(indent))
        if rest[0] in "{[":
            return read_value(" ".join([rest, *self._deeper(indent)]), 0)[0]
        whole = " ".join([rest, *self._deeper(indent)])
        if rest[0] in "\"'" and whole.count(rest[0]) > 1:
            end = read_string(whole, 0)
            return unescape(whole[1 : end - 1]) if rest[0] == '"' else whole[1 : end - 1]
        plain = _COMMENT.sub("", whole).strip()
        return None if plain.lower() in ("null", "~", "none") else plain

    def _deeper(self, indent: int) -> list[str]:
        """The lines that are indented more: they belong to the value."""
        found = []
        while self.at < len(self.lines):
            inner, content = self.lines[self.at]
            if content and inner <= indent:
                break
            found += [content] if content else []
            self.at += 1
        return found

    def _here(self, indent: int) -> bool:
        return self._next_indent() == indent

    def _next_indent(self) -> int:
        """The indent of the next line that is not empty; -1 at the end."""
        while self.at < len(self.lines) and not self.lines[self.at][1]:
            self.at += 1
        return self.lines[self.at][0] if self.at < len(self.lines) else -1


def _is_item(content: str) -> bool:
    return bool(_DASH.match(content)) or content == "-"
