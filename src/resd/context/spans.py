"""Where in a teacher's prompt each section stands, to be shown in colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Section, first character, character after the last.
Span = tuple[str, int, int]


def section_spans(
    text: str, question: str, lessons: Sequence[str], others: Sequence[tuple[str, str]]
) -> list[Span]:
    """Where the sections stand in the last message of a prompt, in order, without overlap.

    Args:
        text: of the message.
        question: of the student.
        lessons: of the playbook, in the order in which they are shown.
        others: names and texts of further sections; empty ones are not looked for. One that a
            template does not print as it is, is not found.
    """
    found = list(_playbook(text, lessons))
    asked = text.find(question, found[0][2] if found else 0) if question else -1
    after = 0
    if asked >= 0:
        after = asked + len(question)
        found.append(("question", asked, after))
    for name, part in others:
        # A trial may quote the question: what stands behind what was found comes first.
        start = text.find(part, after) if part else -1
        start = text.find(part) if part and start < 0 else start
        if start >= 0:
            found.append((name, start, start + len(part)))
            after = max(after, start + len(part))
    apart: list[Span] = []
    for span in sorted(found, key=lambda span: span[1]):
        if apart and span[1] < apart[-1][2]:
            # One stands in the other: the longer one is meant.
            if span[2] - span[1] > apart[-1][2] - apart[-1][1]:
                apart[-1] = span
        else:
            apart.append(span)
    return apart


def _playbook(text: str, lessons: Sequence[str]) -> Iterator[Span]:
    first = end = -1
    for lesson in lessons:
        start = text.find(lesson, max(end, 0))
        if start < 0:
            break
        first = start if first < 0 else first
        end = start + len(lesson)
    if first >= 0:
        yield "playbook", first, end
