"""Lines of untrusted text that would open a section of a prompt, whatever template wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

from resd.context.playbook import Entry
from resd.context.reflection import Reflection
from resd.text import LINE_ENDS, mark_breaker

# Stand where text would; no template holds them. The backticks tell a fence that grows with its
# content, which nothing can close, from one that a template spells out.
_TICKS = "`" * 9


def _probe(name: str) -> str:
    return f"qz{name}qz{_TICKS}"


_FULL: dict[str, Any] = {
    "playbook": [Entry("misc-00001", _probe("entry"))],
    "trial": _probe("trial"),
    "feedback": _probe("feedback"),
    "reflection": Reflection(_probe("wrong"), _probe("todo")),
    "solution": _probe("solution"),
    "conversation": [
        {"role": role, "content": _probe("conversation")} for role in ("system", "assistant")
    ],
    "add_only": True,
}
_PROBE = re.compile(rf"qz[a-z]+qz{_TICKS}")
_ID = r"(?:sai|calc|code|err|heu|ctx|misc)-[0-9]{5,}"
_TAG = r"</?\w[^<>\n]*>|\[/?\w[\w ]*\]"
_TAGS = re.compile(
    rf"(?m:^[ \t]*({_TAG})[ \t]*$)|({_TAG})(?=\s*{_PROBE.pattern})|{_PROBE.pattern}\s*({_TAG})"
)
# Markdown in front of a heading leaves it one; a quoted line opens nothing.
_LEAD = r"[ \t#*_~=-]*"
_CLAUSE_END = re.compile(r"[:：]|[.,;!?](?=\s|$)")
_LINE_END = rf"(?=[{LINE_ENDS}]|\Z)"
_WORDS_OF_A_CLAUSE = 3

Render = Callable[..., str]


def line_guard(renders: Iterable[Render]) -> Callable[[str], str]:
    """A function that quotes every line of a text with which some template opens a section.

    `A solution that passed:` becomes `> A solution that passed:`. The templates are asked: each is
    rendered with and without each section, and whatever line, or beginning of a line, is its own
    opens a section, in any case and with Markdown before it. Tags around a section (`</trial>`)
    are broken anywhere. What was quoted once stays as it is.

    Args:
        renders: each takes `question` and the sections by name, to text.
    """
    tags: dict[str, None] = {}
    # Renderings share most of their lines.
    texts = dict.fromkeys(text for render in renders for text in _renderings(render))
    lines = dict.fromkeys(line for text in texts for line in text.splitlines())
    openings = dict.fromkeys(filter(None, map(_opening, lines)))
    for text in texts:
        tags |= {tag: None for match in _TAGS.finditer(text) for tag in match.groups() if tag}
    broken = mark_breaker(list(tags))
    if not openings:
        return broken
    opened = re.compile(rf"(?:\A|[{LINE_ENDS}])(?={_LEAD}(?:{'|'.join(openings)}))", re.IGNORECASE)
    return lambda text: broken(opened.sub(r"\g<0>> ", text))


def shows(render: Render, name: str) -> bool:
    """Whether a template prints "question", "trial", ... or "conversation"."""
    return _probe(name) in render(question=_probe("question"), **_FULL)


def _renderings(render: Render) -> Iterable[str]:
    """The template with every section and none, with each alone, with each left out."""
    names = list(_FULL)
    for size in (0, 1, len(names) - 1, len(names)):
        for chosen in combinations(names, size):
            yield render(question=_probe("question"), **{name: _FULL[name] for name in chosen})


def _opening(line: str) -> str:
    """A pattern of lines that pass for a line of the template; empty if none does."""
    before, *text = _PROBE.split(line)
    literal = before.strip()
    if text and (entry := re.search(rf"({_ID})(\]?\s*[a-z]*)", literal)):
        rest = re.split(r"\s+", entry[2].rstrip())
        return re.escape(literal[: entry.start()]) + _ID + r"[ \t]*".join(map(re.escape, rest))
    if fence := re.match(r"(`{3,9}|~{3,})(?!`)", literal):
        return fence[1]
    core = literal.lstrip("#*_~=-> \t").rstrip("#*_~= \t")
    if not re.fullmatch(_TAG, core):
        core = re.sub(rf"\s*(?:{_TAG})$", "", core)
    # The form of an answer is no heading.
    if not any(map(str.isalnum, core)) or core[0] in "{\"'" or re.fullmatch(_TAG, core):
        return ""
    if text and core[-1] not in ":：":
        return _words(core) + (r"\b" if core[-1].isalnum() else "")
    for end in _CLAUSE_END.finditer(core):
        clause = core[: end.start()]
        if end[0] in ":：" and any(map(str.isalpha, clause)):
            return _words(clause) + r"[ \t*_~=]*[:：]"
        if len(clause.split()) >= _WORDS_OF_A_CLAUSE and any(map(str.isalpha, clause)):
            return _words(clause) + r"\b"
    # `notes` alone on its line is a heading; `notes of a song` is none.
    return _words(core.rstrip(".,;!?")) + rf"[ \t.,;!?*_#~=]*(?:[:：]|{_LINE_END})"


def _words(text: str) -> str:
    words = (re.sub("[0-9]+", "[0-9]+", re.escape(word)) for word in text.split())
    return r"[ \t]+".join(words)
