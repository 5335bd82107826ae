"""Finding JSON objects in whatever a model wrote. Never raises, and takes linear time."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from resd.context.lenient_json import read_object
from resd.text import one_line, strip_thinking

_MAX_CHARS = 20_000
# Characters that strict parsing may read in vain, at most; nesting that is too deep costs a lump.
_MAX_WORK = 10 * _MAX_CHARS
_DEEP, _FAILED = 5_000, 10
_MAX_DEPTH = 4
# No number is ever used: reading all of them as floats keeps huge integers cheap.
_START = re.compile(r'\{(?=\s*["}])')
_DECODER = json.JSONDecoder(strict=False, parse_int=float)
_ID = re.compile(r"[\W_]*([a-z]+)[-_ ]?0*([0-9]{1,18})(?:[\W_]*|\] helpful=.*)", re.IGNORECASE)


def find_object(text: str, keys: Collection[str]) -> tuple[dict[str, Any] | None, str]:
    """The last JSON object in a model's output that has one of `keys`.

    Args:
        text: raw model output; thinking, prose, code fences and stray braces are tolerated.
        keys: the object must have at least one of them, in lower case.

    Returns:
        The object with its keys in lower case, or None; and how it was found: `ok`, `repaired`,
        `empty`, `no_json` (no object at all) or `wrong_keys` (objects, but none with such a key).
    """
    found, how = find_objects(text, keys)
    return (found[-1] if found else None), how


def find_objects(text: str, keys: Collection[str]) -> tuple[list[dict[str, Any]], str]:
    """All JSON objects that have one of `keys`, in order; see `find_object`.

    Objects inside such an object are not looked at; those inside others are, a few levels deep.
    """
    text = strip_thinking(text)[:_MAX_CHARS] if isinstance(text, str) else ""
    if not text:
        return [], "empty"
    if "{" not in text:
        return [], "no_json"
    found = _strict(text, keys)
    if found:
        return found, "ok"
    found = _lenient(text, keys)
    return found, "repaired" if found else "wrong_keys"


def _strict(text: str, keys: Collection[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    work, end = 0, 0
    while (brace := _START.search(text, end)) and work < _MAX_WORK:
        start, end = brace.span()
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            work += error.pos - start + _FAILED
        except (ValueError, RecursionError):
            work += _DEEP
        else:
            found += _with_keys(value, keys)
    return found


def _lenient(text: str, keys: Collection[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    start = text.find("{")
    while start >= 0:
        value, end = read_object(text, start)
        found += _with_keys(value, keys)
        start = text.find("{", end)
    return found


def _with_keys(value: Any, keys: Collection[str], depth: int = 0) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        lowered = lower_keys(value)
        if any(key in lowered for key in keys):
            return [lowered]
        value = list(value.values())
    if not isinstance(value, list) or depth == _MAX_DEPTH:
        return []
    return [found for item in value for found in _with_keys(item, keys, depth + 1)]


def lower_keys(value: dict[str, Any]) -> dict[str, Any]:
    """An object with its keys in lower case, without white space around them."""
    return {key.strip().lower(): item for key, item in value.items()}


def as_text(value: Any) -> str:
    """A string out of a JSON value: strings as they are, lists joined, everything else empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(item for item in value if isinstance(item, str))
    return ""


def as_list(value: Any) -> list[Any]:
    """A list out of a JSON value; a lone object becomes a list of one."""
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, dict) else []


def as_id(value: Any) -> str:
    """An entry's id in the playbook's form, however a model spells it: `[SAI-12]` is `sai-00012`.

    What does not look like an id comes back as one line; the playbook will not know it.
    """
    text = one_line(as_text(value))
    match = _ID.fullmatch(text)
    return f"{match.group(1).lower()}-{int(match.group(2)):05d}" if match else text
