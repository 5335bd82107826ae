"""The one command that makes a run again, without any path of this machine."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from resd.config import RunConfig, load_config

# Where a run lies, and what is kept of it, change nothing that is learnt.
_LEFT_OUT = ("output", "checkpoint.", "trackers", "traces.", "engine.url", "engine.weights")


def remake_command(config: RunConfig) -> str:
    """`resd train` with every setting that is not as its preset, or the class, has it.

    Paths are their last parts; whoever makes it again gives theirs.
    """
    values = config.model_dump(mode="json")
    named: list[tuple[str, Any]] = [
        # The lab is trained by its preset unless another is named, or none.
        ("preset", config.preset or "none"),
        ("task", config.task),
        ("method.name", config.method.name),
        ("model.path", config.model.path),
    ]
    if config.stream:
        named.append(("stream", [_without_nulls(part) for part in values["stream"]]))
    before = load_config(None, named).model_dump(mode="json")
    changed = [item for item in _differences(before, values) if not item[0].startswith(_LEFT_OUT)]
    if config.preset is None and set(config.tasks) != {"lab"}:
        del named[0]
    words = [word for key, value in [*named, *changed] for word in (f"--{key}", _word(value))]
    return shlex.join(["resd", "train", *words])


def portable(value: Any) -> Any:
    """A setting's value in which absolute paths are their last parts."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    path = PurePath(value)
    # A file's class stands behind it; `/2h` may be anything.
    is_path = len(path.parts) > 2 or os.path.exists(value)
    return path.name if is_path and path.name else value


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys whose value is another, and their values now."""
    if isinstance(now, Mapping):
        known = before if isinstance(before, Mapping) else {}
        for name in now:
            yield from _differences(known.get(name), now[name], f"{key}.{name}" if key else name)
    elif before != now:
        yield key, now


def _without_nulls(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if value not in (None, {})}


def _word(value: Any) -> str:
    """A value as the command line reads it back: text as it is, unless it could be JSON."""
    value = portable(value)
    if value is None:
        return "none"
    if isinstance(value, str) and value not in ("True", "False"):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)
