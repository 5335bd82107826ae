"""resd tasks: list what there is, check a task, start one of your own."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resd.errors import UserError, terminal_safe

if TYPE_CHECKING:
    # `resd --help` must not wait for what only a command needs.
    from rich.table import Table

    from resd.tasks.check import Check
    from resd.types import Example

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd tasks`."""
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="is a task sound? exit code 1 if something fails",
        usage="resd tasks check TASK [--task_args.KEY VALUE ...] [options]",
    )
    check.add_argument("task", metavar="TASK", help="as in resd train --task")
    check.add_argument("--model", help="count the prompts' tokens with its tokenizer")
    check.add_argument("--limit", type=int, help="gold answers scored a split (default: all)")
    check.add_argument("--seed", type=int, default=0, help="of the run")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_check)
    new = actions.add_parser("new", help="write a package with a starter environment and its tests")
    new.add_argument("name", metavar="NAME", help="of the package, for example my_task")
    new.add_argument("--directory", type=Path, default=Path(), help="where to (default: here)")
    new.set_defaults(run=_new)


def _list(options: argparse.Namespace) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from resd.config import ENGINES, METHODS, preset_names
    from resd.plugins import installed
    from resd.tasks.registry import ADAPTERS, BUILT_IN, find_class

    console = Console()
    table = Table("task", "what it is", "arguments (task_args)", box=SIMPLE_HEAD)
    places = {**BUILT_IN, **{f"{name}:NAME": place for name, (place, _) in ADAPTERS.items()}}
    places |= {name: place for name, place in installed("task").items() if name not in places}
    for name, place in places.items():
        try:
            cls = find_class(place)
        except UserError as error:  # of an installed package, which may be broken
            table.add_row(Text(name), Text(terminal_safe(str(error))), Text(""))
            continue
        own = ADAPTERS.get(name.partition(":")[0], ("", ""))[1]
        parameters = [p for p in inspect.signature(cls).parameters.values() if p.name != own]
        shown = "\n".join(_parameter(p) for p in parameters)
        table.add_row(Text(name), Text(getattr(cls, "description", "")), Text(shown))
    console.print(table)
    for what, names in (
        ("methods", [*METHODS, *installed("method")]),
        ("engines", [*ENGINES, *installed("engine")]),
        ("presets", preset_names()),
    ):
        console.print(f"{what}: {', '.join(names)}", markup=False, highlight=False)
    console.print(
        "your own: --task, --method or --engine.kind path/to/file.py:NAME or module:NAME, or an "
        "entry point (docs/python.md); resd tasks new NAME writes a task to start from",
        markup=False,
        highlight=False,
    )
    return 0


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console

    from resd.config import set_dotted
    from resd.tasks.check import run_checks

    values: dict[str, Any] = {"task_args": {}}
    for key, value in options.overrides:
        if not key.startswith("task_args."):
            raise UserError(f"unknown option --{key}; the task's own are --task_args.NAME VALUE")
        set_dotted(values, key, value)
    args = values["task_args"]
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, found {options.limit}")
    count = _counter(options.model) if options.model else None
    found = run_checks(options.task, args, options.seed, limit=options.limit, count_tokens=count)
    checks = list(found)
    failed = sum(check.state == "fail" for check in checks)
    if options.json:
        print(json.dumps([vars(check) for check in checks], indent=1))
    else:
        counted = f"{failed} check{'s' * (failed > 1)} failed" if failed else "sound"
        Console().print(_table(checks))
        print(terminal_safe(f"{options.task}: {counted}"))
    if any(check.name == "returns" for check in checks):
        # A thread that never returns would keep the process alive.
        sys.stdout.flush()
        os._exit(1)
    return int(failed > 0)


def _counter(model: str) -> Callable[[Example], int]:
    from resd.models.chat import ChatFormat
    from resd.models.load import load_tokenizer

    chat = ChatFormat(load_tokenizer(model), True)
    return lambda example: len(chat.encode(example.prompt))


def _table(checks: Sequence[Check]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "what was seen", box=SIMPLE_HEAD)
    for check in checks:
        table.add_row(
            Text(terminal_safe(check.name)),
            Text(check.state, _STYLES[check.state]),
            Text(terminal_safe(check.detail)),
        )
    return table


def _new(options: argparse.Namespace) -> int:
    from resd.tasks.starter import write_starter

    place, name = write_starter(options.name, options.directory)
    print(terminal_safe(f"wrote {place}; next:"))
    print(f"  pip install -e '{place}[test]' && pytest {place}")
    print(f"  resd tasks check {options.name}:{name}")
    print(f"  resd train --task {options.name}:{name} --model.path MODEL")
    return 0
