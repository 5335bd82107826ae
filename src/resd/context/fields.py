"""Reading the fields of a JSON value that a model wrote, however it spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from resd.context.playbook import SECTIONS
from resd.text import one_line

_ID = re.compile(r"[\W_]*([a-z]+)[-_ ]?0*([0-9]{1,18})(?:[\W_]*|\] helpful=.*)", re.IGNORECASE)
_IDS = re.compile(rf"\b(?:{'|'.join(SECTIONS)})[-_ ]?[0-9]{{1,18}}\b", re.IGNORECASE)
# Words by which a section is recognised, by their beginning.
_SECTION_WORDS = {
    **dict.fromkeys(("strateg", "insight"), "sai"),
    **dict.fromkeys(("formula", "calculat"), "calc"),
    **dict.fromkeys(("snippet", "template", "code"), "code"),
    **dict.fromkeys(("mistake", "error", "pitfall", "err"), "err"),
    **dict.fromkeys(("heuristic", "problem", "heu"), "heu"),
    **dict.fromkeys(("context", "clue", "indicator", "ctx"), "ctx"),
    **dict.fromkeys(("other", "misc", "general"), "misc"),
}


def plain(name: str) -> str:
    """A name without case, spaces and punctuation: `What to do`, `whatToDo` are `whattodo`."""
    return "".join(char for char in name.lower() if char.isalnum())


def fields(value: dict[Any, Any]) -> dict[str, Any]:
    """An object by its plain keys; of keys that become one, the first that holds something."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = plain(str(key))
        if found.get(name) in (None, "", [], {}):
            found[name] = item
    return found


def first(found: dict[str, Any], names: Iterable[str]) -> Any:
    """The first of these fields that holds something, or None."""
    values = (found.get(name) for name in names)
    return next((value for value in values if value not in (None, "", [], {})), None)


def as_text(value: Any) -> str:
    """A string out of a JSON value: strings as they are, lists joined, everything else empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(item for item in value if isinstance(item, str))
    return ""


def as_id(value: Any) -> str:
    """An entry's id in the playbook's form, however a model spells it: `[SAI-12]` is `sai-00012`.

    What does not look like an id comes back as one line; the playbook will not know it.
    """
    text = one_line(as_text(value))
    match = _ID.fullmatch(text)
    return f"{match.group(1).lower()}-{int(match.group(2)):05d}" if match else text


def is_id(value: Any) -> bool:
    """Whether a value is one entry's id."""
    return isinstance(value, str) and len(value) < 40 and _ID.fullmatch(value.strip()) is not None


def ids_in(text: str) -> list[str]:
    """The ids of a text that names several: `sai-00001, sai-00002`; else the text as one id."""
    found = _IDS.findall(text[:4000])
    return [as_id(item) for item in found] if len(found) > 1 else [as_id(text)]


def as_section(name: str) -> tuple[str, bool]:
    """The slug of a section given as slug, title or a mixture, and whether it was known."""
    words = re.findall(r"[a-z]+", one_line(name).lower()[:200])
    if not plain(name):
        return "misc", True
    for word in words:
        slug = next((s for stem, s in _SECTION_WORDS.items() if word.startswith(stem)), "")
        if slug or word in SECTIONS:
            return slug or word, True
    return "misc", False
