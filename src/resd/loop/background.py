"""One piece of work at a time beside the training: writing a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Works in a thread; an error comes to light at the next call.

    Args:
        enabled: False works at once, in the caller's thread.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; `wait` for what was begun before."""
        self.wait()
        if not self._enabled:
            work()
            return

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="resd save")
        self._thread.start()

    def settle(self) -> None:
        """Wait for the end of the work, and forget what it raised: something else went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._error = None

    def wait(self) -> None:
        """Wait for the end of the work, and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
