"""Curation: the operations that a curator asks for (paper: CURATE, App. D).

ADD is the paper's. UPDATE, MERGE and REMOVE are ours: a playbook that can only grow goes bad.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from resd.context.parsing import as_id, as_list, as_text, find_objects, lower_keys
from resd.context.playbook import SECTIONS, Operation
from resd.text import one_line, says_something, strip_thinking

_KEYS = ("operations", "ops")
_NAMES = {
    "ADD": "ADD",
    "UPDATE": "UPDATE",
    "MERGE": "MERGE",
    "REMOVE": "REMOVE",
    "DELETE": "REMOVE",
}
_MAX_OPERATIONS = 16


@dataclass(frozen=True)
class Curation:
    """Parsed operations, and how many pieces were refused, by reason."""

    operations: tuple[Operation, ...] = ()
    rejected: Counter[str] = field(default_factory=Counter)


def parse_curation(output: str) -> Curation:
    """Parse a curator's output; never raises.

    Of several lists of operations the last counts; without any, operations that stand alone do.
    """
    found, how = find_objects(output, (*_KEYS, "op", "type"))
    if not found:
        return Curation(rejected=Counter({f"curation_{how}": 1}))
    lists = [item[key] for item in found for key in _KEYS if key in item]
    value: Any = lists[-1] if lists else found
    rejected: Counter[str] = Counter()
    if not isinstance(value, list | dict):
        rejected["operations_not_a_list"] += 1
    items = as_list(value)
    if how == "repaired" and value == []:
        rejected["curation_cut_off"] += 1
    operations = []
    for item in items[:_MAX_OPERATIONS]:
        operation, reason = _parse_operation(item)
        if operation is not None:
            operations.append(operation)
        if reason:
            rejected[reason] += 1
    rejected["operation_too_many"] += max(0, len(items) - _MAX_OPERATIONS)
    return Curation(tuple(operations), +rejected)


def _parse_operation(item: Any) -> tuple[Operation | None, str]:
    if not isinstance(item, dict):
        return None, "operation_not_an_object"
    item = lower_keys(item)
    name = _NAMES.get((as_text(item.get("op")) or as_text(item.get("type"))).strip().upper())
    content = one_line(strip_thinking(as_text(item.get("content"))))
    ids = _ids(item)
    if name is None:
        return None, "operation_unknown"
    if name != "REMOVE" and not says_something(content):
        return None, "operation_no_content"
    if name == "ADD":
        section, known = _section(as_text(item.get("section")))
        return Operation("ADD", content, section), "" if known else "section_unknown"
    if len(ids) < (2 if name == "MERGE" else 1):
        return None, "operation_no_id"
    if name == "MERGE":
        return Operation("MERGE", content, ids=ids), ""
    if name == "UPDATE":
        return Operation("UPDATE", content, ids=ids[:1]), ""
    return Operation("REMOVE", ids=ids[:1]), ""


def _ids(item: dict[str, Any]) -> tuple[str, ...]:
    value = item.get("ids") or item.get("id")
    values = value if isinstance(value, list) else [value]
    ids = (as_id(v) for v in values[:_MAX_OPERATIONS] if isinstance(v, str))
    return tuple(dict.fromkeys(id_ for id_ in ids if id_))


def _section(name: str) -> tuple[str, bool]:
    """The slug of a section given as slug or full name, and whether it was known."""
    plain = one_line(name).lower().replace("_", " ")
    if plain in SECTIONS:
        return plain, True
    for slug, title in SECTIONS.items():
        if plain and plain == title:
            return slug, True
    return "misc", not plain
