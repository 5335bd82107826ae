"""Measuring a model without training it: on any task, with or without a playbook beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resd.config import EvalConfig, RunConfig, load_config, read_toml, set_dotted, validate
from resd.context import Entry, Playbook
from resd.errors import UserError
from resd.loop.evaluate import Evaluation, evaluate, evaluate_baselines, with_lessons
from resd.runs import atomic
from resd.runs.config_file import config_text, read_config
from resd.tasks.base import Environment
from resd.tasks.registry import load_environment
from resd.tasks.skills.environment import MOST

if TYPE_CHECKING:
    from resd.loop.probe import Probed
    from resd.loop.rollouts import Sampler
    from resd.loop.setup import Setup

Named = Sequence[tuple[str, Any]]
# Of a run's settings, what goes with its own task alone.
_OF_THE_TASK = ("task", "task_args", "stream", "templates")


def measure(
    model: str,
    named: Named = (),
    *,
    which: str = "final",
    file: Path | None = None,
    context: str = "none",
    playbook: str | Path | None = None,
    environment: Environment | None = None,
    output: Path | None = None,
    given: str = "on the command line",
) -> tuple[Evaluation, Path | None]:
    """Evaluate a run's model, or any model, on the test split of a task; keep its answers.

    Args:
        model: a run directory, a model directory, `lab`, or a hub id.
        named: dotted settings, see `settings_of`.
        which: `final` or `best`, of a run.
        file: TOML of settings.
        context: `playbook` shows the model a playbook's lessons beside every question.
        playbook: whose, see `lessons_of`; by default the model's run's.
        environment: an object that is the task, in place of the one that the settings name.
        output: a directory for the answers; it gets a number if it is taken.
        given: where `named` stands, for messages.

    Returns:
        What was found, and where the answers are.

    Raises:
        UserError: no such model, task or playbook, or a setting is wrong.
    """
    if playbook is not None and context != "playbook":
        raise UserError("a playbook is shown with context playbook only")
    lessons = lessons_of(playbook or model) if context == "playbook" else None
    config = settings_of(model, which, named, file, given)
    with loaded(config, environment) as (setup, _, sampler):
        # Before hours of answers, and after everything that could be refused.
        place = None if output is None else _new_folder(output)
        try:
            baselines = evaluate_baselines(
                setup.environment, setup.test, config.evaluation, setup.scorer
            )
            result = evaluate(
                sampler,
                {stage.name: stage.test for stage in setup.stages},
                config.evaluation,
                config.rollout.max_new_tokens,
                "alone",
                baselines,
                setup.retention if lessons is None else None,
                None if lessons is None else with_lessons(setup.builder, lessons),
            )
        except BaseException:
            if place is not None:
                place.rmdir()
            raise
    if place is not None:
        facts = {"model": model, "which": which, "task": config.task, "context": context}
        _keep(place, facts, config, result)
    return result, place


def default_output(model: str, which: str, context: str) -> Path:
    """Where answers are kept: in the run, and of another model in `runs`."""
    shown = "" if context == "none" else f"-{context}"
    if (Path(model) / "config.toml").is_file():
        return Path(model) / "evaluations" / f"{which}{shown}"
    return Path("runs") / f"eval-{Path(model).name}{shown}"


def lessons_of(place: str | Path) -> list[Entry]:
    """The lessons that the teacher sees, of a run's playbook.

    Args:
        place: the run, or a playbook.json.

    Raises:
        UserError: there is no such playbook, or none of its lessons is shown.
    """
    file = Path(place) / "playbook.json" if Path(place).is_dir() else Path(place)
    playbook = Playbook()
    try:
        playbook.load_state_dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"there is no playbook {file}; name a run of resd or its file") from None
    except OSError as error:
        raise UserError(f"playbook {file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file} is no playbook that a run has written") from None
    if not playbook.shown():
        raise UserError(f"{file}: no lesson was admitted, so there is nothing to show")
    return playbook.shown()


def _new_folder(place: Path) -> Path:
    """Make a directory; it gets a number if it is taken."""
    folder = place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for number in count(2):
            try:
                folder.mkdir()
                break
            except FileExistsError:
                folder = place.with_name(f"{place.name}-{number}")
    except OSError as error:
        raise UserError(f"output: cannot make directory {folder}: {error.strerror}") from None
    return folder


def _keep(place: Path, facts: Mapping[str, Any], config: RunConfig, result: Evaluation) -> None:
    """Write result.json, answers.jsonl, and the settings as TOML."""
    rows = "".join(json.dumps(row) + "\n" for row in result.rows)
    atomic.write_text(place / "answers.jsonl", rows)
    # A directory with a config.toml would be taken for a run.
    atomic.write_text(place / "settings.toml", config_text(config))
    atomic.write_text(place / "result.json", json.dumps({**facts, **result.row()}, indent=1) + "\n")


def settings_of(
    model: str,
    which: str = "final",
    named: Named = (),
    file: Path | None = None,
    given: str = "on the command line",
) -> RunConfig:
    """Settings under which a model is measured.

    Those of its run, as far as they go with the task; with a file or a preset those; and beside a
    model alone, on the lab, the defaults. What is named wins.

    Args:
        model: a run directory, a model directory, `lab`, or a hub id.
        which: `final` or `best`, of a run.
        named: dotted settings.
        file: TOML of settings.
        given: where `named` stands, for messages.

    Raises:
        UserError: no such model, or a setting is wrong.
    """
    run, keys = Path(model), {key for key, _ in named}
    is_run = (run / "config.toml").is_file()
    if is_run:
        read_config(run)  # it may be no config of ours
        model = str(run / which)
        if not Path(model).is_dir():
            raise UserError(f"{run} has no {which} model yet: the run is not complete")
    if is_run and file is None and "preset" not in keys:
        config = _settings_of_run(run, model, named, given)
    else:
        # A model alone needs no teacher, and none of the room that one takes.
        plain = file is None and not keys & {"preset", "method", "method.name"}
        method = [("method.name", "grpo")] if plain else []
        config = load_config(file, [("model.path", model), *method, *named], given)
        if plain and "rollout.max_new_tokens" not in keys:
            config.rollout.max_new_tokens = _room(config)
    config.method.anchors.weight = 0.0  # nothing is trained
    config.trackers = []
    return config


def _settings_of_run(run: Path, model: str, named: Named, given: str) -> RunConfig:
    values = read_toml(run / "config.toml")
    if any(key in ("task", "stream") for key, _ in named):
        for key in _OF_THE_TASK:
            values.pop(key, None)
        # Where responses are evaluated is of the task too, and so is what is kept beside it.
        values.get("rollout", {}).pop("env_mode", None)
        set_dotted(values, "evaluation.retention", 0)
    set_dotted(values, "model.path", model)
    set_dotted(values, "model.lora", "none")
    for key, value in named:
        set_dotted(values, key, value)
    return validate(values, f"in {run}/config.toml or {given}")


def _room(config: RunConfig) -> int:
    """No run says how long responses may be: at most half of a short context."""
    from resd.models.load import read_context_length

    return min(config.rollout.max_new_tokens, read_context_length(config.model) // 2)


def measure_skills(
    model: str, which: str = "final", limit: int = MOST
) -> dict[str, tuple[int, int]]:
    """How many problems of each group of general skills a model solves, and of how many.

    Args:
        model: a run directory, a model directory, `lab`, or a hub id.
        which: `final` or `best`, of a run.
        limit: problems a group.

    Raises:
        UserError: no such model.
    """
    from resd.loop.retention import measure_retention

    config = settings_of(model, which, [("task", "skills")])
    config.evaluation.retention = min(at_least(1, limit, "--limit"), MOST)
    # A run's own limit may be short for speed; before and after must be measured alike.
    default = EvalConfig().retention_tokens
    config.evaluation.retention_tokens = max(default, config.evaluation.retention_tokens)
    config.rollout.env_mode = "thread"
    with loaded(config) as (setup, _, sampler):
        kept = setup.retention
        shares = measure_retention(sampler, kept, config.evaluation.retention_tokens)
        sizes = {name: len(examples) for name, examples in kept.groups.items()}
        return {name: (round(share * sizes[name]), sizes[name]) for name, share in shares.items()}


def probe_model(named: Sequence[tuple[str, Any]], number: int) -> Probed:
    """What each section of the teacher's prompt does for the right answer, without training.

    Args:
        named: dotted settings: `task`, `model.path`, and what else is not as it is by default.
        number: training examples used.

    Raises:
        UserError: the task does not know its right answers, or there is no such model or task.
    """
    from resd.loop.probe import gold_answers, probe

    config = load_config(None, [("method.name", "resd"), *named])
    if config.method.name != "resd":
        raise UserError(f"--method.name {config.method.name}: the probe is of resd; leave it out")
    environment = load_environment(config.task, config.task_args, config.seed)
    pairs = gold_answers(environment, config.task, number)
    config.evaluation.retention, config.method.anchors.weight = 0, 0.0
    with loaded(config) as (setup, model, sampler):
        return probe(setup, model, sampler, pairs)


@contextmanager
def loaded(
    config: RunConfig, environment: Environment | None = None
) -> Iterator[tuple[Setup, Any, Sampler]]:
    """Check everything, load the model, and give it with a sampler of it."""
    from resd.engines.registry import make_engine
    from resd.loop.masters import Masters
    from resd.loop.rollouts import Sampler
    from resd.loop.setup import prepare
    from resd.models.load import compute_dtype, load_model

    with closing(prepare(config, environment)) as setup:
        student = load_model(config.model)
        Masters(student, compute_dtype(config.model))
        with closing(make_engine(config, student, setup.tokenizer, setup.context)) as engine:
            sampler = Sampler(
                engine, student, setup.chat.encode, setup.scorer, setup.max_prompt, config.seed
            )
            yield setup, student, sampler


def at_least(least: int, value: int, name: str) -> int:
    """The value.

    Raises:
        UserError: it is too small.
    """
    if value < least:
        raise UserError(f"{name} must be at least {least}, found {value}")
    return value
