"""Reflections: what went wrong, what to do, and tags for playbook entries (paper: REFLECT)."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from resd.context.parsing import as_id, as_list, as_text, find_object, lower_keys
from resd.context.playbook import Tag
from resd.text import printable, says_something, strip_thinking

_WRONG = ("what_went_wrong", "error_identification", "root_cause_analysis", "error", "wrong")
_TO_DO = ("what_to_do", "key_insight", "correct_approach", "lesson", "insight")
_TAGS = ("tags", "bullet_tags", "entry_tags")
_TAG_NAMES: dict[str, Tag] = {"helpful": "helpful", "harmful": "harmful", "neutral": "neutral"}
_MAX_TAGS = 64
_MAX_CHARS = 4000


@dataclass(frozen=True)
class Reflection:
    """A parsed reflection.

    Attributes:
        what_went_wrong, what_to_do: printable text, at most 4,000 characters each.
        tags: at most one per entry, in the model's order.
        rejected: how many pieces were refused, by reason.
    """

    what_went_wrong: str = ""
    what_to_do: str = ""
    tags: tuple[tuple[str, Tag], ...] = ()
    rejected: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.what_went_wrong or self.what_to_do)


def parse_reflection(output: str) -> Reflection:
    """Parse a reflector's output; never raises.

    Output without any JSON object is taken as a reflection in prose (counted as `no_json`).
    """
    found, how = find_object(output, (*_WRONG, *_TO_DO, *_TAGS))
    rejected: Counter[str] = Counter()
    if how not in ("ok", "repaired"):
        rejected[f"reflection_{how}"] += 1
    if found is None:
        return Reflection(what_to_do=_prose(output) if how == "no_json" else "", rejected=rejected)
    tags, refused = _parse_tags(found)
    wrong, to_do = _first_text(found, _WRONG, refused), _first_text(found, _TO_DO, refused)
    if not wrong and not to_do:
        refused["reflection_no_text"] += 1
    return Reflection(wrong, to_do, tags, rejected + refused)


def parse_success_tags(output: str) -> Reflection:
    """Parse the output of the lighter call that only tags entries after a success."""
    found, how = find_object(output, _TAGS)
    if found is None:
        return Reflection(rejected=Counter({f"review_{how}": 1}))
    tags, refused = _parse_tags(found)
    return Reflection(tags=tags, rejected=refused)


def _parse_tags(found: dict[str, Any]) -> tuple[tuple[tuple[str, Tag], ...], Counter[str]]:
    value = next((found[name] for name in _TAGS if found.get(name) not in (None, "")), None)
    rejected: Counter[str] = Counter()
    tags: dict[str, Tag] = {}
    items = as_list(value)
    if value is not None and not isinstance(value, list | dict):
        rejected["tags_not_a_list"] += 1
    for item in items[:_MAX_TAGS]:
        item = lower_keys(item) if isinstance(item, dict) else {}
        id_ = as_id(item.get("id"))
        tag = _TAG_NAMES.get(as_text(item.get("tag")).strip().lower())
        if not id_ or tag is None:
            rejected["tag_malformed"] += 1
        elif id_ in tags:
            rejected["tag_repeated"] += 1
        else:
            tags[id_] = tag
    rejected["tag_too_many"] += max(0, len(items) - _MAX_TAGS)
    return tuple(tags.items()), +rejected


def _prose(output: str) -> str:
    """A reflection in prose; a JSON value that is no object (null, a list, a number) is none."""
    text = strip_thinking(output)
    with contextlib.suppress(ValueError, RecursionError):
        text = as_text(json.loads(text))
    return _clean(text) if any(c.isalpha() for c in text) else ""


def _first_text(found: dict[str, Any], names: tuple[str, ...], refused: Counter[str]) -> str:
    values = [found[name] for name in names if found.get(name) not in (None, "")]
    text = next((text for value in values if (text := _clean(as_text(value)))), "")
    refused["reflection_text_mistyped"] += bool(values) and not text
    return text


def _clean(text: str) -> str:
    text = strip_thinking(printable(text))[:_MAX_CHARS].strip()
    return text if says_something(text) else ""
