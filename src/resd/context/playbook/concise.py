"""CONCISE: which entries leave the playbook (paper: App. D)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from resd.context.playbook.config import PlaybookConfig
from resd.context.playbook.entry import Entry, Tell, nobody


def drop_by_class(
    entries: dict[str, Entry], config: PlaybookConfig, updates: int, tell: Tell = nobody
) -> Counter[str]:
    """Without a budget: harmful entries go, and unused ones after their grace; in place."""
    counts: Counter[str] = Counter()
    for entry in list(entries.values()):
        reason = _class_to_drop(entry, config, updates)
        if reason:
            del entries[entry.id]
            tell("dropped", entry.id, reason.removeprefix("dropped_"))
            counts[reason] += 1
    return counts


def _class_to_drop(entry: Entry, config: PlaybookConfig, updates: int) -> str | None:
    if config.admission == "confirmed" and not entry.admitted:
        last = entry.created if entry.tagged is None else entry.tagged
        return "dropped_unconfirmed" if updates - last > config.candidate_patience else None
    if entry.harmful >= entry.helpful and entry.harmful > 0:
        return "dropped_harmful"
    # One update of grace: last step's entries have not been seen by any reflector yet.
    if entry.helpful + entry.harmful == 0 and updates - entry.created > 1:
        return "dropped_unused"
    return None


def eviction_order(
    entries: Iterable[Entry], config: PlaybookConfig, seed: int, updates: int
) -> list[Entry]:
    """Candidates first; then the longest untagged, or (prioritized) seeded at random.

    What no reflector has tagged yet, and is here by its grace, leaves last.
    """
    entries = list(entries)
    if config.concise == "prioritized":
        random.Random(f"{seed}/{updates}").shuffle(entries)
        return sorted(entries, key=lambda e: (e.admitted, e.helpful + e.harmful == 0))
    return sorted(
        entries,
        key=lambda e: (e.admitted, e.created if e.tagged is None else e.tagged, e.created),
    )
