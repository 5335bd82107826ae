"""What a program is told of its run while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resd.backend import Backend
from resd.errors import StopTraining, UserError
from resd.loop.evaluate import Evaluation
from resd.plugins import describe_error

_HOOKS = ("on_step", "on_evaluation")


class Callback:
    """Told of every step and every evaluation; an object with one of the two methods will do.

    Both are called when the step is over and its checkpoint, where one is due, was begun. Raise
    `resd.StopTraining` in either to end the run as though the step were its last. Any other
    exception ends it too, once its state is saved: it goes on from there with `resume`. Of several
    processes the first calls.
    """

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step is done.

        Args:
            step: 1, 2, ...
            metrics: its row of metrics.jsonl (`rollout/passed`, `train/loss`, ...).
        """

    def on_evaluation(self, step: int, result: Evaluation) -> None:
        """An evaluation is done.

        Args:
            step: after which; 0 before the first.
            result: what was found.
        """


@dataclass(frozen=True)
class Ending:
    """Why callbacks end a run: in one line, and whether one of them failed."""

    said: str
    failed: bool


class Callbacks:
    """Calls the callbacks of a run, between its steps.

    Args:
        callbacks: of the program.
        backend: the processes that train together.

    Raises:
        UserError: one of them is no callback.
    """

    def __init__(self, callbacks: Sequence[Any], backend: Backend) -> None:
        self._callbacks, self._backend = callbacks, backend
        self._waiting: list[tuple[str, int, Any]] = []

    def tell(self, hook: str, step: int, what: Any) -> None:
        """Keep what the callbacks are told by `call`."""
        if self._callbacks:
            self._waiting.append((hook, step, what))

    def call(self) -> Ending | None:
        """Tell all callbacks; the first failure, else the first wish to stop."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return None
        return self._backend.on_main(lambda: self._called(waiting))

    def _called(self, waiting: Sequence[tuple[str, int, Any]]) -> Ending | None:
        endings = []
        for hook, step, what in waiting:
            for callback in self._callbacks:
                name = type(callback).__name__
                try:
                    getattr(callback, hook, _ignore)(step, what)
                except StopTraining as stop:
                    why = f": {stop}" if str(stop) else ""
                    endings.append(Ending(f"stopped after step {step} by {name}{why}", False))
                except (Exception, SystemExit) as error:
                    endings.append(Ending(f"{name}.{hook} failed: {describe_error(error)}", True))
        return next((e for e in endings if e.failed), endings[0] if endings else None)


def _ignore(step: int, what: Any) -> None:
    """For a callback that wants only the other."""


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Refuse what is no callback.

    Raises:
        UserError: as said.
    """
    for callback in callbacks:
        name = getattr(callback, "__name__", type(callback).__name__)
        if isinstance(callback, type):
            raise UserError(f"callbacks: {name} is a class; give an object of it: {name}()")
        if not any(callable(getattr(callback, hook, None)) for hook in _HOOKS):
            raise UserError(f"callbacks: {name} has neither on_step nor on_evaluation")
