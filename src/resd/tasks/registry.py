"""Finding an environment: built in, through an adapter, or the user's own file or module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from resd import plugins
from resd.errors import UserError, close_to
from resd.plugins import describe_error as describe_error
from resd.tasks.base import Environment
from resd.types import Example, Split

T = TypeVar("T")

# Name and place of the class; imported when asked for. `STREAM` is what `[[stream]]` tables make.
STREAM = "stream"
BUILT_IN = {
    "lab": "resd.tasks.lab:LabEnvironment",
    "manufactoria": "resd.tasks.manufactoria:ManufactoriaEnvironment",
    "bouncing": "resd.tasks.bouncing:BouncingEnvironment",
    "finer": "resd.tasks.finer:FinerEnvironment",
    "console": "resd.tasks.console:ConsoleEnvironment",
    "skills": "resd.tasks.skills:SkillsEnvironment",
}
# `NAME:REST`: the class gets REST as the argument that stands here.
ADAPTERS = {
    "reasoning_gym": ("resd.tasks.adapters:ReasoningGymEnvironment", "dataset"),
    "verifiers": ("resd.tasks.adapters:VerifiersEnvironment", "taskset"),
}
_SEQUENCE = "resd.tasks.sequence:SequenceEnvironment"
MOST_EXAMPLES = 1_000_000  # a split is held in memory
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class TaskSpec:
    """What `load_environment` needs to make the same environment in another process.

    Attributes:
        task: see `load_environment`.
        args: keyword arguments of the class.
        seed: of the run.
    """

    task: str
    args: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def load_environment(task: str, args: Mapping[str, Any], seed: int = 0) -> Environment:
    """Make the environment that `task` names.

    Args:
        task: a built-in name, one that an installed package gives, `reasoning_gym:NAME`,
            `verifiers:NAME`, `path/to/file.py:Class`, or `module:Class`.
        args: keyword arguments of the class. The lab's `dialect` is the run's seed if not given.
        seed: of the run.

    Raises:
        UserError: it does not exist, its file fails, or its class is no environment.
    """
    arguments = dict(args)
    if task == "lab":
        arguments.setdefault("dialect", seed)
    adapter, _, name = task.partition(":")
    if adapter in ADAPTERS:
        arguments[ADAPTERS[adapter][1]] = name
    return make_environment(find_class(_SEQUENCE if task == STREAM else task), arguments, task)


def make_environment(cls: type[Any], arguments: Mapping[str, Any], task: str) -> Environment:
    """An environment of a class; `task` names it in messages.

    Raises:
        UserError: it cannot be made, or is no environment.
    """
    _check_arguments(cls, arguments, task)
    try:
        environment = cls(**arguments)
    except UserError as error:
        raise UserError(f"task {task}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"task {task}: {cls.__name__}() failed: {describe_error(error)}") from None
    check_environment(environment, task)
    return environment  # type: ignore[no-any-return]


def check_environment(environment: Any, task: str) -> None:
    """Refuse what is no environment.

    Raises:
        UserError: as said.
    """
    for method in ("examples", "evaluate"):
        if not callable(getattr(environment, method, None)):
            name = type(environment).__name__
            raise UserError(f"task {task}: {name} has no method {method}(...)")


def _check_arguments(cls: type[Any], arguments: Mapping[str, Any], task: str) -> None:
    try:
        signature = inspect.signature(cls)
    except (ValueError, TypeError):
        return  # some classes of C extensions have none
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise UserError(
            f"task {task}: task_args: {error}; the arguments of {cls.__name__} are: {known}"
        ) from None


def load_examples(environment: Environment, split: Split, task: str) -> list[Example]:
    """The examples of a split, checked.

    Raises:
        UserError: there are none or too many, one is of the wrong shape, or an id stands twice.
    """
    try:
        examples = list(islice(environment.examples(split), MOST_EXAMPLES + 1))
    except UserError as error:
        raise UserError(f"task {task}: {error}") from None
    except (Exception, SystemExit, GeneratorExit) as error:
        raise UserError(
            f"task {task}: examples({split!r}) failed: {describe_error(error)}"
        ) from None
    if len(examples) > MOST_EXAMPLES:
        raise UserError(
            f"task {task}: examples({split!r}) gives more than {MOST_EXAMPLES:,} examples; if it "
            "is a generator without end, return a list"
        )
    check_examples(examples, f"task {task}: examples({split!r})")
    return examples


def check_examples(examples: Sequence[Any], what: str) -> None:
    """Check that these are examples.

    Raises:
        UserError: there is none, one is of the wrong shape, or an id stands twice.
    """
    if not examples:
        raise UserError(f"{what} returned no example")
    seen: set[str] = set()
    for i, example in enumerate(examples):
        problem = _problem(example)
        if problem is None and example.id in seen:
            problem = f"id {example.id!r} stands twice"
        if problem is not None:
            raise UserError(f"{what}[{i}]: {problem}")
        seen.add(example.id)


def _problem(example: Any) -> str | None:
    if not isinstance(example, Example):
        return f"expected a resd.Example, found {type(example).__name__}"
    if not isinstance(example.id, str) or not example.id:
        return f"id must be a non-empty string, found {example.id!r:.80}"
    return prompt_problem(example.prompt)


def prompt_problem(prompt: Any) -> str | None:
    """What is wrong with chat messages that a model is to answer; None if nothing is."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        return 'prompt must be a non-empty list of chat messages {"role": ..., "content": ...}'
    for message in prompt:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            return 'a chat message must be {"role": ..., "content": ...}, both strings'
        if message.get("role") not in ROLES:
            return f"role must be one of {', '.join(ROLES)}, found {message.get('role')!r:.80}"
        try:
            message["content"].encode()
        except UnicodeEncodeError:
            return "a chat message holds half a character (a lone surrogate)"
    if prompt[-1]["role"] != "user":
        return "the last message of the prompt must be the user's"
    return None


def check_named(task: str) -> None:
    """Refuse a task that no name stands for.

    Raises:
        UserError: it was given as an object.
    """
    if task.startswith("<"):
        raise UserError(
            f"task {task} was given as an object in Python, and no file makes it again: give it "
            "once more, as in resd.train(resume=RUN, task=...) or resd.evaluate(RUN, task=...); a "
            "class of a module or of a script's file, given in place of an object, is found again"
        )


def find_class(task: str) -> type[Any]:
    """The class that `task` names.

    Raises:
        UserError: there is none.
    """
    adapter, _, rest = task.partition(":")
    if adapter in ADAPTERS and rest:
        return find_class(ADAPTERS[adapter][0])
    check_named(task)
    place = BUILT_IN.get(task) or plugins.place_of("task", task)
    if place is None:
        known = {**BUILT_IN, **ADAPTERS, **plugins.installed("task")}
        shown = [f"{name}:NAME" if name in ADAPTERS else name for name in known]
        raise UserError(
            f"unknown task {task!r}{close_to(task, known)}; known: {', '.join(shown)}; your own: "
            "path/to/file.py:Class or module:Class"
        )
    cls: type[Any] = plugins.load("task", place, lambda found: isinstance(found, type), "class")
    return cls


def asked(what: str, call: Callable[[], T]) -> T:
    """What an optional member of an environment gives.

    Raises:
        UserError: it fails; `what` says which member.
    """
    try:
        return call()
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} failed: {describe_error(error)}") from None
