"""What a teacher is shown instead of the right context, to see what the right one is worth.

If a shuffled context does as well, it was not what the context says that helped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from resd.context import Entry, Reflection
from resd.types import Rollout


def shuffled_entries(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """The entries, each with the last word of another: the same words, other lessons.

    One by itself has none to exchange with, and is left out.
    """
    if len(entries) < 2:
        return []
    order = list(range(len(entries)))
    random.Random(f"shuffled playbook/{seed}/{len(entries)}").shuffle(order)
    shuffled = list(entries)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        *words, _ = entries[here].content.split() or [""]
        *_, last = entries[there].content.split() or [""]
        shuffled[here] = replace(entries[here], content=" ".join([*words, last]))
    return shuffled


def shuffled_reflections(
    reflections: Mapping[int, Reflection], batch: Sequence[Rollout]
) -> dict[int, Reflection]:
    """For each rollout the reflection on a rollout of another example, at random.

    Args:
        reflections: by place in the batch.
        batch: the rollouts; the seed of each moves what it is given.
    """
    found = {}
    for i in reflections:
        others = [j for j in reflections if batch[j].example.id != batch[i].example.id]
        if others:
            chosen = random.Random(f"shuffled reflection/{batch[i].seed}").choice(others)
            found[i] = reflections[chosen]
    return found
