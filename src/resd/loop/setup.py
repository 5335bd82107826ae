"""Everything that is checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resd.config import DistillConfig, ResdConfig, RunConfig
from resd.context import (
    ContextBudgets,
    PromptBuilder,
    TemplateError,
    Templates,
)
from resd.engines.registry import check_engine
from resd.errors import UserError
from resd.launch import launched
from resd.loop.anchor_prompts import anchor_prompts
from resd.loop.optimizer import check_precision
from resd.loop.retention import Kept, load_retention
from resd.loop.stream import Stage
from resd.models.chat import ChatFormat
from resd.models.check import check_model
from resd.models.load import (
    load_tokenizer,
    pick_device,
    read_context_length,
    read_vocabulary_size,
)
from resd.tasks.base import Environment
from resd.tasks.registry import (
    STREAM,
    TaskSpec,
    describe_error,
    load_environment,
    load_examples,
)
from resd.tasks.scoring import Scorer
from resd.tasks.sequence import SequenceEnvironment
from resd.types import Example


@dataclass(frozen=True)
class Setup:
    """A run that is ready to load its model.

    Attributes:
        context: most tokens of prompt and response together.
        max_prompt: most tokens of a student's prompt; longer ones are skipped and counted.
        notes: what the environment wants said at the start of a run.
        warnings: what was found, and is said before the model is loaded.
        stages: the tasks, one after the other; one for a run without a stream.
        anchors: token ids of the prompts of the anchors.
        retention: what the student is to keep.
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
    scorer: Scorer
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    anchors: tuple[tuple[int, ...], ...] = ()
    retention: Kept = field(default_factory=Kept)

    def close(self) -> None:
        """End the processes and threads that evaluate."""
        self.scorer.close()
        if self.retention.scorer is not None:
            self.retention.scorer.close()


def prepare(config: RunConfig, environment: Environment | None = None) -> Setup:
    """Check everything that can be checked without the model's weights.

    Args:
        config: of the run.
        environment: an object that is the task; by default what the configuration names.

    Raises:
        UserError: one line that says what is wrong, where, and what to do.
    """
    spec = None
    if environment is None:
        spec = task_spec(config)
        environment = load_environment(spec.task, spec.args, spec.seed)
    stages = _stages(config, environment)
    train = [example for stage in stages for example in stage.train]
    test = [example for stage in stages for example in stage.test]
    templates = load_templates(config, environment)
    pick_device(config.model.device)
    check_precision(config)
    _check_trackers(config.trackers)
    _check_stream(config)
    tokenizer = load_tokenizer(config.model.path)
    context = read_context_length(config.model)
    warnings = check_model(config)
    chat = ChatFormat(tokenizer, config.rollout.thinking)
    max_prompt = _max_prompt(config, context)
    check_engine(config, context)
    check_processes(config, launched())
    for split, examples in (("train", train), ("test", test)):
        _check_prompts(config, chat, examples, split, max_prompt)
    builder = _builder(config, templates, chat, context)
    anchors = anchor_prompts(config, environment, chat, context)
    retention = load_retention(config, environment, chat, context)
    rollout = config.rollout
    scorer = Scorer(
        environment,
        spec,
        workers=rollout.env_workers,
        mode=rollout.env_mode,
        seconds=rollout.env_seconds,
    )
    try:
        _probe(scorer, train[0], config.task)
    except BaseException:
        scorer.close()
        raise
    return Setup(
        config=config,
        environment=environment,
        train=train,
        test=test,
        tokenizer=tokenizer,
        chat=chat,
        builder=builder,
        context=context,
        max_prompt=max_prompt,
        scorer=scorer,
        notes=tuple(str(note) for note in getattr(environment, "notes", ())),
        warnings=tuple(warnings),
        stages=stages,
        anchors=anchors,
        retention=retention,
    )


def task_spec(config: RunConfig) -> TaskSpec:
    """What to load: the task, or all those of the stream."""
    if not config.stream:
        return TaskSpec(config.task, config.task_args, config.seed)
    tasks = [
        {
            "name": part.name,
            "task": part.task or config.task,
            "task_args": {**config.task_args, **part.task_args},
        }
        for part in config.stream
    ]
    return TaskSpec(STREAM, {"tasks": tasks, "seed": config.seed}, config.seed)


def _stages(config: RunConfig, environment: Environment) -> tuple[Stage, ...]:
    if not isinstance(environment, SequenceEnvironment):
        train = load_examples(environment, "train", config.task)
        test = load_examples(environment, "test", config.task)
        return (Stage("", environment, train, test),)
    return tuple(
        Stage(
            part.name,
            environment.parts[part.name],
            environment.examples_of(part.name, "train"),
            environment.examples_of(part.name, "test"),
            part.steps,
        )
        for part in config.stream
    )


def check_processes(config: RunConfig, number: int) -> None:
    """Refuse what has never run in several processes, or in one.

    Raises:
        UserError: such a setting.
    """
    method = config.method
    if isinstance(method, DistillConfig) and method.teacher.offload:
        if number == 1:
            raise UserError(
                "method.teacher.offload works with several processes (torchrun) only: leave it "
                "out, or train adapters (--model.lora.rank 16), whose teacher takes little memory"
            )
        if method.teacher.kind == "live" or config.model.lora is not None:
            raise UserError(
                "method.teacher.offload: this teacher has no model of its own (teacher.kind live, "
                "or adapters): leave it out"
            )
    if number == 1:
        return
    if config.train.optimizer != "adamw":
        raise UserError(
            f"train.optimizer {config.train.optimizer} rounds each shard by random numbers of its "
            f"own, and torchrun started {number} processes: use adamw with float32 weights"
        )


def load_templates(config: RunConfig, environment: Environment) -> Templates:
    """The user's templates, then the task's, then the built-in ones."""
    own = getattr(environment, "templates", None)
    if not isinstance(own, str | Path | None):
        raise UserError(f"task {config.task}: templates must be a directory, found {own!r:.80}")
    directories = [Path(place) for place in (config.templates, own) if place is not None]
    try:
        templates = Templates(directories)
    except TemplateError as error:
        raise UserError(f"templates: {error}") from None
    except Exception as error:  # a file that is no text, a template that divides by zero
        where = ", ".join(map(str, directories))
        raise UserError(f"templates: one in {where} fails: {describe_error(error)}") from None
    return templates


def _probe(scorer: Scorer, example: Example, task: str) -> None:
    """An environment must survive the emptiest of responses."""
    scores = scorer.score([(example, "")])
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


def _check_prompts(
    config: RunConfig, chat: ChatFormat, examples: list[Example], split: str, max_prompt: int
) -> None:
    # One prompt of every form the chat template may refuse, and enough of them to see lengths.
    forms = {tuple(m["role"] for m in example.prompt): example for example in examples}
    try:
        prompts = [chat.encode(example.prompt) for example in [*examples[:64], *forms.values()]]
    except Exception as error:
        raise UserError(
            f"model.path: the chat template of {config.model.path} fails on a {split} prompt of "
            f"task {config.task}: {' '.join(str(error).split())[:200]}"
        ) from None
    shortest = min(map(len, prompts))
    if shortest == 0:
        raise UserError(
            f"model.path: the chat template of {config.model.path} makes nothing of a {split} "
            f"prompt of task {config.task}"
        )
    if shortest > max_prompt:
        raise UserError(
            f"task {config.task}: the {split} prompts are longer than {max_prompt} tokens (the "
            f"shortest of the first {min(64, len(examples))} has {shortest}); raise "
            "rollout.max_prompt_tokens, lower rollout.max_new_tokens, or take a model with a "
            "longer context"
        )
    rows = read_vocabulary_size(config.model)
    largest = max(map(max, prompts))
    if rows is not None and largest >= rows:
        raise UserError(
            f"model.path: the tokenizer of {config.model.path} does not belong to the model: it "
            f"makes token {largest}, the model knows {rows}"
        )


def _check_stream(config: RunConfig) -> None:
    """Refuse what belongs to a stream where there is none."""
    if config.stream:
        return
    method = config.method
    of_streams = {"method.anchors.earlier": method.anchors.earlier > 0}
    if isinstance(method, DistillConfig):
        of_streams["method.teacher.at_boundary"] = method.teacher.at_boundary != "keep"
    if isinstance(method, ResdConfig):
        of_streams["method.playbook.scope"] = method.playbook.scope != "task"
    key = next((key for key, is_set in of_streams.items() if is_set), None)
    if key is not None:
        raise UserError(f"{key} is of streams, and this run has one task: see --stream, or drop it")


def _check_trackers(trackers: Sequence[str]) -> None:
    for name in trackers:
        modules = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(find_spec(module) for module in modules):
            raise UserError(f"trackers: {name} is not installed; pip install {name}")


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
        chat.harmless,
        add_only=isinstance(method, ResdConfig) and method.playbook.add_only,
    )
