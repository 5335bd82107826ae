"""`resd train --help`: every setting, with its default and meaning."""

from __future__ import annotations

import json
import typing
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console

from resd.config import METHODS, RunConfig
from resd.plugins import installed


def print_settings() -> None:
    """Every setting with its default and meaning."""
    console = Console()
    console.print(
        "usage: resd train [CONFIG.toml] [--key.sub value ...] [--dry-run]\n", markup=False
    )
    console.print(
        "       resd train --resume RUN [--train.steps MORE] [--accept KEY ...]\n", markup=False
    )
    console.print(
        "       resd train [CONFIG.toml] --stream FILE.toml  (its [[stream]] tables)\n",
        markup=False,
    )
    console.print(
        "       resd train --help KEY  (a setting, a group as in train, a method, or your own)\n",
        markup=False,
    )
    console.print(
        "--dry-run checks everything, says what memory and disk it takes, and loads nothing.\n",
        markup=False,
    )
    console.print(
        "With no argument it trains the lab's default, preset 'lab'. Settings stand in a preset, "
        "in a TOML file, or on the command line; a later one wins. 'none' stands for no value. "
        "Defaults are the paper's.\n",
        markup=False,
    )
    for key, default, meaning in settings(RunConfig):
        console.print(f"  --{key}", style="bold", markup=False, end="")
        console.print(f"  {default}", style="cyan", markup=False, highlight=False)
        console.print(f"      {meaning}", markup=False, highlight=False)


def settings(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """Key, default and meaning of every setting, methods with their own keys."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key == "method":
            known = ", ".join([*METHODS, *installed("method")])
            named = f"the method: {known}, path/to/file.py:Class or module:Class"
            rows.append(("method.name", "resd", named))
            for method, config in METHODS.items():
                own = settings(config, "method.")
                rows += [(k, d, f"({method}) {m}") for k, d, m in own if k != "method.name"]
            continue
        part = _sub_model(field.annotation)
        if part is not None and typing.get_origin(field.annotation) is list:
            keys = ", ".join(part.model_fields)
            rows.append((key, "none", f"{field.description}: {keys}"))
            continue
        if part is not None:
            if part is not field.annotation:
                rows.append((key, "none", f"{field.description}; set any of its keys:"))
            rows += settings(part, f"{key}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else _shown(default)
        rows.append((key, shown, f"{field.description or ''}{_choices(field.annotation)}"))
    return _merged(rows)


def _merged(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Settings that several methods share with one default stand once."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for key, default, meaning in rows:
        method, text = "", meaning
        if meaning.startswith("(") and ") " in meaning and key.startswith("method."):
            method, _, text = meaning[1:].partition(") ")
        merged.setdefault((key, default, text), []).append(method)
    return [
        (key, default, f"({', '.join(methods)}) {text}" if methods[0] else text)
        for (key, default, text), methods in merged.items()
    ]


def _sub_model(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *typing.get_args(annotation)]
    return next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _choices(annotation: Any) -> str:
    options = [annotation, *typing.get_args(annotation)]
    literal = next((a for a in options if typing.get_origin(a) is Literal), None)
    return f" [{' | '.join(map(str, typing.get_args(literal)))}]" if literal else ""


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return json.dumps(default) if isinstance(default, list | dict | tuple) else str(default) or '""'
