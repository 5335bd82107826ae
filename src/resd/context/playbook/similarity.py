"""Whether two lessons say the same, so that near-duplicates become one."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from functools import lru_cache

_QUOTED = re.compile(r"""(?<!\w)(["'`])(?=\S)(.{1,80}?)(?<=\S)\1(?!\w)""")
_SILENT = frozenset(
    [
        *("a", "an", "the", "is", "are", "be", "to", "of", "that", "this"),
        *("please", "always", "should", "must", "will"),
    ]
)
_SIGNIFICANT = re.compile(
    r"[^a-z]|^(?:no|not|never|none|nor|neither|cannot|without|only|except|unless|before|after"
    r"|first|last|more|less|above|below|left|right)$"
)
_MAX_COMPARED = 120


def significant_words(content: str) -> list[str]:
    """The words and symbols of a lesson that carry its meaning, in order."""
    return list(_significant(content)[0])


def same_lesson(a: str, b: str, similarity: float) -> bool:
    """Whether two lessons say the same.

    They do if their significant words are the same, or if the sequences are at least `similarity`
    alike and what differs holds no number, symbol, capital or negation: a single such token
    ("close with `;`" against "close with `!`") can turn a lesson into its opposite.
    """
    (x, in_x), (y, in_y) = _significant(a), _significant(b)
    if x == y:
        return True
    total = len(x) + len(y)
    # Upper bounds that are cheap, and a bound on the time that the matcher can take.
    if 2 * min(len(x), len(y)) < similarity * total or total > 2 * _MAX_COMPARED:
        return False
    if 2 * sum((in_x & in_y).values()) < similarity * total:
        return False
    matcher = difflib.SequenceMatcher(None, x, y, autojunk=False)
    if matcher.ratio() < similarity:
        return False
    changed = [op for op in matcher.get_opcodes() if op[0] != "equal"]
    words = [w for _, i, j, k, m in changed for w in (*x[i:j], *y[k:m])]
    return not any(_SIGNIFICANT.search(word) for word in words)


@lru_cache(maxsize=4096)
def _significant(content: str) -> tuple[tuple[str, ...], Counter[str]]:
    # Quotes around words are decoration; a quote that stands alone may be what a lesson is about.
    plain = _QUOTED.sub(r"\2", content.strip().rstrip("."))
    words = re.findall(r"\w+|[^\w\s,]", plain)
    if words:
        words[0] = words[0][:1].lower() + words[0][1:]
    # The last word may be the value that a lesson gives: "close with please".
    *before, last = words or [""]
    kept = (*(word for word in before if word not in _SILENT), last)
    return kept, Counter(kept)
