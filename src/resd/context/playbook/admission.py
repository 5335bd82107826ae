"""Which entries the teacher sees.

`immediate` is the paper's: what a curator adds is in. Under `confirmed` an entry is a candidate
until a second, independent reflection supports it; candidates are shown to reflector and curator
but not to the teacher, and entries that contradict compete by support.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from resd.context.playbook.config import PlaybookConfig
from resd.context.playbook.entry import Entry


def settle(entries: dict[str, Entry], config: PlaybookConfig) -> Counter[str]:
    """Admit what is supported and drop what is outvoted, in place; counts by reason."""
    counts: Counter[str] = Counter()
    if config.admission != "confirmed":
        for entry in entries.values():
            entry.admitted = True
        return counts
    for entry in list(entries.values()):
        if entry.against > entry.support:
            del entries[entry.id]
            counts["dropped_outvoted"] += 1
    # The best supported first: of several that want one place, it gets it.
    for entry in sorted(entries.values(), key=lambda e: -e.net):
        if entry.id not in entries:
            continue
        rivals = [entries[i] for i in entry.replaces if i in entries]
        ready = entry.support >= config.confirmations and entry.support > entry.against
        beaten = any(rival.admitted and rival.net >= entry.net for rival in rivals)
        entry.admitted = ready and not beaten
        if entry.admitted:
            counts["dropped_replaced"] += _replace(entries, rivals, entry)
    return +counts


def _replace(entries: dict[str, Entry], rivals: Sequence[Entry], entry: Entry) -> int:
    """Drop what an admitted entry replaces; who else wanted that place must beat it."""
    entry.replaces = []
    gone = {rival.id for rival in rivals}
    for id_ in gone:
        del entries[id_]
    for other in entries.values():
        if gone.intersection(other.replaces):
            kept = [id_ for id_ in other.replaces if id_ not in gone]
            other.replaces = [*kept, entry.id]
    return len(gone)
