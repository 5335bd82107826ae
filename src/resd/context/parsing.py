"""Finding JSON values in whatever a model wrote. Never raises, and takes linear time.

A caller says by `look` which answers a JSON value holds; here is how values are found: strict
first, then leniently in what is left, then as YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from resd.context.fields import plain
from resd.context.lenient_json import pairs, read_value, unescape
from resd.context.lenient_yaml import read_yaml
from resd.context.thinking import without_thinking

MAX_DEPTH = 5
_MAX_CHARS = 32_000
# How often a text may be read in vain, at most; nesting that is too deep costs a lump.
_STRICT, _LENIENT = 12, 3
_DEEP, _FAILED = 5_000, 10
_BRACKET = re.compile("[{\\[\uff5b\uff3b]")
_START = re.compile(r'[{\[](?=\s*["{}\[\]])')
# JSON inside a string: its quotes are escaped.
_ESCAPED_START = re.compile(r"[{\[]\s*(?:\\[nrt]\s*)*\\+[\"nrt]")
_MARK = re.compile(r"<(?P<call>parameter(?:=| +name=)[\"']?)?(?P<name>\w{2,40})[\"']?>")
_BETWEEN = re.compile(r"[\s,;]*")
# No number is ever used: reading all of them as floats keeps huge integers cheap.
_DECODER = json.JSONDecoder(strict=False, parse_int=float, object_pairs_hook=pairs)

A = TypeVar("A")
Look = Callable[[Any], list[A]]


@dataclass(frozen=True)
class Found(Generic[A]):
    """One answer.

    Attributes:
        cut: whether the text ended before the JSON did.
        joined: whether nothing but white space stands between it and the answer before.
    """

    answer: A
    cut: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Output:
    """A model's output as the parsers read it.

    Attributes:
        text: without thinking.
        unfinished: its thinking was never closed.
        too_long: its beginning was dropped.
    """

    text: str
    unfinished: bool = False
    too_long: bool = False

    @classmethod
    def of(cls, output: Any) -> Output:
        """Clean an output; what is no string is empty."""
        text, unfinished = without_thinking(_unwrapped(output))
        text = text.strip()
        # The answer comes last.
        return cls(text[-_MAX_CHARS:], unfinished, len(text) > _MAX_CHARS)

    def failure(self) -> str:
        """Why nothing was found: `unfinished`, `empty`, `no_json` or `wrong_keys`."""
        if self.unfinished:
            return "unfinished"
        if not self.text:
            return "empty"
        return "wrong_keys" if _BRACKET.search(self.text) else "no_json"

    def problem(self, form: str) -> str:
        """One sentence that tells the model why nothing was found in its output."""
        why = {
            "unfinished": "Your answer ended inside its thinking, before the JSON began",
            "empty": "Your answer was empty",
            "no_json": "Your answer held no JSON object",
        }.get(self.failure(), "")
        if not why:
            why = "Your JSON had none of the keys that were asked for"
            start = _BRACKET.search(self.text)
            try:
                _DECODER.raw_decode(self.text, start.start() if start else 0)
            except json.JSONDecodeError as error:
                why = f"Your JSON could not be read: {error.msg} at character {error.pos}"
            except (ValueError, RecursionError):
                why = "Your JSON is nested too deeply"
        return f"{why}; answer with one JSON object with {form}."


def find_answers(text: str, look: Look[A], whole: Callable[[A], bool]) -> list[Found[A]]:
    """All answers in JSON or nearly JSON, in order.

    Args:
        text: of `Output`.
        look: the answers that a JSON value holds.
        whole: whether an answer surely is not a part of a larger one that is damaged.
    """
    text = text[:_MAX_CHARS]
    for _ in range(MAX_DEPTH):
        values = dict(_strict(text))
        anchors = []
        for start, (value, end) in values.items():
            answers = look(value)
            if any(map(whole, answers)):
                anchors.append((start, end, answers))
        if anchors or not _ESCAPED_START.search(text):
            break
        text = unescape(text)
    return _find(text, look, values, anchors)


def find_marked(text: str, look: Look[A], keys: Collection[str]) -> list[Found[A]]:
    """The answers of a text in tags with the plain `keys`: `<key>...</key>`, `<parameter=key>`."""
    members: dict[str, str] = {}
    for mark in _MARK.finditer(text[:_MAX_CHARS]):
        key = plain(mark["name"])
        if key in keys and key not in members:
            end = text.find("</parameter>" if mark["call"] else f"</{mark['name']}>", mark.end())
            members[key] = text[mark.end() : end].strip() if end >= 0 else ""
    return [Found(answer) for answer in (look(members) if members else ())]


def find_yaml(text: str, look: Look[A], keys: Collection[str]) -> list[Found[A]]:
    """The answers of the YAML in a text, from the first line that has one of the plain `keys`."""
    return [Found(answer) for answer in look(read_yaml(text[:_MAX_CHARS], keys))]


def _unwrapped(output: Any) -> str:
    """The text of an output that is one JSON string."""
    text = output.strip() if isinstance(output, str) else ""
    for _ in range(MAX_DEPTH if text[:1] == '"' else 0):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, str):
            break
        text = value.strip()
    return text


def inside(text: str, look: Look[A]) -> list[A]:
    """The answers of a JSON string that holds JSON once more."""
    if not _BRACKET.match(text.lstrip()[:1]):
        return []
    return [found.answer for found in find_answers(text, look, lambda answer: True)]


def _strict(text: str) -> Iterator[tuple[int, tuple[Any, int]]]:
    """Start, value and end of each span that is JSON; none lies in another."""
    work, at = 0, 0
    most = _STRICT * len(text) + _DEEP
    while (start := _START.search(text, at)) and work < most:
        at = start.end()
        try:
            value, at = _DECODER.raw_decode(text, start.start())
            yield start.start(), (value, at)
        except json.JSONDecodeError as error:
            work += error.pos - start.start() + _FAILED
        except (ValueError, RecursionError):
            work += _DEEP


def _find(
    text: str,
    look: Look[A],
    values: dict[int, tuple[Any, int]],
    anchors: list[tuple[int, int, list[A]]],
) -> list[Found[A]]:
    spans: list[tuple[int, int, list[A], bool]] = []
    work, at = 0, 0
    for start, end, answers in [*anchors, (len(text), len(text), [])]:
        gap = text[:start]
        while place := _BRACKET.search(gap, at):
            begin = place.start()
            cut = False
            if begin in values:
                value, at = values[begin]
            elif work > _LENIENT * len(text):
                value, at = None, begin + 1
            else:
                value, at, cut = read_value(gap, begin)
                work += at - begin + _FAILED
            found = look(value)
            if found:
                spans.append((begin, at, found, cut))
            elif begin not in values:
                at = begin + 1
        if answers:
            spans.append((start, end, answers, False))
        at = end
    joined = [
        i > 0 and _BETWEEN.fullmatch(text, spans[i - 1][1], span[0]) is not None
        for i, span in enumerate(spans)
    ]
    return [
        Found(answer, span[3], joined[i] or k > 0)
        for i, span in enumerate(spans)
        for k, answer in enumerate(span[2])
    ]
