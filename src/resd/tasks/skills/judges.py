"""Whether an answer does what was asked. Exact where the prompt is; a code fence is forgiven."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from resd.text import strip_thinking

_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)


def _number(wanted: int, answer: str) -> bool:
    """The last number of the answer."""
    found = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
    return bool(found) and float(found[-1]) == wanted


def _words(wanted: int, answer: str) -> bool:
    return len(answer.split()) == wanted


def _lines(wanted: int, answer: str) -> bool:
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(lines) == wanted and not any(re.match(r"\s*\d", line) for line in lines)


def _sentences(wanted: int, answer: str) -> bool:
    return len(re.findall(r"[.!?](?=\s|$)", answer)) == wanted


def _upper(_: None, answer: str) -> bool:
    return answer.isupper()


def _lower(_: None, answer: str) -> bool:
    return answer.islower()


def _starts(wanted: str, answer: str) -> bool:
    return re.findall(r"[a-z]+", answer.lower())[:1] == [wanted]


def _ends(wanted: str, answer: str) -> bool:
    return re.findall(r"[a-z]+", answer.lower())[-1:] == [wanted]


def _holds(wanted: tuple[tuple[str, ...], tuple[str, ...]], answer: str) -> bool:
    inside, outside = wanted
    words = set(re.findall(r"[a-z]+", answer.lower()))
    return words.issuperset(inside) and words.isdisjoint(outside)


def _without_letter(wanted: str, answer: str) -> bool:
    words = [word for word in re.split(r"[,\s]+", answer.lower().strip(" .")) if word]
    return len(words) == 3 and answer.count(",") == 2 and wanted not in answer.lower()


def _json(wanted: Any, answer: str) -> bool:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    # 1 is no true.
    return json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def _list(wanted: str, answer: str) -> bool:
    return re.findall(r"\w+", answer.lower()) == re.findall(r"\w+", wanted)


def _exact(wanted: str, answer: str) -> bool:
    return answer.strip("'\"") == wanted


JUDGES: dict[str, Callable[[Any, str], bool]] = {
    "number": _number,
    "words": _words,
    "lines": _lines,
    "sentences": _sentences,
    "upper": _upper,
    "lower": _lower,
    "starts": _starts,
    "ends": _ends,
    "holds": _holds,
    "without_letter": _without_letter,
    "json": _json,
    "list": _list,
    "exact": _exact,
}


def passes(judge: str, wanted: Any, response: str) -> bool:
    """Whether a response passes.

    Args:
        judge: a key of `JUDGES`.
        wanted: what it compares with.
        response: of the model; if it is one fenced block, what stands in the block counts.
    """
    text = strip_thinking(response).strip()
    fenced = _FENCE.fullmatch(text)
    return JUDGES[judge](wanted, fenced[1].strip() if fenced else text)
