"""What a run was made of: versions, own code, settings, place; and whether that still holds.

identity.json is written when a run is created and compared when somebody goes on with it. Each
checkpoint holds checksums.json, the digests of its files, written last.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
import uuid
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from resd import plugins
from resd.config import ENGINES, METHODS, RunConfig
from resd.errors import UserError, close_to
from resd.runs import atomic
from resd.tasks.registry import ADAPTERS, BUILT_IN

NAME, CHECKSUMS = "identity.json", "checksums.json"
# A different version of these may change the numbers of a run.
_LIBRARIES = ("resd", "torch", "transformers", "peft", "accelerate")
_VERSION = 1


def identity(config: RunConfig, place: Path) -> dict[str, Any]:
    """What a run is made of, as plain JSON.

    Args:
        config: with absolute paths.
        place: the working directory.
    """
    return {
        "version": _VERSION,
        "id": uuid.uuid4().hex,
        "working_directory": str(place),
        "versions": versions(),
        **own_code(config, place),
        "settings": settings(config),
    }


def own_code(config: RunConfig, place: Path) -> dict[str, str | None]:
    """Digests of the sources of tasks, method and engine; None for what comes with the package.

    Args:
        config: with absolute paths.
        place: the working directory.
    """
    return {
        "task": tasks_digest(config, place),
        "method": source_digest("method", config.method.name, METHODS, place),
        "engine": source_digest("engine", config.engine.kind, ENGINES, place),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter; what is not installed is left out."""
    from resd import __version__

    found = {"python": platform.python_version(), "resd": __version__}
    for name in _LIBRARIES[1:]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def settings(config: RunConfig) -> dict[str, Any]:
    """Dotted settings of a run: all but where it lies."""
    values = config.model_dump(mode="json")
    del values["output"]
    # Through JSON and back: tuples become lists, as they are read from the file.
    return dict(flat(json.loads(json.dumps(values)), ""))


def tasks_digest(config: RunConfig, place: Path) -> str | None:
    """Digest of the sources of a run's own tasks; None where all come with the package."""
    found = {task: task_digest(task, place) for task in config.tasks}
    own = [digest for _, digest in sorted(found.items()) if digest is not None]
    return " ".join(own) or None


def task_digest(task: str, place: Path) -> str | None:
    """Digest of the source of a task of one's own; None for what comes with the package."""
    if task.partition(":")[0] in ADAPTERS:
        return None
    return source_digest("task", task, BUILT_IN, place)


def source_digest(
    kind: plugins.Kind, named: str, built_in: Collection[str], place: Path
) -> str | None:
    """Digest of the file of a task, method or engine; None for what comes with the package."""
    found = None if named in built_in else plugins.place_of(kind, named)
    if found is None:
        return None
    name = found.rpartition(":")[0]
    file = Path(name) if name.endswith(".py") else _module_file(name, place)
    try:
        return None if file is None else digest(file)
    except OSError:
        return None  # loading it says it better


def digest(file: Path) -> str:
    """Digest of a file's content."""
    hashed = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def save(run: Path, values: Mapping[str, Any]) -> None:
    """Write a run's identity.json."""
    atomic.write_json(run / NAME, values)


def load(run: Path) -> dict[str, Any] | None:
    """A run's identity; None if it has none, as runs of an older resd.

    Raises:
        UserError: the file is damaged.
    """
    file = run / NAME
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(values[key], dict) for key in ("versions", "settings")):
            raise ValueError
        str(values["id"]), str(values["working_directory"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{file} is damaged: what the run was made of cannot be checked; remove it to go on "
            "without the check"
        ) from None
    return dict(values)


def check(run: Path, config: RunConfig, accept: Collection[str]) -> dict[str, Any]:
    """Compare what the run was made of with what there is now; returns its identity to save.

    Args:
        run: the directory.
        config: as read from its config.toml.
        accept: `config`, `task`, `method`, `engine`, `versions`, or a dotted key or library that
            may have changed.

    Raises:
        UserError: something changed that is not accepted, or `accept` names nothing.
    """
    check_keys(config, accept)
    saved = load(run)
    now = identity(config, Path.cwd())
    if saved is None:
        return now
    now["id"], place = saved["id"], Path(str(saved["working_directory"]))
    now["working_directory"] = str(place)
    now.update(own_code(config, place))
    changed = changes(saved, now)
    refused = {key: text for key, text in changed.items() if not _accepted(key, accept)}
    if refused:
        key, text = next(iter(refused.items()))
        more = f" (and {len(refused) - 1} more: {', '.join(list(refused)[1:4])})"
        group, _, name = key.partition("/")
        raise UserError(
            f"{run}: {text}{more if len(refused) > 1 else ''}; undo that, or go on with --accept "
            f"{name or group}"
        )
    return now


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What changed, in words, by GROUP/KEY."""
    found = {}
    old, new = saved["settings"], now["settings"]
    for key in sorted(old.keys() | new.keys()):
        # What is kept to be looked at, and who looks, changes nothing that is learnt.
        if key.partition(".")[0] not in ("traces", "health") and old.get(key) != new.get(key):
            found[f"config/{key}"] = (
                f"config.toml was edited: {key} was {_shown(old.get(key))} and is now "
                f"{_shown(new.get(key))}"
            )
    task = "a task of the stream" if new.get("stream") else f"task {new.get('task')}"
    own = {
        "task": ("task", task),
        "method": ("method.name", f"method {new.get('method.name')}"),
        "engine": ("engine.kind", f"engine {new.get('engine.kind')}"),
    }
    for kind, (key, what) in own.items():
        known = saved.get(kind) is not None and f"config/{key}" not in found
        if known and saved[kind] != now[kind]:
            found[kind] = f"the source of {what} was changed"
    for name in sorted(saved["versions"].keys() & now["versions"].keys()):
        was, is_ = str(saved["versions"][name]), str(now["versions"][name])
        if _matters(name, was) != _matters(name, is_):
            found[f"versions/{name}"] = f"it was made with {name} {was}, and this is {is_}"
    return found


def check_keys(config: RunConfig, accept: Collection[str]) -> None:
    """Refuse a --accept that names nothing.

    Raises:
        UserError: it is no group, no setting and no library.
    """
    groups = ["config", "task", "method", "engine", "versions", "python"]
    known = [*groups, *_LIBRARIES, *settings(config)]
    for key in accept:
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            raise UserError(
                f"--accept {key}: there is no such thing to accept{close_to(key, known)}; it is "
                "config, task, method, engine, versions, or the setting or library that was changed"
            )


def find_modules_of(run: Path, named: str) -> None:
    """Let a module beside the place where the run was started be imported again."""
    saved = load(run)
    name, colon, _ = named.rpartition(":")
    if saved is None or not colon or name.endswith(".py") or named.partition(":")[0] in ADAPTERS:
        return
    place = str(saved["working_directory"])
    if _module_in(name, Path(place)) is not None and place not in sys.path:
        sys.path.append(place)


# -- checkpoints ----------------------------------------------------------------------------------


def write_checksums(checkpoint: Path) -> None:
    """Write the digests of all files of a checkpoint beside them."""
    found = {str(file.relative_to(checkpoint)): digest(file) for file in _files(checkpoint)}
    (checkpoint / CHECKSUMS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None.

    One without checksums.json, of an older resd, is believed.
    """
    try:
        text = (checkpoint / CHECKSUMS).read_text(encoding="utf-8")
        wanted = json.loads(text)
        if not isinstance(wanted, dict):
            return f"{CHECKSUMS} makes no sense"
        for name, value in wanted.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if digest(file) != value:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "makes no sense"
        return f"{CHECKSUMS}: {reason}"
    return None


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != CHECKSUMS]


def _accepted(key: str, accept: Collection[str]) -> bool:
    group, _, name = key.partition("/")
    return any(
        wanted in (group, name) or (bool(name) and name.startswith(f"{wanted}."))
        for wanted in accept
    )


def _matters(name: str, version: str) -> str:
    """The part of a version that may change numbers: Python's patch releases do not."""
    return ".".join(version.split(".")[:2]) if name == "python" else version


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)[:60]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys; what is None is left out, as in a run's config.toml."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", value))
    return rows


def _module_in(name: str, place: Path) -> Path | None:
    stem = place.joinpath(*name.split("."))
    files = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
    return next((file for file in files if os.path.isfile(file)), None)


def _module_file(name: str, place: Path) -> Path | None:
    beside = _module_in(name, place)
    if beside is not None:
        return beside
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None
