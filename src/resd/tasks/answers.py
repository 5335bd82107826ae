"""Finding the answer in a response: after the thinking, in the last fenced block."""

from __future__ import annotations

import re

from resd.text import strip_thinking

NO_CODE_BLOCK = (
    "No program found: there is no closed fenced block (```) after the thinking. Give the whole "
    "program in one."
)
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$", re.MULTILINE)


def final_text(response: str) -> str:
    """The response after its thinking; empty if the thinking was never closed."""
    return strip_thinking(response)


def last_code_block(response: str) -> str | None:
    """The content of the last closed fenced block after the thinking.

    A fence is three or more backticks or tildes on a line of their own, with or without a
    language name; a block is closed by a fence of the same character that is at least as long. A
    block that is never closed does not count: the response was cut off in the middle of it.

    Returns:
        The text between the fences, without the last newline, or None if there is no such block.
    """
    text = final_text(response).replace("\r\n", "\n")
    found, opened, start = None, "", 0
    for fence in _FENCE.finditer(text):
        marks, info = fence.group(1), fence.group(2).strip()
        if not opened:
            opened, start = marks, fence.end() + 1
        elif marks[0] == opened[0] and len(marks) >= len(opened) and not info:
            found, opened = text[start : max(start, fence.start() - 1)], ""
    return found
