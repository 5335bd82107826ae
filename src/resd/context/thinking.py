"""Where thinking stands in a model's output, if its answer is structured.

A tag inside a JSON string is what a lesson is about; only tags outside are thinking's.
"""

from __future__ import annotations

import json
import re

from resd.context.lenient_json import read_string

_TAG = re.compile(
    r"<\s*(?P<close>/)?\s*(?:\w{1,12}:)?think(?:ing)?\s*(?:\s[\w-]+=[^<>/]{0,80})?>"
    r"|\[(?P<close2>/)?THINK\]",
    re.IGNORECASE,
)
_PLACES = re.compile(
    rf"(?P<tag>{_TAG.pattern})|(?P<open>[{{\[\uff5b\uff3b])|[,:\uff0c\uff1a]\s*\\*[\"'\u201c]",
    re.IGNORECASE,
)
_QUOTE = re.compile(r"\s*\\*[\"'\u201c]")
# A line of YAML, as far as a tag in it.
_FIELD = re.compile(r"[ \t]*(?:- +)?[\"']?[A-Za-z][\w -]{0,40}[\"']?: ")
# Thinking ends here even where the braces around say that a string goes on.
_ENDS = re.compile(r"[ \t]*\n\s*\S|\s*(?:```\w*\s*)?[{\[]")
_DECODER = json.JSONDecoder(strict=False, parse_int=float)
_MAX_WORK = 400_000
_DEEP, _LONGEST = 5_000, 8_000


def without_thinking(text: str) -> tuple[str, bool]:
    """A structured output without the thinking around its answer; linear in time.

    Closed blocks go, and all before a closing tag that stands alone, and all after an opening tag
    that is never closed.

    Returns:
        The rest, and whether the thinking was not finished.
    """
    if not _TAG.search(text):
        return text, False
    kept: list[str] = []
    start: int | None = 0
    for begin, end, closes in _tags(text):
        if not closes:
            if start is not None:
                kept.append(text[start:begin])
            start = None
        else:
            if start is not None:
                kept.clear()
            start = end
    if start is not None:
        kept.append(text[start:])
    return "".join(kept), start is None


def _tags(text: str) -> list[tuple[int, int, bool]]:
    """Start, end and whether it closes, of each tag outside of strings."""
    found: list[tuple[int, int, bool]] = []
    at, work, broken = 0, 0, False
    while place := _PLACES.search(text, at):
        at = place.end()
        if place["tag"]:
            if not _mentioned(text, place.start(), at):
                found.append((place.start(), at, bool(place["close"] or place["close2"])))
                # What thinking left open ends with it.
                broken = False
        elif place["open"]:
            try:
                if work > _MAX_WORK:
                    raise RecursionError
                at = _DECODER.raw_decode(text, place.start())[1]
            except json.JSONDecodeError as error:
                work += error.pos - place.start() + 10
                broken = True
                quote = _QUOTE.match(text, at)
                if quote and work <= _MAX_WORK:
                    at, cost = _string_end(text, quote.end() - 1)
                    work += cost
            except (ValueError, RecursionError):
                work += _DEEP
        elif broken and work <= _MAX_WORK:
            at, cost = _string_end(text, place.end() - 1)
            work += cost
    return found


def _string_end(text: str, quote: int) -> tuple[int, int]:
    """Where a string of broken JSON ends, at the latest at a tag that must be thinking's.

    Returns:
        The place, and how many characters behind it were read in vain.
    """
    window = text[quote : quote + _LONGEST]
    end = read_string(window, 0)
    for tag in _TAG.finditer(window, 0, end):
        if (tag["close"] or tag["close2"]) and _ENDS.match(window, tag.end()):
            return quote + tag.start(), end - tag.start()
    return quote + end, 0


def _mentioned(text: str, begin: int, end: int) -> bool:
    """Whether a tag outside of JSON is spoken of: in quotes, or inside a field's text."""
    around = text[max(0, begin - 1) : begin] + text[end : end + 1]
    if around in ("``", '""', "''"):
        return True
    line = text.rfind("\n", max(0, begin - 2000), begin) + 1
    return bool(_FIELD.match(text, line, begin)) and not _ENDS.match(text, end)
