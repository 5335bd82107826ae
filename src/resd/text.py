"""Cleaning and shortening of untrusted text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

CountTokens = Callable[[str], int]

_THINK_TAG = re.compile(r"<(?:\s*(/))?\s*think(?:ing)?\s*(?:\s[\w-]+=[^<>/]*)?>", re.IGNORECASE)
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Control characters, lone surrogates, and what has no width or turns the writing direction. The
# joiners U+200C and U+200D stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufeff\U000e0000-\U000e007f]"
)
_CUT = " [...] "
_ROUNDS = 4
_SHORTEN_ROUNDS = 7
_CHARS_PER_TOKEN, _USUAL_CHARS_PER_TOKEN = 12, 4
_BACKTICKS = re.compile("`+")
LINE_ENDS = "\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_LINE_START = rf"(?:\A|[{LINE_ENDS}])"
# What may stand before a heading without making it less of one.
_LEAD = r"[ \t>#*_-]*"


def strip_thinking(text: str) -> str:
    """Remove thinking text.

    Closed blocks go; so does all before a closing tag whose opening tag stood in the chat template,
    and all after an opening tag that was never closed (method.md section 7).
    """
    for _ in range(_ROUNDS):
        stripped = _outside_tags(text)
        if not _THINK_TAG.search(stripped):
            return stripped.strip()
        # What was taken out brought the halves of another tag together.
        text = stripped
    return ""


def _outside_tags(text: str) -> str:
    kept: list[str] = []
    start: int | None = 0
    for tag in _THINK_TAG.finditer(text):
        if not tag.group(1):
            if start is not None:
                kept.append(text[start : tag.start()])
            start = None
        else:
            if start is not None:
                kept.clear()
            start = tag.end()
    if start is not None:
        kept.append(text[start:])
    return "".join(kept)


def printable(text: str) -> str:
    """Drop control and invisible characters and lone surrogates; every line end becomes a newline.

    Newlines and tabs stay.
    """
    return _HIDDEN.sub("", _LINE_END.sub("\n", text))


def says_something(text: str) -> bool:
    """Whether a text holds a letter or a digit; weak models copy the "..." of a form."""
    return any(character.isalnum() for character in text)


def holds_phrase(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase as words of its own, not inside a longer word."""
    return phrase in text and bool(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text))


def one_line(text: str) -> str:
    """Printable text with every run of white space made one space."""
    return " ".join(printable(" ".join(text.split())).split())


def approximate_tokens(text: str) -> int:
    """A token count for when there is no tokenizer: a quarter of the UTF-8 bytes, rounded up."""
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def clip(text: str, budget: int) -> str:
    """Cut the middle out of a text that is far longer than `budget` tokens, without a tokenizer.

    Head and tail of 12 characters a token stay: a megabyte must not be read to show a page of it.
    """
    most = _CHARS_PER_TOKEN * max(0, budget)
    if len(text) <= 2 * most + len(_CUT):
        return text
    return text[:most] + _CUT + text[len(text) - most :]


def shorten(text: str, budget: int, count_tokens: CountTokens) -> str:
    """Cut the middle out of a text until it has at most `budget` tokens; head and tail stay.

    Calls `count_tokens` at most ten times: each new cut is where a straight line through the counts
    known so far meets the budget. A fiftieth of the budget may stay unused.
    """
    text = clip(text, budget)
    # A text of more than a few characters a token is seldom worth counting whole.
    high = _USUAL_CHARS_PER_TOKEN * budget
    if len(text) < 2 * high:
        high = len(text)
    most = count_tokens(without_middle(text, high))
    if most <= budget and high < len(text):
        high = len(text)
        most = count_tokens(text)
    if most <= budget:
        return text
    # `low` characters fit, `high` do not; the next cut is between them.
    low, best = 0, ""
    least = count_tokens(_CUT)
    for round_ in range(_SHORTEN_ROUNDS):
        if high - low <= 1 or (best and budget - least <= budget // 50):
            break
        keep = low + (high - low) * (budget - least) // max(1, most - least)
        if round_ % 3 == 2 or not low < keep < high:
            # A count that is far from a straight line would be crept along.
            keep = (low + high) // 2 if round_ % 3 == 2 else min(max(keep, low + 1), high - 1)
        cut = without_middle(text, keep)
        count = count_tokens(cut)
        if count <= budget:
            low, least, best = keep, count, cut
        else:
            high, most = keep, count
    return best


def without_middle(text: str, keep: int) -> str:
    """`keep` characters of a text, two thirds of them its head, with a mark where some are cut."""
    if keep >= len(text):
        return text
    head = (keep * 2 + 2) // 3
    return text[:head] + _CUT + text[len(text) - (keep - head) :]


def fenced(text: str) -> str:
    """A text between two lines of backticks, more of them than stand together in the text."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def mark_breaker(marks: Sequence[str]) -> Callable[[str], str]:
    r"""A function that breaks marks which must not stand in a text, so that one sees it.

    `<|user|>` becomes `<|user|\>`, `USER:` becomes `USER\:`. Marks in brackets are broken in any
    case and with blanks between their parts; others (`USER:`, `### Response:`) anywhere, in lower
    case only at the start of a line; a bare word only as a line of its own.
    What was broken once stays as it is.
    """
    patterns = [pattern for mark in marks for pattern in _mark_patterns(mark.strip())]
    if not patterns:
        return lambda text: text
    pattern = re.compile("|".join(dict.fromkeys(patterns)))

    def broken(match: re.Match[str]) -> str:
        mark = match.group()
        if not mark[-1].isalnum():
            return f"{mark[:-1]}\\{mark[-1]}"
        core = re.search(r"\w[\w \t]*\Z", mark)
        start = core.start() if core else 0
        return f"{mark[:start]}\\{mark[start:]}"

    return lambda text: pattern.sub(broken, text)


def _mark_patterns(mark: str) -> list[str]:
    units = re.findall(r"\w+|[^\w\s]|\s+", mark)
    if not any(unit.strip() for unit in units):
        return []
    solid = [unit for unit in units if not unit.isspace()]
    loose = r"[ \t]*".join(map(re.escape, solid))
    if mark[0] in "<[" and mark[-1] in ">]":
        return [f"(?i:{loose})"]
    if mark.isalnum():
        return [rf"(?i:{_LINE_START}{_LEAD}{loose})(?=[ \t]*(?:[{LINE_ENDS}]|\Z))"]
    before = r"(?<!\w)" if mark[0].isalnum() else ""
    patterns = [loose, rf"(?i:{_LINE_START}{_LEAD}{loose})"]
    # Not in lower case amid a line: `if user:` is code.
    for spell in (str.title, str.upper):
        patterns.append(before + r"[ \t]*".join(re.escape(spell(unit)) for unit in solid))
    if mark[0] == "#":
        words = r"[ \t]*".join(re.escape(u) for u in re.findall(r"\w+", mark))
        end = rf"[ \t]*(?::|(?=[ \t]*(?:[{LINE_ENDS}]|\Z)))"
        patterns.append(rf"(?i:{_LINE_START}[ \t]*#+[ \t]*{words}{end})")
    return patterns
