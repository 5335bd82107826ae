"""Where a configuration comes from: defaults, preset, file, command line; errors of one line."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from resd import plugins
from resd.config.methods import run_class, settings_class
from resd.config.part import Part
from resd.config.run import METHODS, ResdConfig, RunConfig
from resd.errors import UserError, close_to

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_DEEPEST = 32


def preset_names() -> list[str]:
    """Names of the built-in presets."""
    folder = resources.files("resd") / "presets"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it does not exist, cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"config file {path} cannot be read: it is not UTF-8: {error}") from None
    except RecursionError:
        raise UserError(f"config file {path} is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, a number of 5,000 digits, a path with a null
        what = "is not valid TOML" if "\0" not in str(path) else "cannot be read"
        raise UserError(f"config file {path} {what}: {error}") from None


def read_stream(file: Path) -> list[Any]:
    """The tasks of a stream, as `--stream FILE` names them.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    values = read_toml(file)
    other = next((key for key in values if key != "stream"), None)
    if other is not None:
        raise UserError(
            f"--stream: {file} holds {other} beside its [[stream]] tables: give it as the config "
            f"file instead, resd train {file}"
        )
    parts = values.get("stream")
    if not isinstance(parts, list) or not parts:
        raise UserError(f"--stream: {file} holds no [[stream]] table; write one for each task")
    return parts


def load_config(
    file: Path | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
    given: str = "on the command line",
) -> RunConfig:
    """Defaults, then preset, then file, then dotted overrides.

    Without a file, with the lab as the only task, the preset is `lab` unless one is named, or
    none is. A preset's `[by_method.NAME]` tables hold what was tuned for one method.
    `method = "NAME"` stands for `method.name = "NAME"`.

    Args:
        file: TOML.
        overrides: keys and values.
        given: where the overrides stand, for messages.

    Raises:
        UserError: one line that names the key, what is wrong with it, and where it came from.
    """
    user = read_toml(file) if file else {}
    if isinstance(user.get("method"), str):
        user["method"] = {"name": user["method"]}
    for key, value in overrides:
        set_dotted(user, "method.name" if _names_method(key, value) else key, value)
    preset = user.get("preset")
    if preset == "none":  # as a run's own config.toml writes it
        preset = None
    elif "preset" not in user and file is None and _tasks(user) == {"lab"}:
        preset = user["preset"] = "lab"
    base = _preset(preset, user) if preset is not None else {}
    places = [f"in {file}"] if file else []
    places += [given] if overrides else []
    return validate(merge(base, user), " or ".join(places) or "in the preset")


def _names_method(key: str, value: Any) -> bool:
    return key == "method" and isinstance(value, str)


def _tasks(values: Mapping[str, Any]) -> set[Any]:
    """Names of the task, or of those of the stream."""
    task, stream = values.get("task", "lab"), values.get("stream")
    parts = [part for part in stream if isinstance(part, dict)] if isinstance(stream, list) else []
    named = [part.get("task", task) for part in parts] or [task]
    return {name for name in named if isinstance(name, str)}


def validate(values: Mapping[str, Any], where: str, *, own_code: bool = True) -> RunConfig:
    """Make a RunConfig of plain values, or a UserError of one line.

    TOML has no null: the text "none" stands for it, as on the command line.

    Args:
        values: nested.
        where: they stand, for messages.
        own_code: check the settings of a method that is not built in, which imports it.
    """
    _check_depth(values, where)
    plain = _with_nulls(values)
    method = plain.setdefault("method", {})
    if not isinstance(method, dict):
        raise UserError(f"method {where} is a table: write --method.name {method}")
    name = method.setdefault("name", "resd")
    settings = settings_class(name, own_code=own_code)
    own = None if settings in METHODS.values() else settings
    run = RunConfig if own is None else run_class(own)
    try:
        config = run.model_validate(plain)
    except ValidationError as error:
        raise UserError(_describe(error, where, own)) from None
    if not config.model.path:
        raise UserError(
            "model.path is not set: name the student, for example --model.path Qwen/Qwen3-0.6B "
            "(or --preset lab for the lab's base model)"
        )
    return config


def _check_depth(values: Mapping[str, Any], where: str) -> None:
    """Refuse what is nested deeper than a configuration can be.

    Raises:
        UserError: it is.
    """
    level: list[Any] = [values]
    for _ in range(_DEEPEST):
        parts = [part for part in level if isinstance(part, Mapping | list)]
        level = [
            item
            for part in parts
            for item in (part.values() if isinstance(part, Mapping) else part)
        ]
        if not level:
            return
    raise UserError(f"a setting {where} is nested deeper than {_DEEPEST} levels")


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return None if value == "none" else value


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested dictionaries.

    Raises:
        UserError: a part of the key on the way holds a value of its own.
    """
    *path, last = key.split(".")
    if len(path) > _DEEPEST:
        raise UserError(f"--{key[:40]}...: nested deeper than {_DEEPEST} levels")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"--{key}: {part} is a value, not a table")
    values[last] = value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merged; `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _preset(name: Any, user: Mapping[str, Any]) -> dict[str, Any]:
    if name not in preset_names():
        known, meant = ", ".join(preset_names()), close_to(name, preset_names())
        raise UserError(f"there is no preset {name!r}; the presets are: {known}{meant}")
    base = _read_preset(name)
    tuned = base.pop("by_method", {})
    user_method = user.get("method", {})
    named = user_method.get("name") if isinstance(user_method, dict) else None
    own = base.get("method", {}).get("name", "resd")
    method = named or own
    if method != own:
        # What only adds to the preset's own method keeps what was tuned for that one.
        adds = issubclass(settings_class(method) or Part, METHODS[own])
        base["method"] = {**(base.get("method", {}) if adds else {}), "name": method}
    if _tasks({**base, **user}) != {base.get("task", "lab")}:
        # Where responses are evaluated is of the preset's own task: another one may crash.
        base.get("rollout", {}).pop("env_mode", None)
    return merge(base, tuned.get(method, {}) if isinstance(method, str) else {})


def _read_preset(name: str) -> dict[str, Any]:
    """The values of a preset; one that names another says only what differs from it."""
    text = (resources.files("resd") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    values = tomllib.loads(text)
    start = values.pop("preset", None)
    return merge(_read_preset(start), values) if start is not None else values


def _describe(error: ValidationError, where: str, own: type[Part] | None) -> str:
    """The first mistake in one line; `own` are the settings of a method that is not built in."""
    first = error.errors()[0]
    # The discriminator's value is no part of the user's key.
    loc = [str(part) for part in first["loc"]]
    tagged = own is None and loc[:1] == ["method"] and len(loc) > 1
    path = loc[:1] + loc[2:] if tagged else loc
    key = ".".join(path)
    more = len(error.errors()) - 1
    tail = f" (and {more} more)" if more else ""
    if first["type"] == "extra_forbidden":
        tag = next((METHODS[p] for p in loc if p in METHODS), ResdConfig)
        known = _known_keys(path[:-1], own or tag)
        meant = _meant(key, path[-1], known)
        return f"unknown key {key} {where}{meant}; known here: {', '.join(known)}{tail}"
    if first["type"] == "union_tag_invalid":
        name = first["input"].get("name")
        every = [*METHODS, *plugins.installed("method")]
        meant = close_to(name, every)
        return f"unknown method {name!r:.80} {where}{meant}; known: {', '.join(every)}"
    value = first.get("input")
    shown = f", found {value!r}"[:100] if not isinstance(value, dict) else ""
    return f"{key} {where}: {first['msg']}{shown}{tail}"


def _known_keys(path: Sequence[str], method: type[Part]) -> list[str]:
    part: Any = RunConfig
    for name in path:
        if name.isdigit():  # the place in a list
            continue
        if name == "method":
            part = method
            continue
        annotation = part.model_fields[name].annotation
        options = getattr(annotation, "__args__", (annotation,))
        part = next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), part)
    return list(part.model_fields)


def _meant(key: str, last: str, known: Sequence[str]) -> str:
    """Which key may be meant: one here, or one of this name elsewhere."""
    here = close_to(last, known)
    if here:
        return here
    every = list(_dotted(RunConfig, ""))
    same = [name for name in every if name.rpartition(".")[2] == last]
    return close_to(same[0], same) if same else close_to(key, every)


def _dotted(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name == "method":
            for method in METHODS.values():
                yield from _dotted(method, "method.")
            continue
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        part = next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)
        yield f"{prefix}{name}"
        if typing.get_origin(field.annotation) is list:
            continue  # keys of a table in a file, and of no word of the command line
        if part is not None:
            yield from _dotted(part, f"{prefix}{name}.")
