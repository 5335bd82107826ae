"""Everything that is checked before a model is loaded: environment, tokenizer, lengths, templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resd.config import DistillConfig, ResdConfig, RunConfig
from resd.context import ContextBudgets, PromptBuilder, TemplateError, Templates
from resd.context.text import scrubber
from resd.errors import UserError
from resd.model import ChatFormat, load_tokenizer, pad_token_id, read_context_length
from resd.tasks.base import Environment, Example
from resd.tasks.registry import load_environment, load_examples
from resd.tasks.scoring import score


@dataclass(frozen=True)
class Setup:
    """A run that is ready to load its model.

    Attributes:
        context: most tokens of prompt and response together.
        max_prompt: most tokens of a student's prompt; longer ones are skipped and counted.
    """

    config: RunConfig
    environment: Environment
    train: list[Example]
    test: list[Example]
    tokenizer: Any
    chat: ChatFormat
    builder: PromptBuilder
    context: int
    max_prompt: int
    pad_id: int


def prepare(config: RunConfig) -> Setup:
    """Check everything that can be checked without the model's weights.

    Raises:
        UserError: one line that says what is wrong, where, and what to do.
    """
    environment = load_environment(config.task, config.task_args, config.seed)
    train = load_examples(environment, "train", config.task)
    test = load_examples(environment, "test", config.task)
    _probe(environment, train[0], config.task)
    templates = load_templates(config, environment)
    tokenizer = load_tokenizer(config.model.path)
    context = read_context_length(config.model)
    chat = ChatFormat(tokenizer, config.rollout.thinking)
    max_prompt = _max_prompt(config, context)
    _check_lengths(config, chat, train, max_prompt)
    return Setup(
        config=config,
        environment=environment,
        train=train,
        test=test,
        tokenizer=tokenizer,
        chat=chat,
        builder=_builder(config, templates, chat, context),
        context=context,
        max_prompt=max_prompt,
        pad_id=pad_token_id(tokenizer, [tokenizer.eos_token_id]),
    )


def load_templates(config: RunConfig, environment: Environment) -> Templates:
    """The user's templates, then the task's, then the built-in ones."""
    own = getattr(environment, "templates", None)
    directories = [config.templates] if config.templates is not None else []
    directories += [Path(own)] if own is not None else []
    try:
        return Templates(directories)
    except TemplateError as error:
        raise UserError(f"templates: {error}") from None


def _probe(environment: Environment, example: Example, task: str) -> None:
    """An environment must survive the emptiest of responses."""
    scores = score(environment, [(example, "")])
    if scores.outcomes[0] is None:
        raise UserError(
            f"task {task}: evaluate() failed on an empty response: {scores.first_failure}"
        )


def _max_prompt(config: RunConfig, context: int) -> int:
    room = context - config.rollout.max_new_tokens
    if room < 16:
        raise UserError(
            f"rollout.max_new_tokens {config.rollout.max_new_tokens} leaves no room for a prompt "
            f"in the model's context of {context} tokens; lower it"
        )
    return min(config.rollout.max_prompt_tokens, room)


def _check_lengths(
    config: RunConfig, chat: ChatFormat, examples: list[Example], max_prompt: int
) -> None:
    try:
        lengths = [chat.count(example.prompt) for example in examples[:64]]
    except Exception as error:
        raise UserError(
            f"model.path: the chat template of {config.model.path} fails on a prompt of task "
            f"{config.task}: {' '.join(str(error).split())[:200]}"
        ) from None
    if min(lengths) > max_prompt:
        raise UserError(
            f"task {config.task}: the first {len(lengths)} prompts are all longer than "
            f"{max_prompt} tokens (the shortest has {min(lengths)}); raise "
            "rollout.max_prompt_tokens, lower rollout.max_new_tokens, or take a model with a "
            "longer context"
        )


def _builder(
    config: RunConfig, templates: Templates, chat: ChatFormat, context: int
) -> PromptBuilder:
    method = config.method
    budgets, limit = ContextBudgets(), context
    longest = config.rollout.max_new_tokens
    if isinstance(method, DistillConfig):
        budgets, limit = method.budgets, method.max_teacher_tokens
    if isinstance(method, ResdConfig):
        longest = max(longest, method.reflection_tokens, method.curation_tokens)
    if context - longest < 16:
        raise UserError(
            f"a response, reflection or curation of {longest} tokens leaves no room for a prompt "
            f"in the model's context of {context} tokens; lower rollout.max_new_tokens, "
            "method.reflection_tokens and method.curation_tokens"
        )
    return PromptBuilder(
        templates,
        budgets,
        chat.count_text,
        chat.count,
        min(limit, context - longest),
        scrubber(_special_tokens(chat.tokenizer)),
    )


def _special_tokens(tokenizer: Any) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = [token.content for token in added if token.special]
    return [*tokenizer.all_special_tokens, *special]
