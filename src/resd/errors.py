"""Errors for the user: what was wrong, where, and what to do. The CLI prints them as one line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from typing import TextIO

# C0 but for line feed and tab, DEL, C1, and what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Whole sequences first, so that no `[31m` is left of them: CSI, then OSC and its kin.
_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*"
    "(?:\x07|\x1b\\\\|\x9c)"
)


class UserError(Exception):
    """Something that the user can mend; shown without a traceback."""

    exit_code = 2


class ProcessError(UserError):
    """Something went wrong in one of the processes; all raise it, and process 0 says it."""


class StoppedError(ProcessError):
    """A run was ended by its health, at a checkpoint that it can be resumed from."""

    exit_code = 3


class LostProcessError(UserError):
    """Another process has ended, and this one cannot go on without it."""


class StopTraining(Exception):
    """Raised in a callback: end the run after this step; its text is kept as the reason."""


class TemplateError(ValueError):
    """A prompt template is missing, does not parse, or uses a variable that does not exist."""


def terminal_safe(text: str, stream: TextIO | None = None) -> str:
    r"""Text that a terminal shows and does not obey.

    Escape sequences go, other control characters but for line feed and tab become `?`, and so does
    what the stream's encoding, by default that of stderr, cannot say, half characters first.

    >>> terminal_safe("a\x1b[31mb\x07c")
    'ab?c'
    """
    plain = _CONTROL.sub("?", _SEQUENCE.sub("", text.replace("\r\n", "\n")))
    encoding = getattr(stream or sys.stderr, "encoding", None) or "utf-8"
    try:
        return plain.encode(encoding, "replace").decode(encoding, "replace")
    except LookupError:
        return plain.encode("ascii", "replace").decode()


def one_line(text: str, stream: TextIO | None = None) -> str:
    """`terminal_safe` text in one line."""
    return " ".join(terminal_safe(text, stream).split())


def close_to(word: object, known: Iterable[str]) -> str:
    """`; did you mean NAME?` if a known name is much like the word, else nothing."""
    text = str(word)[:100]
    found = difflib.get_close_matches(text, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
