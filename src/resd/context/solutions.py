"""The solution buffer: for every example the latest response that passed (paper: B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SolutionBuffer:
    """Solved responses by example id, bounded; the least recently solved leaves first.

    Args:
        max_examples: most examples held.
        max_chars: a longer response is not kept.
    """

    def __init__(self, max_examples: int = 4096, max_chars: int = 100_000) -> None:
        if max_examples < 1 or max_chars < 1:
            raise ValueError("the solution buffer must hold at least one example and one character")
        self.max_examples = max_examples
        self.max_chars = max_chars
        self._solutions: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._solutions)

    def get(self, example_id: str) -> str | None:
        """The cached solution of an example, or None."""
        return self._solutions.get(example_id)

    def add(self, example_id: str, response: str) -> bool:
        """Cache an answer that passed; False if it is too long, or says nothing."""
        if len(response) > self.max_chars or not response.strip():
            return False
        self._solutions.pop(example_id, None)
        self._solutions[example_id] = response
        while len(self._solutions) > self.max_examples:
            del self._solutions[next(iter(self._solutions))]
        return True

    def state_dict(self) -> dict[str, Any]:
        """The whole state as plain JSON."""
        return {"solutions": dict(self._solutions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`; the bounds of this buffer hold."""
        self._solutions = {}
        for example_id, response in state["solutions"].items():
            self.add(example_id, response)
