"""Copies of examples, so that an environment can harm none."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

from resd.types import Example


class Copies:
    """Copies of an example, made as cheaply as it allows."""

    def __init__(self, example: Example) -> None:
        self._example = example
        try:
            self._pickled: bytes | None = pickle.dumps(example)
        except Exception:  # it holds a lambda, an open file, ...
            self._pickled = None

    def make(self) -> Example:
        """One more; the example itself if it cannot be copied."""
        try:
            if self._pickled is not None:
                found: Example = pickle.loads(self._pickled)
                return found
            return copy.deepcopy(self._example)
        except Exception:
            return self._example


def copied(example: Example) -> Example:
    """An example that can be changed without harm; itself if it cannot be copied."""
    return Copies(example).make()


def shared(pairs: Sequence[tuple[Example, str]]) -> list[tuple[Copies, str]]:
    """Several responses to one example stand together: it is pickled once for all of them."""
    found: list[tuple[Copies, str]] = []
    last: Example | None = None
    for example, response in pairs:
        copies = found[-1][0] if example is last else Copies(example)
        found.append((copies, response))
        last = example
    return found


def was_changed(example: Example, given: Example) -> bool:
    """Whether a copy of an example is no copy any more."""
    first, second = copied(example), copied(example)
    # What compares unequal when nothing was done to it is compared as bytes.
    for same in (_equal, _same_bytes):
        if same(first, second):
            return not same(first, given)
    return False


def _equal(one: Example, other: Example) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays have no one answer
        return False


def _same_bytes(one: Example, other: Example) -> bool:
    try:
        return pickle.dumps(one) == pickle.dumps(other)
    except Exception:
        return False
