"""What TRL's trainer and the settings must be for the bridge, and what it reads of a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from itertools import islice
from typing import Any

from resd.config import ResdConfig
from resd.errors import UserError
from resd.tasks.registry import prompt_problem
from resd.types import Example

_TRL = "1.16"
# What the loss is made of, which is SDPOConfig's to say.
_OF_THE_LOSS = {
    *("rollouts", "alpha", "top_k", "support", "tail", "ratio_min", "ratio_max", "aggregation"),
    *("success_weights", "importance_cap", "teacher", "anchors"),
}
# What ResdConfig and the templates say instead.
_NOT_READ = (
    *("use_successful_as_teacher", "dont_reprompt_on_self_success", "reprompt_template"),
    *("solution_template", "feedback_template", "remove_thinking_from_demonstration"),
    "environment_feedback_only_without_solution",
)


def example_of(prompt: Sequence[Mapping[str, str]]) -> Example:
    """An example for a prompt, which is all that TRL tells a builder of it.

    Raises:
        UserError: it is no chat.
    """
    problem = prompt_problem(prompt)
    if problem:
        raise UserError(f"PlaybookContext: dataset column prompt: {problem}")
    messages = [{"role": str(m["role"]), "content": m["content"]} for m in prompt]
    digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=8).hexdigest()
    return Example(digest, messages)  # type: ignore[arg-type]


def check(trainer: Any, config: ResdConfig) -> None:
    """Refuse what was never tried.

    Raises:
        UserError: in one line.
    """
    found = version("trl")
    if not f"{found}.".startswith(f"{_TRL}."):
        raise UserError(
            f"PlaybookContext works with TRL {_TRL}, found {found}: pip install 'trl=={_TRL}.*'"
        )
    if not hasattr(trainer, "teacher_context_builder"):
        raise UserError(
            f"PlaybookContext is for trl.experimental.sdpo.SDPOTrainer, got "
            f"{type(trainer).__name__}"
        )
    for row in islice(trainer.train_dataset, 1):
        example_of(row["prompt"])
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled", "use_vllm"):
        if getattr(trainer, name):
            raise UserError(f"PlaybookContext has never run with {name.removeprefix('is_')} of TRL")
    others = sorted(set(trainer.chat_template_kwargs) - {"enable_thinking"})
    if others:
        raise UserError(
            f"chat_template_kwargs: PlaybookContext passes enable_thinking alone to the chat "
            f"template, not {', '.join(others)}"
        )
    defaults = {field.name: field.default for field in fields(trainer.args)}
    set_there = [n for n in _NOT_READ if getattr(trainer.args, n) != defaults[n]]
    if set_there:
        raise UserError(
            f"SDPOConfig: {', '.join(set_there)} would have no effect: PlaybookContext builds the "
            "teacher's prompts by ResdConfig and its templates"
        )
    set_here = sorted(config.model_fields_set & _OF_THE_LOSS)
    if set_here:
        raise UserError(
            f"config: {', '.join(set_here)} would have no effect: in TRL the loss and the teacher "
            "are set in SDPOConfig (distillation_alpha, distillation_topk, teacher_model_kind, ...)"
        )


def room(trainer: Any, config: ResdConfig, context: int) -> int:
    """Most tokens of a prompt of teacher, reflector or curator."""
    args = trainer.args
    longest = max(int(args.max_completion_length), config.reflection_tokens, config.curation_tokens)
    room = min(config.max_teacher_tokens, int(args.max_reprompt_len), context - longest)
    if room < 16:
        raise UserError(
            f"a response, reflection or curation of {longest} tokens leaves no room for a prompt "
            f"in the model's context of {context} tokens: lower max_completion_length of "
            "SDPOConfig, and reflection_tokens and curation_tokens of ResdConfig"
        )
    return room
