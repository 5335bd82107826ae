"""Retention: what a student still can do that has nothing to do with its task."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resd.config import RunConfig
from resd.engines import Sampling
from resd.errors import UserError
from resd.loop.rollouts import Sampler
from resd.models.chat import ChatFormat
from resd.tasks.base import Environment
from resd.tasks.registry import asked, check_examples
from resd.tasks.scoring import Scorer
from resd.tasks.skills import SkillsEnvironment
from resd.types import Example


@dataclass(frozen=True)
class Kept:
    """What a student is to keep.

    Attributes:
        groups: examples by name.
        scorer: judges them; None where the task's own environment does.
    """

    groups: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    scorer: Scorer | None = None


def load_retention(
    config: RunConfig, environment: Environment, chat: ChatFormat, context: int
) -> Kept:
    """The first `evaluation.retention` examples of every group that fit.

    The groups are the environment's own, or those of the task `skills`.

    Args:
        config: of the run; with `evaluation.retention` 0 there are no groups.
        environment: may have `retention()`.
        chat: the student's format.
        context: most tokens of prompt and answer together.

    Raises:
        UserError: one of the groups makes no sense.
    """
    number, room = config.evaluation.retention, context - config.evaluation.retention_tokens
    if not number:
        return Kept()
    what, scorer = f"task {config.task}: retention()", None
    own = getattr(environment, "retention", None)
    if own is None:
        skills = SkillsEnvironment()
        what, own = "the skills", skills.retention
        # Its judges take microseconds and execute nothing.
        scorer = Scorer(skills, mode="thread")
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
    return Kept(found, scorer)


def measure_retention(sampler: Sampler, kept: Kept, max_new_tokens: int) -> dict[str, float]:
    """The fraction of every group that the student passes, by name, each answered once, greedily.

    Args:
        sampler: samples with the student's weights.
        kept: as `load_retention` gives it.
        max_new_tokens: the limit of an answer.

    Raises:
        UserError: the environment fails on every answer of a group.
    """
    found = {}
    for name, examples in kept.groups.items():
        sampling = Sampling(0.0, 1.0, max_new_tokens)
        # That they fit into the context was seen when they were loaded.
        batch = sampler.respond(
            examples,
            1,
            sampling,
            "retention",
            name,
            max_prompt=sys.maxsize,
            scorer=kept.scorer,
        )
        if batch.all_failed:
            raise UserError(
                f"the environment failed on every answer of retention group {name!r}: "
                f"{batch.first_failure}; mend it, or set evaluation.retention to 0"
            )
        found[name] = sum(rollout.passed for rollout in batch.rollouts) / len(examples)
    return found
