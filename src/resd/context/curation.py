"""Curation: the operations that a curator asks for (paper: CURATE, App. D).

ADD is the paper's. UPDATE, MERGE and REMOVE are ours: a playbook that can only grow goes bad.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from resd.context.fields import as_section, as_text, fields, first, ids_in, is_id, plain
from resd.context.lenient_json import Cut
from resd.context.parsing import MAX_DEPTH, Found, Output, find_answers, find_yaml, inside
from resd.context.playbook import Operation
from resd.text import one_line, says_something

_Op = Literal["ADD", "UPDATE", "MERGE", "REMOVE"]
_VERBS: dict[str, _Op] = {
    **dict.fromkeys(("add", "added", "adds", "additions", "create", "insert", "new"), "ADD"),
    **dict.fromkeys(("append", "newlessons", "newentries", "newbullets"), "ADD"),
    **dict.fromkeys(("update", "updates", "modify", "edit", "revise", "rewrite"), "UPDATE"),
    **dict.fromkeys(("replace", "change", "modifications", "correct"), "UPDATE"),
    **dict.fromkeys(("merge", "merges", "combine", "consolidate"), "MERGE"),
    **dict.fromkeys(("remove", "removes", "removals", "delete", "deletions", "drop"), "REMOVE"),
    **dict.fromkeys(("discard", "prune"), "REMOVE"),
}
_SURE = ("operations", "ops")
_LISTS = (
    *("operation", "actions", "action", "changes", "edits", "commands", "updates"),
    *("curations", "curation", "playbookoperations", "playbookupdates", "operationlist"),
)
_OP = ("op", "type", "operation", "action", "command", "kind", "optype", "operationtype", "verb")
_CONTENT = (
    *("content", "text", "lesson", "bullet", "newcontent", "newtext", "updatedcontent", "entry"),
    *("insight", "rule", "value", "description", "note", "message", "body", "advice", "tip"),
)
_SECTION = ("section", "sectionname", "category", "sectionslug", "slug", "topic")
_ID = ("ids", "id", "bulletids", "bulletid", "entryids", "entryid", "lessonids", "lessonid")
_MORE_IDS = (
    *("targets", "target", "targetids", "targetid", "sources", "source", "sourceids", "from"),
    *("bullets", "entries", "lessons", "with", "into", "and", "key", "id1", "id2"),
)
_NESTED = ("arguments", "args", "payload", "data", "params", "parameters", "item", "fields")
_YAML = (*_SURE, "op", "operation", "action", "add", "update", "merge", "remove")
_MAX_OPERATIONS = 16
_FORM = "a list 'operations', each with an 'op' that is ADD, UPDATE, MERGE or REMOVE"


@dataclass(frozen=True)
class Curation:
    """Parsed operations, and how many pieces were refused, by reason.

    Attributes:
        problem: one sentence that tells the model why nothing could be read; empty if something
            could, an empty list included.
    """

    operations: tuple[Operation, ...] = ()
    rejected: Counter[str] = field(default_factory=Counter)
    problem: str = ""


@dataclass(frozen=True)
class _Wishes:
    """What stood in one list of operations, or one operation that stood alone."""

    items: tuple[Any, ...]
    listed: bool
    alone: bool = False
    malformed: bool = False


def parse_curation(output: str) -> Curation:
    """Parse a curator's output; never raises.

    Of several lists of operations the last that holds one counts, together with those that nothing
    parts it from; without any list, operations that stand alone do.
    """
    read = Output.of(output)
    rejected: Counter[str] = Counter(curation_too_long=int(read.too_long))
    found = find_answers(read.text, _look, lambda wishes: wishes.listed)
    if not found:
        found = find_yaml(read.text, _look, _YAML)
    if not found and read.text in ("[]", "[ ]"):
        return Curation(rejected=+rejected)
    if not found:
        rejected[f"curation_{read.failure()}"] += 1
        return Curation(rejected=+rejected, problem=read.problem(_FORM))
    parsed = [_parse_items(item) for item in found]
    chosen = _choose(parsed)
    operations: dict[Operation, None] = {}
    for place in chosen:
        operations.update(dict.fromkeys(parsed[place][0]))
        rejected += parsed[place][1]
    # Lists that a later one takes the place of.
    rejected["curation_draft"] += sum(
        bool(operations_) and place not in chosen
        for place, (operations_, _, _) in enumerate(parsed)
    )
    kept = tuple(operations)
    rejected["operation_too_many"] += max(0, len(kept) - _MAX_OPERATIONS)
    refused = +rejected
    unread = refused - Counter(curation_too_long=1)
    problem = "" if kept or not unread else _problem(unread)
    return Curation(kept[:_MAX_OPERATIONS], refused, problem)


_Parsed = tuple[tuple[Operation, ...], Counter[str], Found[_Wishes]]


def _choose(parsed: list[_Parsed]) -> list[int]:
    """Which of the answers count."""
    places = list(range(len(parsed)))
    lists = [i for i in places if not parsed[i][2].answer.alone]
    good = [i for i in lists if parsed[i][0]]
    if not good:
        alone = [i for i in places if parsed[i][2].answer.alone]
        return alone or lists[-1:]
    last = good[-1]
    chosen = [last]
    # JSON lines: what follows without a word between is no second thought.
    while last > 0 and parsed[last][2].joined:
        last -= 1
        chosen.insert(0, last)
    return chosen


def _problem(refused: Counter[str]) -> str:
    why = {
        "operation_unknown": "no 'op' that is ADD, UPDATE, MERGE or REMOVE",
        "operation_no_content": "no 'content'",
        "operation_no_id": "no 'id' of an entry, or fewer than two 'ids' for a MERGE",
        "operation_not_an_object": "an operation that is no JSON object",
        "curation_cut_off": "no end: the JSON was cut off",
    }
    reason = next((why[name] for name in why if name in refused), "no list 'operations'")
    return f"Your answer had {reason}; answer with one JSON object with {_FORM}."


# -- which JSON values hold operations ---------------------------------------------------------


def _look(value: Any, depth: int = 0) -> list[_Wishes]:
    if depth > MAX_DEPTH:
        return []
    if isinstance(value, str):
        return inside(value, lambda inner: _look(inner, depth + 1))
    if isinstance(value, list):
        if any(_is_operation(item) for item in value):
            return [_Wishes(_items(value), listed=False)]
        return [wishes for item in value for wishes in _look(item, depth + 1)]
    if not isinstance(value, dict):
        return []
    found = fields(value)
    name = next((name for name in _SURE if name in found), "")
    if not name and not _is_operation(value):
        name = next((n for n in _LISTS if _may_be_list(found.get(n))), "")
    if name:
        inner = _decoded(found[name])
        if not isinstance(inner, list | dict):
            return [_Wishes((), listed=True, malformed=True)]
        return [_Wishes(_items(inner), listed=True)]
    if _is_operation(value) or _grouped(found):
        return [_Wishes(_items(value), listed=False, alone=True)]
    return [wishes for item in value.values() for wishes in _look(item, depth + 1)]


def _may_be_list(value: Any) -> bool:
    value = _decoded(value)
    if isinstance(value, dict):
        return _is_operation(value) or bool(_grouped(fields(value)))
    return isinstance(value, list) and (not value or any(map(_is_operation, value)))


def _decoded(value: Any) -> Any:
    """A value out of a string that holds JSON once more."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and value.rstrip()[-1] in "]}":
        whole = inside(value, lambda inner: [inner])
        if whole:
            return whole[0]
        return [] if "".join(value.split()) in ("[]", "{}") else value
    return value


def _is_operation(value: Any) -> bool:
    """Whether an object names an operation, or is a lesson with its section."""
    if not isinstance(value, dict):
        return False
    found = fields(value)
    if _verb(found):
        return True
    if _grouped(found):
        return len(found) == 1
    return "section" in found and first(found, _CONTENT) is not None


def _grouped(found: dict[str, Any]) -> list[str]:
    """The keys that are names of operations, with something under them."""
    names = [name for name in found if name in _VERBS]
    return [name for name in names if isinstance(found[name], list | dict | str)]


def _verb(found: dict[str, Any]) -> _Op | None:
    for name in _OP:
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", as_text(found.get(name))[:40])
        if words and words[0].lower() in _VERBS:
            return _VERBS[words[0].lower()]
    return None


def _items(value: Any) -> tuple[Any, ...]:
    """Operations, one by one, out of a list or an object of any grouping."""
    if isinstance(value, list):
        return tuple(item for one in value for item in _items_of_one(one))
    found = fields(value)
    numbered = value and all(isinstance(item, dict) for item in value.values())
    if numbered and not _grouped(found) and any(map(_is_operation, value.values())):
        return _items(list(value.values()))
    return _items_of_one(value) if value else ()


def _items_of_one(value: Any) -> tuple[Any, ...]:
    value = _decoded(value)
    if isinstance(value, dict):
        found = fields(value)
        names = [] if _verb(found) else _grouped(found)
        if names:
            return tuple(i for name in names for i in _expand(_VERBS[name], found[name], found))
    return (value,)


def _expand(op: _Op, value: Any, beside: dict[str, Any]) -> list[Any]:
    """Operations out of what stands under the name of one."""
    if isinstance(value, list):
        if op == "MERGE" and value and all(isinstance(item, str) for item in value):
            return [{**beside, "op": op, "ids": value}]
        return [item for one in value for item in _expand(op, one, beside)]
    if isinstance(value, str):
        key = "content" if op == "ADD" else "id"
        return [{**beside, "op": op, key: value}]
    if not isinstance(value, dict):
        return [value]
    found = fields(value)
    if first(found, (*_CONTENT, *_ID, *_SECTION, *_MORE_IDS)) is None:
        if op == "ADD" and value and all(as_section(str(key))[1] for key in value):
            return [
                {"op": op, "section": key, "content": one}
                for key, item in value.items()
                for one in (item if isinstance(item, list) else [item])
            ]
        if value and all(map(is_id, value)):
            return [{"op": op, "id": key, "content": item} for key, item in value.items()]
    return [value if _verb(found) else {**value, "op": op}]


# -- one operation -----------------------------------------------------------------------------


def _parse_items(found: Found[_Wishes]) -> _Parsed:
    rejected: Counter[str] = Counter()
    operations: list[Operation] = []
    items = found.answer.items
    rejected["operations_not_a_list"] += found.answer.malformed
    rejected["curation_cut_off"] += found.cut and not items
    for item in items[:_MAX_OPERATIONS]:
        if isinstance(item, dict) and any(isinstance(part, Cut) for part in item.values()):
            # Half a lesson would stay for good.
            rejected["curation_cut_off"] += 1
            continue
        parsed, reason = _parse_operation(item)
        operations += parsed
        rejected[reason] += bool(reason)
    rejected["operation_too_many"] += max(0, len(items) - _MAX_OPERATIONS)
    return tuple(operations), +rejected, found


def _parse_operation(item: Any) -> tuple[list[Operation], str]:
    if not isinstance(item, dict):
        return [], "operation_not_an_object"
    found = fields(item)
    for name in (*_OP, *_CONTENT, *_NESTED):
        inner = _decoded(found.get(name))
        if isinstance(inner, dict) and first(fields(inner), (*_OP, *_CONTENT, *_ID)) is not None:
            found = {**found, name: None, **fields(inner)}
    op = _verb(found)
    content = one_line(as_text(first(found, _CONTENT)))
    if op is None and content and not any(name in found for name in (*_OP, *_ID)):
        op = "ADD"
    if op is None:
        return [], "operation_unknown"
    if op != "REMOVE" and not says_something(content):
        return [], "operation_no_content"
    if op == "ADD":
        names = (*_SECTION, *(n for n in _OP if plain(as_text(found.get(n))) not in _VERBS))
        section, known = as_section(as_text(first(found, names)))
        return [Operation("ADD", content, section)], "" if known else "section_unknown"
    ids = _ids(found, fewest=2 if op == "MERGE" else 1)
    if len(ids) < (2 if op == "MERGE" else 1):
        return [], "operation_no_id"
    if op == "REMOVE":
        return [Operation("REMOVE", ids=(id_,)) for id_ in ids], ""
    return [Operation(op, content, ids=ids if op == "MERGE" else ids[:1])], ""


def _ids(found: dict[str, Any], fewest: int) -> tuple[str, ...]:
    """The ids of an operation: from the first key with enough, else from all of them."""
    gathered: list[str] = []
    for name in (*_ID, *_MORE_IDS):
        value = found.get(name)
        values = value if isinstance(value, list) else [value]
        texts = [as_text(fields(v).get("id")) if isinstance(v, dict) else v for v in values]
        ids = [i for t in texts[:_MAX_OPERATIONS] if isinstance(t, str) for i in ids_in(t) if i]
        ids = list(dict.fromkeys(ids))
        if len(ids) >= fewest:
            return tuple(ids[:_MAX_OPERATIONS])
        gathered += ids
    return tuple(dict.fromkeys(gathered))
