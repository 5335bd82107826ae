"""`resd train --help`: every setting, with its default and meaning."""

from __future__ import annotations

import typing
from typing import Any, Literal

from pydantic import BaseModel
from rich.console import Console

from resd.cli.setting import Setting, sub_model, walk
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


def settings(model: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Key, default and meaning of every setting; before the meaning the methods that have it.

    Settings that several methods share with one default stand once.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for setting in walk(model):
        row = _row(setting)
        if row is not None:
            found.setdefault(row, []).append(setting.method)
    return [
        (key, default, f"({', '.join(methods)}) {text}" if methods[0] else text)
        for (key, default, text), methods in found.items()
    ]


def _row(setting: Setting) -> tuple[str, str, str] | None:
    """Key, default and meaning; None for what is said elsewhere."""
    if setting.key == "method":
        known = ", ".join([*METHODS, *installed("method")])
        said = f"the method: {known}, path/to/file.py:Class or module:Class"
        return "method.name", "resd", said
    annotation = setting.owner.model_fields[setting.name].annotation
    if setting.group is not None:
        if annotation is setting.group:
            return None
        return setting.key, "none", f"{setting.description}; set any of its keys:"
    part = sub_model(annotation)
    if part is not None:  # a list of tables
        return setting.key, "none", f"{setting.description}: {', '.join(part.model_fields)}"
    if setting.key == "method.name":
        return None
    return setting.key, setting.default, f"{setting.description}{_choices(annotation)}"


def _choices(annotation: Any) -> str:
    options = [annotation, *typing.get_args(annotation)]
    literal = next((a for a in options if typing.get_origin(a) is Literal), None)
    return f" [{' | '.join(map(str, typing.get_args(literal)))}]" if literal else ""
