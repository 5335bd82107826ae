"""What can be said of a wrong answer when the scorer gives only a number.

The answer is compared with a reference answer, which is never quoted: what it says is the kind of
thing that is expected, how many parts it has, and where the first difference is.
"""

from __future__ import annotations

import re

from resd.text import holds_phrase

_INTEGER = re.compile(r"[+-]?\d{1,300}")
_NUMBER = re.compile(r"[+-]?(\d{1,300}(\.\d{0,300})?|\.\d{1,300})([eE][+-]?\d{1,3})?")
_FRACTION = re.compile(r"[+-]?\d{1,300}\s?/\s?\d{1,300}")
_EXPRESSION = re.compile(r"[\w\s.*/^+=()-]{1,2000}")
_CHOICES = (("yes", "no"), ("true", "false"))  # named in capitals: no answer is written so
_LONGEST_ECHO = 80
_PART = re.compile(r"[^\s,;]+")
_EDGES = " \t\n.,;:!?$\"'`*()[]{}"
_PLAIN = ("The answer is wrong.", "Not right.")


def describe(answer: str, reference: str | None, score: float) -> str:
    """Feedback on an answer that did not get full marks.

    Args:
        answer: what was found between the tags.
        reference: one right answer, if the package has one; the text does not quote it.
        score: between 0 and 1.
    """
    said = f"The answer {quoted(answer)} is wrong."
    if score > 0:
        said = f"The answer {quoted(answer)} scores {score:.2g}, not 1."
    if reference is None:
        return said
    return f"{said} {_difference(answer, reference)}".rstrip()


def without_secret(text: str, secret: str, response: str) -> str:
    """The text, or a plainer one if it holds the secret by chance and the response does not."""
    texts = (text, *_PLAIN)
    return next(
        (t for t in texts if not holds_phrase(t, secret) or holds_phrase(response, secret)),
        "Wrong.",
    )


def quoted(text: str) -> str:
    """A piece of the response, bounded; what does not print is escaped."""
    if len(text) <= _LONGEST_ECHO:
        return repr(text)
    return f"{text[:_LONGEST_ECHO]!r}... ({len(text)} characters)"


def kind(text: str) -> str:
    """What sort of answer a text is, for comparing and for saying."""
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return "a whole number"
    if _NUMBER.fullmatch(text):
        return "a number"
    if _FRACTION.fullmatch(text):
        return "a fraction"
    for choice in _CHOICES:
        if text.casefold() in choice:
            return " or ".join(choice).upper().replace(" OR ", " or ")
    for opened, closed, name in ("[", "]", "a list in brackets"), ("{", "}", "a list in braces"):
        if text.startswith(opened) and text.endswith(closed):
            return name
    if "\n" in text:
        return "several lines"
    if _EXPRESSION.fullmatch(text) and any(sign in text for sign in "*/^+="):
        return "an expression"
    return "text"


def _difference(answer: str, reference: str) -> str:
    """How an answer differs from a reference answer, in a sentence or two."""
    loose = [" ".join(text.split()).casefold() for text in (answer, reference)]
    if loose[0] == loose[1]:
        return "But for upper and lower case or white space it is a reference answer."
    if loose[0].strip(_EDGES) == loose[1].strip(_EDGES) != "":
        return "But for the characters around it, it is a reference answer."
    if reference.strip() and holds_phrase(answer, reference):
        return "It holds a reference answer, with other text around it: give the answer alone."
    kinds = kind(answer), kind(reference)
    numbers = {"a whole number", "a number"}
    if kinds[0] in numbers and kinds[1] in numbers:
        return f"It is too {'small' if float(answer) < float(reference) else 'large'}."
    if kinds[0] != kinds[1]:
        return f"It is {kinds[0]}; the answer is expected to be {kinds[1]}."
    return "" if kinds[0] == "an expression" else _parts(answer, reference)


def _parts(answer: str, reference: str) -> str:
    """Where two answers of the same kind part."""
    lines = answer.strip().split("\n"), reference.strip().split("\n")
    if len(lines[0]) != len(lines[1]):
        return f"It has {len(lines[0])} lines; a reference answer has {len(lines[1])}."
    given, right = _PART.findall(answer), _PART.findall(reference)
    if len(given) != len(right):
        return f"It has {len(given)} parts; a reference answer has {len(right)}."
    if len(right) < 2:
        return ""
    same = sum(a == b for a, b in zip(given, right, strict=True))
    first = next((i for i, (a, b) in enumerate(zip(given, right, strict=True)) if a != b), 0)
    return (
        f"{same} of its {len(right)} parts are those of a reference answer; the first that differs "
        f"is part {first + 1}, {quoted(given[first])}."
    )
