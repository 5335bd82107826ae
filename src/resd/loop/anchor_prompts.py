"""The prompts of the anchors: the task's own, a file's, or those that ship."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.errors import UserError
from resd.models.chat import ChatFormat
from resd.runs.seeds import derive
from resd.tasks.base import Environment
from resd.tasks.registry import MOST_EXAMPLES, asked, prompt_problem
from resd.types import ChatMessage

GENERAL = Path(__file__).with_name("general_prompts.txt")
_SETTING = "method.anchors.prompts"
_TOO_LONG = "raise method.anchors.max_prompt_tokens, or lower method.anchors.max_new_tokens"


def anchor_prompts(
    config: RunConfig, environment: Environment, chat: ChatFormat, context: int
) -> tuple[tuple[int, ...], ...]:
    """Token ids of the prompts that the run's anchors answer, each once; none with weight 0.

    Of more than `number` as many are drawn, by the run's seed.

    Args:
        config: of the run.
        environment: may have prompts of its own.
        chat: the student's format.
        context: most tokens of prompt and answer together.

    Raises:
        UserError: the prompts cannot be had, or none of them fits.
    """
    anchors = config.method.anchors
    if not anchors.weight:
        return ()
    room = min(anchors.max_prompt_tokens, context - anchors.max_new_tokens)
    if room < 1:
        raise UserError(
            f"method.anchors.max_new_tokens {anchors.max_new_tokens} leaves no room for a prompt "
            f"in the model's context of {context} tokens; lower it"
        )
    prompts = _prompts(config, environment)
    order = random.Random(derive(config.seed, "anchor prompts")).sample(prompts, len(prompts))
    found: dict[tuple[int, ...], None] = {}
    for prompt in order:
        try:
            ids = tuple(chat.encode(prompt))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{_SETTING}: the model's chat template fails on one: {said}") from None
        if 0 < len(ids) <= room:
            found[ids] = None
        if len(found) == anchors.number:
            break
    if not found:
        raise UserError(f"{_SETTING}: none of {len(prompts)} fits into {room} tokens; {_TOO_LONG}")
    return tuple(found)


def _prompts(config: RunConfig, environment: Environment) -> list[Sequence[ChatMessage]]:
    which = config.method.anchors.prompts
    own = getattr(environment, "anchors", None)
    if which == "task" and own is None:
        raise UserError(
            f"{_SETTING} is task, but task {config.task} has no anchors(): give it one, name a "
            "file of prompts, or set general"
        )
    if which == "general" or (which is None and own is None):
        return _read(GENERAL, str(GENERAL))
    if which is not None and which != "task":
        return _read(Path(which), which)
    what = f"task {config.task}: anchors()"
    values = asked(what, lambda: list(islice(own(), MOST_EXAMPLES)))  # type: ignore[misc]
    return _checked(((f"{what}[{i}]", value) for i, value in enumerate(values)), what)


def _read(file: Path, name: str) -> list[Sequence[ChatMessage]]:
    where = f"{_SETTING}: {name}"
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{where} is no text in UTF-8") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where} cannot be read ({said}); name task, general or a file of prompts"
        ) from None
    numbered = [(f"{where}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if file.suffix == ".jsonl":
        return _checked(((place, _parsed(place, line)) for place, line in numbered), where)
    return _checked(numbered, where)


def _parsed(place: str, line: str) -> Any:
    """What a line of JSON asks: itself, or its `prompt` or `messages`, up to the last question."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is no JSON: {error}") from None
    if isinstance(value, dict):
        value = value.get("prompt", value.get("messages"))
        if value is None:
            raise UserError(f"{place} has neither prompt nor messages")
    if isinstance(value, list):
        while value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
            value.pop()  # of a conversation the answer is the model's own
    return value


def _checked(values: Iterable[tuple[str, Any]], where: str) -> list[Sequence[ChatMessage]]:
    prompts = []
    for place, value in values:
        prompt = [ChatMessage(role="user", content=value)] if isinstance(value, str) else value
        problem = prompt_problem(prompt)
        if problem is not None:
            raise UserError(f"{place}: {problem}")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{where} holds no prompt")
    return prompts
