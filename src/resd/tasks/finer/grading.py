"""Strict, positional grading of an answer such as `TagA,TagB,TagC,TagD`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resd.tasks.answers import final_text

_FENCE = re.compile(r"[`~]{3,}[ \t]*\w*")
_LONGEST_ECHO = 160  # characters; the longest tag of FiNER-139 has 137


@dataclass(frozen=True)
class Answer:
    """The tags of an answer.

    Attributes:
        tags: as written, at most one more than there are questions (the last one is the rest).
        count: how many there are in all.
    """

    tags: tuple[str, ...]
    count: int


def read_answer(response: str, questions: int) -> Answer | None:
    """The answer of a response.

    The answer is the last line after the thinking that is neither blank nor a code fence. Its tags
    are what stands between commas; white space around a tag is dropped, and so are backticks and
    one full stop at the line's end.

    Returns:
        The answer, or None if there is no such line.
    """
    lines = (line.strip() for line in reversed(final_text(response).split("\n")))
    line = next((line for line in lines if line and not _FENCE.fullmatch(line)), None)
    if line is None:
        return None
    line = line.strip("` ").removesuffix(".").strip("` ")
    tags = tuple(tag.strip() for tag in line.split(",", questions))
    return Answer(tags, line.count(",") + 1)


def matches(answer: Answer, gold: tuple[str, ...]) -> list[bool]:
    """Whether the tag of each question is right, by position and without regard to case."""
    given = [tag.lower() for tag in answer.tags[: len(gold)]]
    given += [""] * (len(gold) - len(given))
    return [tag == right.lower() for tag, right in zip(given, gold, strict=True)]


def count_passed(answer: Answer, gold: tuple[str, ...]) -> int:
    """Questions that count as right: those that match, less one for every tag too many.

    So all of them count only when the tags are exactly the right ones, and a line with all options
    on it counts for nothing.
    """
    extra = max(0, answer.count - len(gold))
    return max(0, sum(matches(answer, gold)) - extra)


def quoted(text: str) -> str:
    """A piece of the response for feedback, bounded; what does not print is escaped."""
    return repr(text) if len(text) <= _LONGEST_ECHO else f"a text of {len(text)} characters"
