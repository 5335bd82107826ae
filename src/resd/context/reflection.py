"""Reflections: what went wrong, what to do, and tags for playbook entries (paper: REFLECT)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from resd.context.fields import as_id, as_text, fields, first, is_id, plain
from resd.context.parsing import (
    MAX_DEPTH,
    Found,
    Output,
    find_answers,
    find_marked,
    find_yaml,
    inside,
)
from resd.context.playbook import Tag
from resd.text import printable, says_something

_WRONG = (
    *("whatwentwrong", "erroridentification", "rootcauseanalysis", "rootcause", "error", "wrong"),
    *("whatwaswrong", "mistake", "diagnosis", "failure"),
)
_TO_DO = (
    *("whattodo", "keyinsight", "correctapproach", "lesson", "insight", "todo", "whattodoinstead"),
    *("whattodonexttime", "whattodonext", "advice", "fix", "recommendation", "lessonlearned"),
)
_TAGS = ("tags", "bullettags", "entrytags", "playbooktags", "lessontags")
_TAG = ("tag", "label", "rating", "verdict", "vote")
_ID = ("id", "bulletid", "entryid", "lessonid", "bullet", "entry")
_NAMES: dict[str, Tag] = {"helpful": "helpful", "harmful": "harmful", "neutral": "neutral"}
_PAIR = re.compile(r"([A-Za-z]{2,8}[-_][0-9]{1,18})\W{1,6}(helpful|harmful|neutral)\b", re.I)
# Marks tags that stood without the key for them; no plain key holds a `!`.
_LOOSE = "loose!"
_MAX_TAGS = 64
_MAX_CHARS = 4000
_FORM = "the keys 'what_went_wrong', 'what_to_do' and 'tags'"


@dataclass(frozen=True)
class Reflection:
    """A parsed reflection.

    Attributes:
        what_went_wrong, what_to_do: printable text, at most 4,000 characters each.
        tags: at most one per entry, in the model's order.
        rejected: how many pieces were refused, by reason.
        problem: one sentence that tells the model why nothing could be read; empty if it could.
    """

    what_went_wrong: str = ""
    what_to_do: str = ""
    tags: tuple[tuple[str, Tag], ...] = ()
    rejected: Counter[str] = field(default_factory=Counter)
    problem: str = ""

    def __bool__(self) -> bool:
        return bool(self.what_went_wrong or self.what_to_do)


_Answer = dict[str, Any]


def parse_reflection(output: str) -> Reflection:
    """Parse a reflector's output; never raises.

    Of several answers the last that says something counts. Prose is no reflection: it is counted.
    """
    read = Output.of(output)
    rejected: Counter[str] = Counter(reflection_too_long=int(read.too_long))
    found = find_answers(read.text, _look, _says)
    if not any(_says(item.answer) for item in found):
        for find in (find_marked, find_yaml):
            other = find(read.text, _look, (*_WRONG[:3], *_TO_DO[:3], *_TAGS))
            if any(_says(item.answer) for item in other):
                found = other
    if not found:
        rejected[f"reflection_{read.failure()}"] += 1
        return Reflection(rejected=+rejected, problem=read.problem(_FORM))
    chosen, drafts, cut = _choose(found)
    rejected["reflection_draft"] += drafts
    rejected["reflection_cut_off"] += cut
    tags, refused = _parse_tags(first(chosen, _TAGS))
    wrong, to_do = _first_text(chosen, _WRONG, refused), _first_text(chosen, _TO_DO, refused)
    problem = ""
    if not wrong and not to_do:
        refused["reflection_no_text"] += 1
        problem = (
            "Your answer had no text in 'what_went_wrong' and 'what_to_do'; answer with one JSON "
            f"object with {_FORM}."
        )
    return Reflection(wrong, to_do, tags, +(rejected + refused), problem)


def parse_success_tags(output: str) -> Reflection:
    """Parse the output of the lighter call that only tags entries after a success."""
    read = Output.of(output)
    rejected: Counter[str] = Counter(review_too_long=int(read.too_long))
    found = find_answers(read.text, _look, lambda answer: any(name in answer for name in _TAGS))
    if not any(_tagged(item.answer) for item in found):
        found = found or find_yaml(read.text, _look, (*_TAGS, "id", "entryid"))
    tagged = [item for item in found if any(name in item.answer for name in _TAGS)]
    if not tagged:
        rejected[f"review_{read.failure()}" if not found else "review_wrong_keys"] += 1
        return Reflection(rejected=+rejected, problem=read.problem("a list 'tags'"))
    chosen, drafts, _ = _choose(tagged, _tagged)
    rejected["review_draft"] += drafts
    tags, refused = _parse_tags(first(chosen, _TAGS))
    return Reflection(tags=tags, rejected=+(rejected + refused))


# -- which JSON values hold a reflection -------------------------------------------------------


def _look(value: Any, depth: int = 0) -> list[_Answer]:
    if depth > MAX_DEPTH:
        return []
    if isinstance(value, str):
        return inside(value, lambda inner: _look(inner, depth + 1))
    if isinstance(value, list):
        if any(map(_is_tag, value)):
            return [{"tags": value, _LOOSE: True}]
        return [answer for item in value for answer in _look(item, depth + 1)]
    if not isinstance(value, dict):
        return []
    found = fields(value)
    text = [name for name in (*_WRONG, *_TO_DO) if name in found]
    if text or any(name in found for name in _TAGS):
        # Texts and tags may stand in objects of their own.
        missing = _TAGS if text else (*_WRONG, *_TO_DO)
        for inner in value.values():
            for answer in _look(inner, depth + 1) if isinstance(inner, dict) else ():
                found.update({k: v for k, v in answer.items() if k in missing and k not in found})
        return [found]
    if _is_tag(value):
        return [{"tags": [value], _LOOSE: True}]
    if any(name in found for name in _NAMES) or (value and _is_mapping(value)):
        return [{"tags": value, _LOOSE: True}]
    return [answer for item in value.values() for answer in _look(item, depth + 1)]


def _is_tag(value: Any) -> bool:
    """Whether an object, pair or text tags one entry."""
    if isinstance(value, dict):
        found = fields(value)
        return any(n in found for n in _ID) and any(n in found for n in (*_TAG, *_NAMES))
    if isinstance(value, list):
        return len(value) == 2 and is_id(value[0]) and _name(value[1]) is not None
    return isinstance(value, str) and _PAIR.fullmatch(value.strip()[:80]) is not None


def _is_mapping(value: dict[str, Any]) -> bool:
    return all(is_id(key) and _name(item) for key, item in value.items())


def _says(answer: _Answer) -> bool:
    return any(_clean(as_text(answer.get(name))) for name in (*_WRONG, *_TO_DO))


def _tagged(answer: _Answer) -> bool:
    return first(answer, _TAGS) is not None


def _choose(found: list[Found[_Answer]], good: Any = _says) -> tuple[_Answer, int, bool]:
    """The answer that counts, completed by what stands beside it; how many were drafts; cut off."""
    places = [i for i, item in enumerate(found) if good(item.answer)] or [len(found) - 1]
    last = places[-1]
    begin, end = last, last + 1
    while begin > 0 and found[begin].joined:
        begin -= 1
    while end < len(found) and found[end].joined:
        end += 1
    chosen = {**found[last].answer}
    loose = [found[i].answer["tags"] for i in range(begin, end) if _LOOSE in found[i].answer]
    if loose and (_LOOSE in chosen or first(chosen, _TAGS) is None):
        chosen["tags"] = [tag for tags in loose for tag in _one_by_one(tags)]
    for item in reversed(found[begin:end]):
        for group in (_WRONG, _TO_DO, _TAGS):
            if not any(name in chosen for name in group):
                chosen.update({k: v for k, v in item.answer.items() if k in group})
    drafts = sum(place < begin for place in places)
    return chosen, drafts, found[last].cut


# -- tags and texts ----------------------------------------------------------------------------


def _one_by_one(value: Any) -> list[Any]:
    """Tags one by one: out of a list, a mapping by id, by tag, or a text that names pairs."""
    if isinstance(value, list):
        return [one for item in value for one in _one_by_one_item(item)]
    if isinstance(value, dict):
        return _one_by_one_item(value)
    return [{"id": id_, "tag": tag} for id_, tag in _PAIR.findall(value[:20_000])]


def _one_by_one_item(item: Any) -> list[Any]:
    if isinstance(item, list):
        return [{"id": item[0], "tag": item[1]}] if _is_tag(item) else [item]
    if isinstance(item, str):
        return _one_by_one(item) or [item]
    if not isinstance(item, dict) or not item:
        return [item]
    found = fields(item)
    if any(name in found for name in _ID):
        return [item]
    if all(plain(str(key)) in _NAMES for key in item):
        return [
            {"id": one.get("id") if isinstance(one, dict) else one, "tag": name}
            for name, ids in item.items()
            for one in (ids if isinstance(ids, list) else [ids])
            if one not in (None, "")
        ]
    if any(map(_is_tag, item.values())):
        return list(item.values())
    if any(is_id(key) for key in item):
        return [
            {"id": key, "tag": first(fields(tag), _TAG) if isinstance(tag, dict) else tag}
            for key, tag in item.items()
        ]
    return [item]


def _parse_tags(value: Any) -> tuple[tuple[tuple[str, Tag], ...], Counter[str]]:
    rejected: Counter[str] = Counter()
    tags: dict[str, Tag] = {}
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = next(iter(inside(value, lambda inner: [inner])), value)
    items = _one_by_one(value) if isinstance(value, list | dict | str) else []
    if value is not None and not items and not isinstance(value, list | dict):
        rejected["tags_not_a_list"] += 1
    for item in items[:_MAX_TAGS]:
        found = fields(item) if isinstance(item, dict) else {}
        id_, tag = as_id(first(found, _ID)), _tag(found)
        if not id_ or tag is None:
            rejected["tag_malformed"] += 1
        elif id_ in tags:
            rejected["tag_repeated"] += 1
        else:
            tags[id_] = tag
    rejected["tag_too_many"] += max(0, len(items) - _MAX_TAGS)
    return tuple(tags.items()), +rejected


def _tag(found: dict[str, Any]) -> Tag | None:
    """The tag by its name, or by the one of three counts that is not zero."""
    named = _name(first(found, _TAG))
    counted = [name for name in _NAMES if found.get(name) not in (None, False, 0, "", "0")]
    return named or (_NAMES[counted[0]] if len(counted) == 1 else None)


def _name(value: Any) -> Tag | None:
    return _NAMES.get(plain(as_text(value)))


def _first_text(found: _Answer, names: tuple[str, ...], refused: Counter[str]) -> str:
    values = [found[name] for name in names if found.get(name) not in (None, "")]
    text = next((text for value in values if (text := _clean(as_text(value)))), "")
    refused["reflection_text_mistyped"] += bool(values) and not text
    return text


def _clean(text: str) -> str:
    text = printable(text)[:_MAX_CHARS].strip()
    return text if says_something(text) else ""
