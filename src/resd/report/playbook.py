"""The playbook for people: Markdown for the run directory."""

from __future__ import annotations

from resd.context import Entry, Playbook
from resd.context.playbook import SECTIONS


def playbook_markdown(playbook: Playbook, title: str) -> str:
    """The playbook by section, candidates last."""
    shown = playbook.shown()
    lines = [
        f"# {title}",
        "",
        f"{len(shown)} lessons, {len(playbook) - len(shown)} candidates, "
        f"{playbook.tokens()} tokens.",
    ]
    for slug, title in SECTIONS.items():
        entries = [entry for entry in shown if entry.section == slug]
        if entries:
            lines += ["", f"## {title.capitalize()}", "", *map(_line, entries)]
    candidates = [entry for entry in playbook.all() if not entry.admitted]
    if candidates:
        lines += ["", "## Candidates, not shown to the teacher yet", "", *map(_line, candidates)]
    return "\n".join(lines) + "\n"


def _line(entry: Entry) -> str:
    votes = f"helpful {entry.helpful}, harmful {entry.harmful}"
    votes += f", support {entry.support}, against {entry.against}"
    return f"- `{entry.id}` {entry.content} ({votes})"
