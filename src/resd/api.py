"""What the command line and Python programs call: `train`, `resume`, `evaluate_model`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resd.backend import Backend, make_backend
from resd.config import EvalConfig, RunConfig, load_config
from resd.config.paths import anchored
from resd.errors import UserError
from resd.loop.evaluate import Evaluation, evaluate, evaluate_baselines
from resd.loop.view import MuteView, RunView, make_view
from resd.runs.config_file import read_config
from resd.runs.directory import RunDirectory, check_new
from resd.runs.follower import FollowedRun
from resd.tasks.registry import ADAPTERS, load_environment
from resd.tasks.skills.environment import MOST

if TYPE_CHECKING:
    from resd.loop.probe import Probed
    from resd.loop.rollouts import Sampler
    from resd.loop.setup import Setup


def train(config: RunConfig, view: RunView | None = None) -> Path:
    """Train a model; returns the run directory.

    Raises:
        UserError: something is wrong that the user can mend; said before a model is loaded,
            wherever it can be known by then.
    """
    from resd.loop.setup import prepare

    config = anchored(config, Path.cwd())
    with closing(make_backend(config.model.device)) as backend:
        if config.output is not None:
            output = config.output
            backend.on_main(lambda: check_new(output))
        setup = backend.together(lambda: prepare(config))
        try:
            run = _shared(backend, lambda: _created(config))
        except BaseException:
            setup.close()
            raise
        _run(setup, run, view, backend)
    return run.path


def resume(
    path: Path,
    view: RunView | None = None,
    *,
    accept: Collection[str] = (),
    steps: int | None = None,
) -> Path:
    """Go on with a run after its newest checkpoint; the end is the same as without the break.

    Args:
        path: the run, wherever it was moved.
        view: what a person sees.
        accept: what may have changed since the run was made: `config`, `task`, `versions`, a
            dotted setting, or a library.
        steps: train to this many steps, more than the run had; it may be complete.

    Raises:
        UserError: there is no run, it is complete already, another process has it open, or it is
            not what it was made of.
    """
    from resd.loop.setup import prepare

    with closing(make_backend(read_config(path).model.device)) as backend:
        shown = view or (make_view() if backend.main else MuteView())

        def opened() -> RunDirectory:
            run, _ = RunDirectory.open(path, accept, steps)
            try:
                run.set_damaged_aside(shown.warn)
                run.check_rows(shown.warn)
            except BaseException:
                run.close()
                raise
            return run

        try:
            run = _shared(backend, opened)
        except BaseException:
            shown.close()
            raise
        try:
            setup = backend.together(lambda: prepare(read_config(path, own_code=True)))
        except BaseException:
            shown.close()
            run.close()
            raise
        _run(setup, run, shown, backend)
    return path


def _created(config: RunConfig) -> RunDirectory:
    if config.output is not None:
        return RunDirectory.create(config.output, config)
    return RunDirectory.create_numbered(default_output(config), config)


def _shared(backend: Backend, make: Callable[[], RunDirectory]) -> RunDirectory:
    """The run that process 0 makes or opens; the others follow it."""
    own: list[RunDirectory] = []

    def on_main() -> Path:
        own.append(make())
        return own[0].path

    path = backend.on_main(on_main)
    return own[0] if own else FollowedRun(path)


def _run(setup: object, run: RunDirectory, view: RunView | None, backend: Backend) -> None:
    from resd.loop.setup import Setup
    from resd.loop.trainer import Trainer

    assert isinstance(setup, Setup)
    shown = view or (make_view() if backend.main else MuteView())
    try:
        try:
            trainer = Trainer(setup, run, shown, backend=backend)
        except UserError:
            run.discard()
            raise
        trainer.train()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; go on with resd train --resume {run.path}") from None
    finally:
        shown.close()
        run.close()
        setup.close()


def default_output(config: RunConfig) -> Path:
    """runs/TASK-METHOD-sSEED; it gets a number if it is taken."""
    place, _, inside = config.task.rpartition(":")
    task = inside if place in ADAPTERS else Path(place or config.task).stem
    if config.stream:
        task = "stream"
    return Path("runs") / f"{task}-{config.method.name}-s{config.seed}"


def _at_least(least: int, value: int, name: str) -> int:
    if value < least:
        raise UserError(f"{name} must be at least {least}, found {value}")
    return value


def evaluate_model(
    model: str,
    which: str = "final",
    task: str | None = None,
    samples: int | None = None,
    seed: int | None = None,
) -> Evaluation:
    """Evaluate a run's model, or any model, on the test split of a task.

    Args:
        model: a run directory, a model directory, `lab`, or a hub id.
        which: `final` or `best`, of a run.
        task: the task; by default the run's, or the lab.
        samples: n of mean@n and best@n; by default the run's.
        seed: by default the run's, or 0.

    Raises:
        UserError: no such model or task.
    """
    config = settings_of(model, which, task)
    if task is not None:
        config.task, config.stream, config.evaluation.retention = task, [], 0
    if samples is not None:
        config.evaluation.samples = _at_least(1, samples, "--samples")
    if seed is not None:
        config.seed = _at_least(0, seed, "--seed")
    with loaded(config) as (setup, _, sampler):
        baselines = evaluate_baselines(
            setup.environment, setup.test, config.evaluation, setup.scorer
        )
        limit = config.rollout.max_new_tokens
        return evaluate(
            sampler,
            {stage.name: stage.test for stage in setup.stages},
            config.evaluation,
            limit,
            "alone",
            baselines,
            setup.retention,
        )


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

    config = settings_of(model, which, "skills")
    config.task, config.task_args, config.templates, config.stream = "skills", {}, None, []
    config.evaluation.retention = min(_at_least(1, limit, "--limit"), MOST)
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


def settings_of(model: str, which: str, task: str | None) -> RunConfig:
    """Settings under which a model is measured: its run's, or those of a model alone.

    Args:
        model: a run directory, a model directory, `lab`, or a hub id.
        which: `final` or `best`, of a run.
        task: of a model alone; the lab by default.

    Raises:
        UserError: no such model.
    """
    from resd.models.load import read_context_length

    run = Path(model)
    if (run / "config.toml").is_file():
        config = read_config(run)
        place = run / which
        if not place.is_dir():
            raise UserError(f"{run} has no {which} model yet: the run is not complete")
        config.model.path, config.model.lora = str(place), None
    else:
        named = [("task", task)] if task else []
        config = load_config(None, [("model.path", model), ("method.name", "grpo"), *named])
        # No run says how long responses may be: at most half of a short context.
        room = read_context_length(config.model) // 2
        config.rollout.max_new_tokens = min(config.rollout.max_new_tokens, room)
    config.method.anchors.weight = 0.0  # nothing is trained
    return config


@contextmanager
def loaded(config: RunConfig) -> Iterator[tuple[Setup, Any, Sampler]]:
    """Check everything, load the model, and give it with a sampler of it."""
    from resd.engines.registry import make_engine
    from resd.loop.masters import Masters
    from resd.loop.rollouts import Sampler
    from resd.loop.setup import prepare
    from resd.models.load import compute_dtype, load_model

    with closing(prepare(config)) as setup:
        student = load_model(config.model)
        Masters(student, compute_dtype(config.model))
        with closing(make_engine(config, student, setup.tokenizer, setup.context)) as engine:
            sampler = Sampler(
                engine, student, setup.chat.encode, setup.scorer, setup.max_prompt, config.seed
            )
            yield setup, student, sampler
