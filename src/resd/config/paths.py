"""Paths in a configuration: relative ones are kept absolute, so that a run finds them anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resd.config.anchors import PROMPT_SETS
from resd.config.run import RunConfig

# Names of models that come with the package, whatever lies in the working directory.
_SHIPPED = ("", "lab", "smol")


def anchored(config: RunConfig, place: Path) -> RunConfig:
    """The configuration with its relative paths made absolute against `place`.

    Files of tasks, methods and engines, templates, output, the anchors' prompts and the engine's
    weights are paths always; a model, or an argument of a task or an engine, where something lies
    there: `org/name` may be a hub id.
    """
    model = config.model
    if model.path not in _SHIPPED and _exists(model.path, place):
        model = model.model_copy(update={"path": _absolute(model.path, place)})
    method, anchors = config.method, config.method.anchors
    if anchors.prompts not in PROMPT_SETS:
        named = {"prompts": _absolute(anchors.prompts, place)}
        method = method.model_copy(update={"anchors": anchors.model_copy(update=named)})
    name = _place_of(method.name, place)
    if name != method.name:
        method = method.model_copy(update={"name": name})
    return config.model_copy(
        update={
            "task": _place_of(config.task, place),
            "stream": [
                part.model_copy(
                    update={
                        "task": None if part.task is None else _place_of(part.task, place),
                        "task_args": _argument(part.task_args, place),
                    }
                )
                for part in config.stream
            ],
            "method": method,
            "task_args": _argument(config.task_args, place),
            "model": model,
            "engine": config.engine.model_copy(
                update={
                    "kind": _place_of(config.engine.kind, place),
                    "args": _argument(config.engine.args, place),
                    "weights": _path(config.engine.weights, place),
                }
            ),
            "templates": _path(config.templates, place),
            "output": _path(config.output, place),
        }
    )


def _place_of(named: str, place: Path) -> str:
    """The task, method or engine of a file, by its absolute path."""
    file, colon, name = named.rpartition(":")
    return f"{_absolute(file, place)}:{name}" if colon and file.endswith(".py") else named


def _path(path: Path | None, place: Path) -> Path | None:
    return None if path is None else Path(_absolute(str(path), place))


def _absolute(text: str, place: Path) -> str:
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    return str(path if path.is_absolute() else place / path)


def _exists(text: str, place: Path) -> bool:
    try:
        return Path(_absolute(text, place)).exists()
    except (OSError, ValueError):  # too long, or with a null byte: no path
        return False


def _argument(value: Any, place: Path) -> Any:
    """An argument of a task: a text that looks like a path, and is one, becomes absolute."""
    if isinstance(value, Mapping):
        return {key: _argument(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [_argument(item, place) for item in value]
    # A bare word names a dialect or a split far more often than a file.
    if isinstance(value, str) and ("/" in value or Path(value).suffix) and _exists(value, place):
        return _absolute(value, place)
    return value
