"""`resd train --help KEY`: one setting, or a group of them, with type, range and default."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from resd.config import METHODS, RunConfig, find_method
from resd.errors import UserError, close_to
from resd.plugins import installed

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "none",
    "object": "table",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "pattern": "in the form",
}


@dataclass(frozen=True)
class Setting:
    """A setting, or a group of them.

    Attributes:
        key: dotted.
        method: that has it; empty where it is not a method's.
        owner: the class that declares it.
        name: in that class.
        group: the class of its settings, if it is a group.
    """

    key: str
    method: str
    owner: type[BaseModel]
    name: str
    group: type[BaseModel] | None = None

    @property
    def description(self) -> str:
        """What it is for."""
        return self.owner.model_fields[self.name].description or ""

    @property
    def default(self) -> str:
        """Its default, as the command line takes it."""
        if self.key == "method.name":
            return "resd"
        default = self.owner.model_fields[self.name].get_default(call_default_factory=True)
        return "required" if default is PydanticUndefined else _shown(default)

    @property
    def kind(self) -> str:
        """Its type and range in words."""
        if self.key == "method.name":
            return f"one of {', '.join(self.values)}, path/to/file.py:Class or module:Class"
        return _kind(_properties(self.owner)[self.name])

    @property
    def values(self) -> list[str]:
        """What it can be, where those are few; else nothing."""
        if self.key == "method.name":
            return [*METHODS, *installed("method")]
        schema = _properties(self.owner)[self.name]
        return [value for option in schema.get("anyOf", [schema]) for value in _values(option)]


@cache
def _properties(owner: type[BaseModel]) -> dict[str, Any]:
    return dict(owner.model_json_schema()["properties"])


def walk(
    model: type[BaseModel] = RunConfig, prefix: str = "", method: str = ""
) -> Iterator[Setting]:
    """All settings and groups, each group before what is in it."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key == "method":
            yield Setting(key, "", model, name, METHODS["resd"])
            for other, config in METHODS.items():
                yield from walk(config, "method.", other)
            continue
        part = sub_model(field.annotation)
        if part is None or typing.get_origin(field.annotation) is list:
            yield Setting(key, method, model, name)
            continue
        yield Setting(key, method, model, name, part)
        yield from walk(part, f"{key}.", method)


def sub_model(annotation: Any) -> type[BaseModel] | None:
    """The class of settings in an annotation: `X`, `X | None`, `list[X]`."""
    options = [annotation, *typing.get_args(annotation)]
    return next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)


def help_of(key: str) -> str:
    """A setting or a group by its dotted key, or a method's settings by its name.

    Raises:
        UserError: there is no such thing.
    """
    wanted = key.replace("-", "_")
    every = list(walk())
    if wanted in METHODS:
        own = [s for s in every if s.method == wanted and s.group is None]
        return "\n\n".join([f"{wanted}: {_first_line(METHODS[wanted])}", *map(_told, own)])
    if ":" in key or key in installed("method"):
        cls = find_method(key)
        own = [s for s in walk(cls.config_class, "method.") if s.name != "name" and not s.group]
        return "\n\n".join([f"{key}: {_first_line(cls)}", *map(_told, own)])
    found = [setting for setting in every if setting.key == wanted]
    if not found:
        known = [*METHODS, *installed("method"), *dict.fromkeys(setting.key for setting in every)]
        groups = ", ".join(dict.fromkeys(s.key for s in every if s.group and "." not in s.key))
        raise UserError(
            f"there is no setting {key[:80]}{close_to(wanted, known)}; groups of settings: "
            f"{groups}; all of them: resd train --help"
        )
    group = found[0].group is not None
    if group:
        found = [s for s in every if s.key.startswith(f"{wanted}.") and s.group is None]
    texts: dict[str, list[str]] = {}
    for setting in found:
        texts.setdefault(_told(setting), []).append(setting.method)
    head = [f"{wanted}: {next(s for s in every if s.key == wanted).description}"] if group else []
    of = [
        text + (f"\n    of: {', '.join(methods)}" if set(methods) < set(METHODS) else "")
        for text, methods in texts.items()
    ]
    return "\n\n".join([*head, *of])


def _told(setting: Setting) -> str:
    return (
        f"--{setting.key}\n    {setting.description}\n    type: {setting.kind}\n"
        f"    default: {setting.default}"
    )


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return "; or ".join(_kind(option) for option in schema["anyOf"])
    kind = str(schema.get("type"))
    if kind not in ("boolean", "null") and _values(schema):
        return f"one of {', '.join(_values(schema))}"
    if kind == "array":
        inside = schema.get("prefixItems") or [schema.get("items") or {}]
        return f"list: {'; '.join(map(_kind, inside))}"
    limits = {name: schema[name] for name in _BOUNDS if name in schema}
    # pydantic 2.9 says 0.0 where later ones say 0.
    shown = {k: f"{v:.12g}" if isinstance(v, float) else v for k, v in limits.items()}
    bounds = [f"{_BOUNDS[name]} {value}" for name, value in shown.items()]
    return ", ".join([_TYPES.get(kind, "table"), *bounds])


def _values(schema: Mapping[str, Any]) -> list[str]:
    if schema.get("type") in ("boolean", "null"):
        return _TYPES[schema["type"]].split(" or ")
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return [str(value) for value in values]


def _first_line(model: type[Any]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return json.dumps(default) if isinstance(default, list | dict | tuple) else str(default) or '""'
