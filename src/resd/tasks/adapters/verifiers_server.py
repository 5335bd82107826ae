"""The process that holds a taskset of verifiers: `python -m resd.tasks.adapters.verifiers_server`.

It loads the tasks and scores each response by the task's own rewards and metrics, in a fork,
within limits (see `verifiers_guard`). A task that is more than one prompt and one response is
refused, with the reason.

Protocol (see `library_server`): it offers `{"train": [item], "test": [item], "says": {reward:
words}}`, an item being `[index, messages, gold, secrets]`. To each `[index, response]` the reply is
`{"rewards": {name: [score, weight]}, "metrics": {name: number}, "reasons": {name: text}}`, or
`{"limits": words}`, or `{"failed": words}` where the scoring itself failed.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from resd.tasks.adapters.library_server import Forbidden, Refused, described, in_fork, serve
from resd.tasks.adapters.verifiers_guard import Guard, confine

_VERSION = "0.4"
_DRAWS_PER_TASK = 4  # of a taskset without end so many tasks are read for each wanted, ...
_MORE_DRAWS = 100  # ... and so many more
_LIMITS = "it took too long, or too much memory, to score"
Message = dict[str, str]


class _Server:
    """A taskset, and the tasks that were drawn from it.

    Args:
        taskset: its id.
        config: its options.
        test_config: options of the taskset whose tasks are for testing; None for the same taskset,
            divided.
        seed: of the order in which tasks are drawn.
        train: different tasks to train on.
        test: different tasks to test on, drawn first.
        gold: template of a right response; the task's data fill it.
        reasons: keys of `trace.info` whose text says why.
    """

    def __init__(
        self,
        taskset: str,
        config: Mapping[str, Any],
        test_config: Mapping[str, Any] | None,
        seed: int,
        train: int,
        test: int,
        gold: str | None,
        reasons: Sequence[str],
    ) -> None:
        _check_package()
        self.reasons = list(reasons)
        self.tasks: list[Any] = []
        wanted = train + test if test_config is None else test
        tasks = _tasks(taskset, {**config, **(test_config or {})}, wanted, seed)
        seen: set[str] = set()
        items = self._items(tasks, wanted, seen, gold)
        _enough(taskset, items, wanted, "tasks" if test_config is None else "tasks to test on")
        if test_config is not None:
            drawn = _tasks(taskset, config, train + test, seed)
            items += self._items(drawn, train, seen, gold)
            _enough(taskset, items[test:], train, "tasks to train on")
        says = {fn.__name__: _first_line(fn) for fn in self.tasks[0].hooks("reward")}
        self.offer = {"test": items[:test], "train": items[test:], "says": says}
        # What is made once (versions, types) is made here, not in every fork.
        _trace(self.tasks[0], "")

    def _items(
        self, tasks: Iterable[Any], wanted: int, seen: set[str], gold: str | None
    ) -> list[list[Any]]:
        """At most `wanted` tasks whose prompt was not seen, checked."""
        items: list[list[Any]] = []
        for task in tasks:
            if len(items) == wanted:
                break
            refuse_unless_single(task)
            messages = _messages(task.data)
            if str(messages) in seen:
                continue
            seen.add(str(messages))
            items.append([len(self.tasks), messages, *_gold(task, gold)])
            self.tasks.append(task)
        return items

    def answer(self, question: tuple[int, str]) -> dict[str, Any]:
        """What the task's rewards and metrics say of one response."""
        index, response = question
        verdict = in_fork(lambda: self._confined_score(self.tasks[index], response))
        return verdict or {"limits": _LIMITS}

    def _confined_score(self, task: Any, response: str) -> dict[str, Any]:
        trace = _trace(task, response)
        confine()
        guard = Guard()
        sys.addaudithook(guard)
        try:
            asyncio.run(task.score(trace))
        except (Exception, Forbidden) as error:
            if isinstance(error.__cause__, MemoryError):  # verifiers wraps what a reward raises
                return {"limits": _LIMITS}
            return {"failed": guard.refused or described(error)}
        if guard.refused:
            return {"failed": guard.refused}
        info = {name: trace.info[name] for name in self.reasons if trace.info.get(name)}
        return {
            "rewards": {name: [r.score, r.weight] for name, r in trace.rewards.items() if r},
            "metrics": {k: float(v) for k, v in trace.metrics.items() if v is not None},
            "reasons": {name: str(text)[:2000] for name, text in info.items()},
        }


def _check_package() -> None:
    try:
        import verifiers
        import verifiers.v1 as _  # noqa: F401
    except Exception as error:
        raise Refused(f"verifiers cannot be imported: {described(error)}") from None
    if not f"{verifiers.__version__}.".startswith(f"{_VERSION}."):
        raise Refused(
            f"verifiers tasks are read by version {_VERSION}, found {verifiers.__version__}: pip "
            f"install 'verifiers=={_VERSION}.*'"
        )


def _tasks(name: str, config: Mapping[str, Any], wanted: int, seed: int) -> list[Any]:
    """The tasks of a taskset, in an order that the seed decides."""
    from pydantic import ValidationError
    from verifiers.v1.utils import loaders

    try:
        options = loaders.taskset_config_type(name)
    except Exception as error:
        raise Refused(f"verifiers cannot load the taskset {name}: {described(error)}") from None
    _refuse_unless_plain(name)
    try:
        taskset = loaders.load_taskset(options.model_validate({**config, "id": name}))
        tools = taskset.toolsets(taskset.config)
        most = None if taskset.bounded else _DRAWS_PER_TASK * wanted + _MORE_DRAWS
        tasks = list(islice(taskset, most))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        known = ", ".join(sorted(set(options.model_fields) - {"id"}))
        raise Refused(
            f"{name} does not take this config: {where}: {first['msg']}; its options are: {known}"
        ) from None
    except Exception as error:
        raise Refused(f"{name} fails to load its tasks: {described(error)}") from None
    if tools:
        raise _not_single(name, "it gives the model tools")
    random.Random(seed).shuffle(tasks)
    return tasks


def _enough(name: str, items: Sequence[Any], wanted: int, what: str) -> None:
    if len(items) < wanted:
        raise Refused(
            f"{name} has only {len(items)} different {what}, and {wanted} are asked for: lower "
            "--task_args.train_size and --task_args.test_size, or widen --task_args.config"
        )


# -- what is one prompt and one response ---------------------------------------------------------


def _refuse_unless_plain(name: str) -> None:
    """Refuse a taskset that is played by an environment or a harness of its own."""
    from verifiers.v1.envs.single_agent import SingleAgentEnv
    from verifiers.v1.utils import loaders

    played = loaders.environment_class(name)
    if played is not SingleAgentEnv:
        raise _not_single(name, f"an environment of its own plays it ({played.__name__})")
    if loaders.default_harness_id(name) == name:
        raise _not_single(name, "a harness of its own makes the response")


def refuse_unless_single(task: Any) -> None:
    """Refuse a task that is more than one prompt and one response, or whose score needs more.

    Raises:
        Refused: with the reason.
    """
    from verifiers.v1.task import Task
    from verifiers.v1.utils.decorators import discover_decorated

    cls, name = type(task), type(task).__name__
    if cls.toolsets(task.config):
        raise _not_single(name, "it gives the model tools")
    if stops := task.hooks("stop"):
        raise _not_single(name, f"it decides by {stops[0].__name__}() when a dialogue ends")
    if hooks := discover_decorated(task, "intercept"):
        raise _not_single(name, f"it rewrites messages by {hooks[0].__name__}()")
    if task.data.skills or task.data.image or cls.NEEDS_CONTAINER:
        raise _not_single(name, "it is solved inside a container")
    for hook in ("setup", "finalize"):
        if getattr(cls, hook) is not getattr(Task, hook):
            raise _not_single(name, f"its {hook}() works on the machine the model acts on")
    for fn in (*task.hooks("metric"), *task.hooks("reward")):
        runtime = inspect.signature(fn).parameters.get("runtime")
        if runtime is not None and runtime.default is inspect.Parameter.empty:
            raise _not_single(name, f"its {fn.__name__}() looks at the machine the model acts on")
    if judge := _judge(task):
        raise Refused(
            f"{name}: {judge} asks another model over the network to judge, and no run "
            "scores by what it cannot repeat"
        )
    if not task.hooks("reward"):
        raise Refused(f"{name} has no reward function: nothing says what is right")


def _judge(task: Any) -> str:
    """Where the task's configuration has a judge, if it has one."""
    from verifiers.v1.configs.judge import JudgeConfig

    if task.config.judges:
        return "task.judges"
    held = (field for field, value in task.config if isinstance(value, JudgeConfig))
    return next((f"task.{field}" for field in held), "")


def _not_single(name: str, why: str) -> Refused:
    return Refused(f"{name} is more than one prompt and one response: {why}")


# -- prompts, answers, traces --------------------------------------------------------------------


def _messages(data: Any) -> list[Message]:
    """The chat messages of a task."""
    if data.prompt is None:
        raise _not_single(type(data).__name__, "a simulated user opens the dialogue")
    messages: list[Message] = []
    if data.system_prompt:
        messages.append({"role": "system", "content": data.system_prompt})
    if isinstance(data.prompt, str):
        return [*messages, {"role": "user", "content": data.prompt}]
    for message in data.prompt:
        parts = [] if isinstance(message.content, str) else message.content or []
        if message.role == "tool" or getattr(message, "tool_calls", None):
            raise _not_single(type(data).__name__, "its prompt holds calls of tools")
        if any(part.type != "text" for part in parts):
            raise Refused(f"{type(data).__name__}: its prompt shows images")
        text = "\n".join(part.text for part in parts) if parts else message.content or ""
        messages.append({"role": message.role, "content": text})
    return messages


def _gold(task: Any, template: str | None) -> tuple[str | None, list[str]]:
    """A right response by the template, and what of the task's data stands in it."""
    if template is None:
        return None, []
    data = task.data.model_dump()
    try:
        names = [name for _, name, *_ in string.Formatter().parse(template) if name]
        return template.format_map(data), [str(data[name]) for name in names]
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise Refused(
            f"gold {template!r}: {described(error)}; the task's data have: {', '.join(data)}"
        ) from None


def _trace(task: Any, response: str) -> Any:
    """What verifiers records of a dialogue: the prompt, and the response as the model's turn."""
    import verifiers.v1 as vf
    from verifiers.v1.state import state_cls

    roles = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    messages = [roles[m["role"]](content=m["content"]) for m in _messages(task.data)]
    # Half a character is no text to verifiers.
    reply = vf.AssistantMessage(content=response.encode("utf-8", "replace").decode())
    nodes = [
        vf.MessageNode(parent=i - 1 if i else None, message=message, sampled=message is reply)
        for i, message in enumerate([*messages, reply])
    ]
    trace = vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        state=state_cls(type(task))(),
    )
    trace.nodes.extend(nodes)
    trace.calls.append(vf.ModelCall(node=len(nodes) - 1, finish_reason="stop"))
    trace.is_completed = trace.ok = True
    return trace


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").strip().partition("\n")[0]


if __name__ == "__main__":
    serve(_Server)
