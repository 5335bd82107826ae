"""Retention: what a student still can do that has nothing to do with its task."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from resd.config import RunConfig
from resd.engines import Sampling
from resd.errors import UserError
from resd.loop.rollouts import Sampler
from resd.models.chat import ChatFormat
from resd.tasks.base import Environment
from resd.tasks.registry import asked, check_examples
from resd.types import Example


def load_retention(
    config: RunConfig, environment: Environment, chat: ChatFormat, context: int
) -> dict[str, list[Example]]:
    """The first `evaluation.retention` examples of every group of the environment's that fit.

    Args:
        config: of the run; with `evaluation.retention` 0 there are no groups.
        environment: has `retention()`.
        chat: the student's format.
        context: most tokens of prompt and answer together.

    Raises:
        UserError: the environment has no such groups, or one of them makes no sense.
    """
    number, room = config.evaluation.retention, context - config.evaluation.retention_tokens
    if not number:
        return {}
    what = f"task {config.task}: retention()"
    own = getattr(environment, "retention", None)
    if own is None:
        raise UserError(
            f"evaluation.retention is {number}, but task {config.task} has no retention(): give "
            "it one (docs/anchors.md), or set 0"
        )
    groups = asked(what, lambda: {str(name): list(given) for name, given in own().items()})
    found = {}
    for name, examples in groups.items():
        check_examples(examples, f"{what}[{name!r}]")
        fitting = [example for example in examples if len(chat.encode(example.prompt)) <= room]
        if not fitting:
            raise UserError(
                f"{what}[{name!r}] holds no prompt of at most {room} tokens; lower "
                "evaluation.retention_tokens, or take a model with a longer context"
            )
        found[name] = fitting[:number]
    return found


def measure_retention(
    sampler: Sampler, groups: Mapping[str, Sequence[Example]], max_new_tokens: int
) -> dict[str, float]:
    """The fraction of every group that the student passes, by name, each answered once, greedily.

    Args:
        sampler: samples with the student's weights.
        groups: as `load_retention` gives them.
        max_new_tokens: the limit of an answer.

    Raises:
        UserError: the environment fails on every answer of a group.
    """
    found = {}
    for name, examples in groups.items():
        sampling = Sampling(0.0, 1.0, max_new_tokens)
        # That they fit into the context was seen when they were loaded.
        batch = sampler.respond(examples, 1, sampling, "retention", name, max_prompt=sys.maxsize)
        if batch.all_failed:
            raise UserError(
                f"the environment failed on every answer of retention group {name!r}: "
                f"{batch.first_failure}; mend it, or set evaluation.retention to 0"
            )
        found[name] = sum(rollout.passed for rollout in batch.rollouts) / len(examples)
    return found
