"""A task as a Python program gives it: a name, a class, or an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resd import plugins
from resd.errors import UserError
from resd.tasks.base import Environment
from resd.tasks.registry import check_environment, make_environment


@dataclass(frozen=True)
class GivenTask:
    """A task.

    Attributes:
        name: what the configuration says; `<NAME object>` where it can say no more.
        environment: the object, where no worker process and no later run could make it again.
    """

    name: str
    environment: Environment | None = None


def given_task(task: object, args: Mapping[str, Any]) -> GivenTask:
    """What a program gave as its task.

    Args:
        task: a name or FILE:NAME, a class, or an object of one.
        args: the task's own arguments, for a class.

    Raises:
        UserError: it is no task, or an object has arguments.
    """
    if isinstance(task, str | Path):
        return GivenTask(str(task))
    if isinstance(task, type):
        name = plugins.spec_of(task)
        if name is not None:
            return GivenTask(name)
        name = f"<{task.__name__} object>"
        return GivenTask(name, make_environment(task, args, name))
    name = f"<{type(task).__name__} object>"
    check_environment(task, name)
    if args:
        raise UserError(f"task {name} is made already: task_args go with a class or a name")
    environment: Any = task
    return GivenTask(name, environment)
