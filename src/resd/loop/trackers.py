"""Trackers of accelerate beside metrics.jsonl: they never end a run, and never hold it.

Each has a thread of its own, because some keep their run per thread. A call that fails, or takes
longer than its limit, is said once; from then on that tracker is left alone.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.errors import one_line
from resd.runs import identity
from resd.tasks.registry import describe_error

_PROJECT, _IDS = "resd", "trackers.json"
_MOST_WAITING = 10_000  # rows; a tracker that is so far behind will not catch up
_Call = Callable[[Any], None]


class Trackers:
    """What a run tells its trackers.

    Args:
        names: any of tensorboard, wandb, trackio, mlflow.
        run_path: the run's directory, whose name is the run's; it keeps the trackers' ids.
        config: logged flat.
        run_id: stays the same when the run is resumed.
        warn: is told of a tracker that fails, once.
        seconds: most time of one call, and of the end of all of them together.
        make: makes the tracker of a name; for tests.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_path: Path,
        config: RunConfig,
        run_id: str,
        *,
        warn: Callable[[str], None],
        seconds: float = 30.0,
        make: Callable[[str, Path, str], Any] | None = None,
    ) -> None:
        self._settings = flat_settings(config)
        self._seconds = seconds
        make = make or make_tracker
        self._lines = [_Line(name, run_path, run_id, warn, seconds, make) for name in names]

    def start(self) -> None:
        """Open all trackers, and tell them the configuration."""
        for line in self._lines:
            line.begin(self._settings)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Pass on the numbers of a row; returns at once."""
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name != "step"
        }
        for line in self._lines:
            line.log(step, numbers)

    def finish(self) -> None:
        """Close all trackers; waits no longer than `seconds`."""
        for line in self._lines:
            line.end()
        until = time.monotonic() + self._seconds
        for line in self._lines:
            line.wait(max(0.0, until - time.monotonic()))


class _Line:
    """A tracker, its thread, and what waits for it."""

    def __init__(
        self,
        name: str,
        run_path: Path,
        run_id: str,
        warn: Callable[[str], None],
        seconds: float,
        make: Callable[[str, Path, str], Any],
    ) -> None:
        self.name = name
        self._make = lambda: make(name, run_path, run_id)
        self._warn, self._seconds = warn, seconds
        self._calls: queue.Queue[_Call | None] = queue.Queue(_MOST_WAITING)
        self._alive, self._said = True, False
        self._since: float | None = None  # when the call that is under way began
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)

    def begin(self, settings: Mapping[str, Any]) -> None:
        self._thread.start()
        self._put(lambda tracker: tracker.store_init_configuration(dict(settings)))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        named = mlflow_names(numbers) if self.name == "mlflow" else dict(numbers)
        self._put(lambda tracker: tracker.log(named, step=step))

    def end(self) -> None:
        self._put(lambda tracker: tracker.finish())
        self._put(None)

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive() and self._alive:
            self._give_up(f"it is not done after {self._seconds:g} s")

    def _put(self, call: _Call | None) -> None:
        since = self._since
        if self._alive and since is not None and time.monotonic() - since > self._seconds:
            self._give_up(f"a call takes longer than {self._seconds:g} s")
        if not self._alive:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"it is {_MOST_WAITING} rows behind")

    def _work(self) -> None:
        tracker = self._guarded(self._make)
        while self._alive and (call := self._calls.get()) is not None:
            self._guarded(lambda call=call: call(tracker))  # type: ignore[misc]

    def _guarded(self, call: Callable[[], Any]) -> Any:
        self._since = time.monotonic()
        try:
            return call()
        except BaseException as error:  # a library's sys.exit() is a failure of the tracker too
            self._give_up(describe_error(error))
            return None
        finally:
            self._since = None

    def _give_up(self, reason: str) -> None:
        self._alive = False
        with self._lock:
            said, self._said = self._said, True
        if not said:
            self._warn(f"tracker {self.name}: {one_line(reason)}; the run goes on without it")


def make_tracker(name: str, run_path: Path, run_id: str) -> Any:
    """Open a tracker of accelerate for a run, or the one that it had before it broke off."""
    from accelerate import PartialState, tracking

    PartialState(cpu=True)
    title = run_path.resolve().name
    if name == "tensorboard":
        tracker: Any = tracking.TensorBoardTracker("tensorboard", str(run_path))
        tracker.start()
    elif name == "wandb":
        tracker = tracking.WandBTracker(
            _PROJECT, name=title, id=run_id, resume="allow", dir=str(run_path)
        )
        tracker.start()
    elif name == "trackio":
        tracker = tracking.TrackioTracker(
            _PROJECT, name=f"{title}-{run_id[:8]}", resume="allow", embed=False
        )
        tracker.start()
    else:
        tracker = tracking.MLflowTracker(
            _PROJECT, run_id=_saved_ids(run_path).get(name), run_name=title
        )
        tracker.start()
        ids = _saved_ids(run_path) | {name: tracker.active_run.info.run_id}
        (run_path / _IDS).write_text(json.dumps(ids) + "\n", encoding="utf-8")
    return tracker


def flat_settings(config: RunConfig) -> dict[str, str | int | float | bool]:
    """Dotted settings in types that every tracker takes."""
    return {
        key: value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for key, value in identity.settings(config).items()
    }


def mlflow_names(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers under names that mlflow takes, each under one of its own."""
    return {_mlflow_name(name): value for name, value in numbers.items()}


def _mlflow_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_\-. /]", "_", name.replace("@", "_at_"))
    valid = name == plain or ("@" in name and plain == name.replace("@", "_at_"))
    if valid and len(plain) <= 200 and plain == posixpath.normpath(plain) and plain[0] not in "./":
        return plain
    # Different names that look the same now stay apart.
    mark = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{plain.replace('/', '_').strip('. ')[:200]}-{mark}"


def _saved_ids(run_path: Path) -> dict[str, str]:
    try:
        ids = json.loads((run_path / _IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}
