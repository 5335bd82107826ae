"""Finding a JSON object in whatever a model wrote. Never raises."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import json_repair

from resd.context.text import strip_thinking

_MAX_CHARS = 20_000
_MAX_STARTS = 64
_DECODER = json.JSONDecoder()


def find_object(text: str, keys: Collection[str]) -> tuple[dict[str, Any] | None, str]:
    """The last JSON object in a model's output that has one of `keys`.

    Args:
        text: raw model output; thinking, prose, code fences and stray braces are tolerated.
        keys: the object must have at least one of them, in lower case.

    Returns:
        The object with its keys in lower case, or None; and how it was found: `ok`, `repaired`,
        `empty`, `no_json` (no object at all) or `wrong_keys` (objects, but none with such a key).
    """
    text = strip_thinking(text)[:_MAX_CHARS]
    if not text:
        return None, "empty"
    starts = [i for i, c in enumerate(text) if c == "{"]
    if not starts:
        return None, "no_json"
    found = _strict(text, starts[:_MAX_STARTS], keys)
    if found is not None:
        return found, "ok"
    for start in starts[:4]:
        try:
            repaired = json_repair.loads(text[start:])
        except Exception:  # any failure of the repair of untrusted text means "not repairable"
            continue
        found = _with_keys(repaired, keys)
        if found is not None:
            return found, "repaired"
    return None, "wrong_keys"


def _strict(text: str, starts: list[int], keys: Collection[str]) -> dict[str, Any] | None:
    found, end = None, -1
    for start in starts:
        if start < end:
            continue
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        found = _with_keys(value, keys) or found
    return found


def _with_keys(value: Any, keys: Collection[str]) -> dict[str, Any] | None:
    for item in reversed(value if isinstance(value, list) else [value]):
        if isinstance(item, dict):
            lowered = {str(key).strip().lower(): val for key, val in item.items()}
            if any(key in lowered for key in keys):
                return lowered
    return None


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
