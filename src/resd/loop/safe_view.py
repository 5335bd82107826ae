"""A view and traces that can fail without ending the run: they are there to be looked at."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.loop.evaluate import Evaluation
from resd.loop.view import RunView
from resd.runs.atomic import StorageError


class SafeView:
    """Passes everything on until the view fails for the first time; from then on it is silent.

    Nobody may read the output any more, the terminal may be gone, the disk that it is written to
    full. What was learnt is in the run directory all the same.

    Args:
        view: what a person sees.
        keep: told of every warning.
    """

    def __init__(self, view: RunView, keep: Callable[[str], None] = lambda text: None) -> None:
        self._view, self._keep = view, keep
        self._works = True

    def begin(self, config: RunConfig, step: int, steps: int) -> None:
        """The run starts, or goes on after `step`."""
        self._try(lambda: self._view.begin(config, step, steps))

    def progress(self, what: str, done: int, total: int) -> None:
        """So much of a part of a step or evaluation is done."""
        self._try(lambda: self._view.progress(what, done, total))

    def stepped(self, step: int, row: Mapping[str, Any], lesson: str) -> None:
        """A step is done."""
        self._try(lambda: self._view.stepped(step, row, lesson))

    def evaluated(self, step: int, result: Evaluation) -> None:
        """An evaluation is done."""
        self._try(lambda: self._view.evaluated(step, result))

    def warn(self, text: str) -> None:
        """Something was skipped; kept too, for those who look at the run later."""
        with suppress(StorageError):  # whoever writes next says that the disk is full
            self._keep(text)
        self._try(lambda: self._view.warn(text))

    def finished(self, path: Path, best: int, evaluations: Sequence[Mapping[str, float]]) -> None:
        """The run is complete."""
        self._try(lambda: self._view.finished(path, best, evaluations))

    def close(self) -> None:
        """Give the terminal back."""
        self._try(self._view.close)

    def _try(self, call: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:
            self._works = False
            if isinstance(error, OSError | ValueError):
                # What is still in the buffer could not be written at the end either.
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
