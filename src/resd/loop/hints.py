"""Does a response name hints that only the teacher sees?

The student's prompt holds no playbook, feedback or reflection. A student that speaks of them has
learnt the teacher's manner of speaking, not the task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from resd.types import Rollout

_SOURCES = "playbook|feedback|reflection|lessons?|hints?|curator"
# Phrases that name a source as something at hand: no task and no pretrained model has much use for
# them. "My previous attempt" alone is none: a model that thinks may mean its own thoughts.
_PHRASES = (
    r"\bthe playbook\b",
    rf"\baccording to (?:the|this|my|your) (?:{_SOURCES})\b",
    rf"\b(?:the|this|my|your) (?:{_SOURCES}) (?:above|says?|said|tells?|told|states?|suggests?|"
    r"suggested|mentions?|mentioned|indicates?|warns?|points? out|reminds?)\b",
    rf"\b(?:{_SOURCES})(?: that (?:was|were|is|are))? (?:given|shown|listed|provided) above\b",
    # Headings of the built-in templates, and ids of lessons.
    r"\blessons from earlier attempts\b",
    r"\bearlier attempt that failed\b",
    r"\bwhat was found when it was checked\b",
    r"\ba reflection on it\b",
    r"\ba solution that passed\b",
    r"\[(?:sai|calc|code|err|heu|ctx|misc)-\d{5,}\]",
)
_NAMED = re.compile("|".join(_PHRASES))


def names_hints(rollout: Rollout) -> bool:
    """Whether a response names a hint; words that its own prompt has do not count."""
    found = {match[0] for match in _NAMED.finditer(_plain(rollout.completion.text))}
    if not found:
        return False
    asked = _plain(" ".join(message["content"] for message in rollout.example.prompt))
    return any(phrase not in asked for phrase in found)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def share_naming_hints(rollouts: Sequence[Rollout]) -> float:
    """Of all responses of a step, between 0 and 1."""
    return sum(map(names_hints, rollouts)) / max(1, len(rollouts))
