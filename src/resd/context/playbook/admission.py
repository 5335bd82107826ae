"""Which entries the teacher sees.

`immediate` is the paper's: what a curator adds is in. Under `confirmed` an entry is a candidate
until a second, independent reflection supports it; candidates are shown to reflector and curator
but not to the teacher, and entries that contradict compete by support.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from resd.context.playbook.config import PlaybookConfig
from resd.context.playbook.entry import Entry, Tell, nobody


def settle(
    entries: dict[str, Entry], config: PlaybookConfig, room: int, tell: Tell = nobody
) -> tuple[Counter[str], int]:
    """Admit what is supported and drop what is outvoted, in place.

    Args:
        entries: by id.
        config: which admission, and how many confirmations.
        room: how many entries that the teacher sees may go; the rest waits for the next update.
        tell: told of every entry that goes.

    Returns:
        Counts by reason, and how many entries that the teacher saw are gone.
    """
    counts: Counter[str] = Counter()
    if config.admission != "confirmed":
        for entry in entries.values():
            entry.admitted = True
        return counts, 0
    left = room
    waiting = set()
    for entry in sorted(entries.values(), key=lambda e: e.net):
        if _ready(entry, config):
            continue
        if entry.admitted and left <= 0:
            waiting.add(entry.id)
            continue
        left -= entry.admitted
        entry.admitted = False
        if entry.against > entry.support:
            del entries[entry.id]
            tell("dropped", entry.id, "outvoted")
            counts["dropped_outvoted"] += 1
    # The best supported first: of several that want one place, it gets it.
    for entry in sorted(entries.values(), key=lambda e: -e.net):
        if entry.id not in entries or entry.id in waiting:
            continue
        rivals = [entries[i] for i in entry.replaces if i in entries]
        beaten = any(rival.admitted and rival.net >= entry.net for rival in rivals)
        entry.admitted = _ready(entry, config) and not beaten
        seen = sum(rival.admitted for rival in rivals)
        if entry.admitted and seen > left:
            waiting.add(entry.id)
            entry.admitted = False
        if entry.admitted:
            left -= seen
            counts["dropped_replaced"] += _replace(entries, rivals, entry, tell)
    counts["drop_waits"] += len(waiting.intersection(entries))
    return +counts, room - left


def _ready(entry: Entry, config: PlaybookConfig) -> bool:
    return entry.support >= config.confirmations and entry.support > entry.against


def _replace(entries: dict[str, Entry], rivals: Sequence[Entry], entry: Entry, tell: Tell) -> int:
    """Drop what an admitted entry replaces; who else wanted that place must beat it."""
    entry.replaces = []
    gone = {rival.id for rival in rivals}
    for id_ in gone:
        del entries[id_]
        tell("dropped", id_, f"replaced by {entry.id}")
    for other in entries.values():
        if gone.intersection(other.replaces):
            kept = [id_ for id_ in other.replaces if id_ not in gone]
            other.replaces = [*kept, entry.id]
    return len(gone)
