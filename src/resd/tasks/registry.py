"""Finding an environment by name: built in, `path/to/file.py:Class`, or `module:Class`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from resd.errors import UserError
from resd.tasks.base import Environment, Example, Split
from resd.tasks.lab import LabEnvironment

BUILT_IN: dict[str, type[Any]] = {"lab": LabEnvironment}


def load_environment(task: str, args: Mapping[str, Any], seed: int = 0) -> Environment:
    """Make the environment that `task` names.

    Args:
        task: a built-in name, `path/to/file.py:Class`, or `module:Class`.
        args: keyword arguments of the class. The lab's `dialect` is the run's seed if not given.
        seed: of the run.

    Raises:
        UserError: it does not exist, its file fails, or its class is no environment.
    """
    arguments = dict(args)
    if task == "lab":
        arguments.setdefault("dialect", seed)
    cls = _find_class(task)
    try:
        environment = cls(**arguments)
    except TypeError as error:
        known = ", ".join(p for p in inspect.signature(cls).parameters) or "none"
        raise UserError(f"task {task}: {error}; its arguments are: {known}") from None
    except Exception as error:
        raise UserError(f"task {task}: {describe_error(error)}") from None
    for method in ("examples", "evaluate"):
        if not callable(getattr(environment, method, None)):
            raise UserError(f"task {task}: {cls.__name__} has no method {method}(...)")
    return environment  # type: ignore[no-any-return]


def load_examples(environment: Environment, split: Split, task: str) -> list[Example]:
    """The examples of a split, checked.

    Raises:
        UserError: there are none, one is of the wrong shape, or an id stands twice.
    """
    try:
        examples = list(environment.examples(split))
    except Exception as error:
        raise UserError(f"task {task}: examples({split!r}) failed: {describe_error(error)}") from None
    if not examples:
        raise UserError(f"task {task}: examples({split!r}) returned no example")
    seen: set[str] = set()
    for i, example in enumerate(examples):
        problem = _problem(example)
        if problem is None and example.id in seen:
            problem = f"id {example.id!r} stands twice"
        if problem is not None:
            raise UserError(f"task {task}: examples({split!r})[{i}]: {problem}")
        seen.add(example.id)
    return examples


def _problem(example: Any) -> str | None:
    if not isinstance(example, Example):
        return f"expected a resd.Example, found {type(example).__name__}"
    if not isinstance(example.id, str) or not example.id:
        return f"id must be a non-empty string, found {example.id!r}"
    prompt = example.prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        return "prompt must be a non-empty list of chat messages"
    for message in prompt:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            return 'a chat message must be {"role": ..., "content": ...}'
    if prompt[-1].get("role") != "user":
        return "the last message of the prompt must be the user's"
    return None


def _find_class(task: str) -> type[Any]:
    if task in BUILT_IN:
        return BUILT_IN[task]
    place, colon, name = task.rpartition(":")
    if not colon or not place or not name:
        known = ", ".join(BUILT_IN)
        raise UserError(
            f"unknown task {task!r}; built in: {known}; your own: path/to/file.py:Class or "
            "module:Class"
        )
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        found = [n for n, v in vars(module).items() if isinstance(v, type)]
        raise UserError(f"task {task}: no class {name} in {place}; it has: {', '.join(found)}")
    return cls


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"task file {path} does not exist")
    name = f"resd_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"task file {path} failed: {describe_error(error)}") from None
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(f"task module {name} cannot be imported: {describe_error(error)}") from None


def describe_error(error: BaseException) -> str:
    """The error in one line, with the innermost place in the user's file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at = ""
    if trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename).name
        at = f" ({file}, line {trace.tb_lineno})"
    if isinstance(error, SyntaxError):
        at = f" (line {error.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{at}"
