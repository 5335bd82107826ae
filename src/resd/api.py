"""What a notebook imports, and what the command line calls: `train`, `evaluate`.

A setting is given as on the command line, `**{"train.steps": 20}`, or in a table,
`train={"steps": 20}`; both may stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from resd import plugins
from resd.backend import Backend, make_backend
from resd.config import RunConfig, load_config, set_dotted
from resd.config.paths import anchored
from resd.errors import UserError
from resd.loaded import Run
from resd.loop.callbacks import Callback, check_callbacks
from resd.loop.evaluate import Evaluation
from resd.loop.view import MuteView, RunView, make_view
from resd.measure import measure
from resd.runs.config_file import read_config
from resd.runs.directory import RunDirectory, check_new
from resd.runs.follower import FollowedRun
from resd.tasks.base import Environment
from resd.tasks.given import given_task
from resd.tasks.registry import ADAPTERS, check_named

Settings = Mapping[str, Any]
Named = list[tuple[str, Any]]
_GIVEN = "in the call"


def train(
    task: str | Path | type | Environment | None = None,
    model: str | Path | Settings | None = None,
    *,
    preset: str | None = None,
    method: str | type | Settings | None = None,
    config: str | Path | None = None,
    resume: str | Path | Run | None = None,
    accept: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
    view: RunView | None = None,
    **settings: Any,
) -> Run:
    """Train a model on a task.

    Without a task, a file and a preset it trains the lab's model on the lab, as `resd train` does.

        run = resd.train("my_task.py:MyTask", "Qwen/Qwen3-0.6B", train={"steps": 20}, seed=1)
        run.metrics.plot("step", "rollout/passed")

    Args:
        task: a name as in `resd train --task`, a class, or an object with `examples` and
            `evaluate`. A class of a module or of a script's file is loaded by worker processes too.
            An object, or a class of a notebook, is not: it is evaluated in threads, and `resume`
            needs it again.
        model: a directory, a hub id, `lab` or `smol`; or the settings of the model.
        preset: built-in settings to start from, see `resd tasks`.
        method: a name, FILE.py:Class or module:Class, a class, or the settings of the method.
        config: TOML file of settings.
        resume: a run to go on with, in place of a new one; it takes no setting but more
            `train={"steps": N}`, and `task` if that was an object.
        accept: what may have changed since the run to be resumed was made, see
            `resd train --resume`.
        callbacks: told of steps and evaluations.
        view: what a person sees; by default a live view in a terminal, else lines.
        settings: every other setting of `resd train --help`, tables nested or keys dotted.

    Returns:
        The run: complete, or ended by a callback that asked to stop.

    Raises:
        UserError: something is wrong that the caller can mend; said before a model is loaded,
            wherever it can be known by then.
    """
    _refuse_inside_an_import()
    check_callbacks(callbacks)
    first = {"model": _path_of(model), "preset": preset, "method": _method_of(method)}
    named = _dotted({**{k: v for k, v in first.items() if v is not None}, **settings})
    if resume is not None:
        if config is not None:
            raise UserError("resume goes on with a run as it was; it takes no config file")
        run = Path(resume.path if isinstance(resume, Run) else resume)
        steps, own = more_steps(named, run, ""), _resumed_task(task, run)
        resume_run(run, view, accept=accept, steps=steps, environment=own, callbacks=callbacks)
        return Run(run)
    if accept:
        raise UserError("accept goes with resume")
    named, environment = _with_task(task, named)
    chosen = load_config(None if config is None else Path(config), named, _GIVEN)
    return Run(start_run(chosen, view, environment=environment, callbacks=callbacks))


def evaluate(
    model: str | Path | Run,
    task: str | Path | type | Environment | None = None,
    *,
    context: Literal["none", "playbook"] = "none",
    samples: int | None = None,
    which: Literal["final", "best"] = "final",
    playbook: str | Path | Run | None = None,
    config: str | Path | None = None,
    output: str | Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a model on the test split of a task.

        result = resd.evaluate(run, context="playbook", samples=4)
        result.mean, result.best, result.rows[0]["response"]

    Args:
        model: a run or its directory, a model directory, `lab`, or a hub id.
        task: as for `train`; by default the run's, or the lab.
        context: `playbook` shows the model the lessons of a run beside every question, in the
            teacher's words; `none` is the plain question.
        samples: n of mean@n and best@n; by default the run's, or 4.
        which: `final` or `best`, of a run.
        playbook: the run or playbook.json whose lessons are shown; by default the run's own.
        config: TOML file of settings, in place of the run's own.
        output: a new directory for the answers; by default they are only returned.
        settings: every setting of `resd train --help`, as for `train`.

    Returns:
        mean, best, case_mean, case_best, and a row for every answer.

    Raises:
        UserError: no such model, task or playbook, or a setting is wrong.
    """
    _refuse_inside_an_import()
    if context not in ("none", "playbook"):
        raise UserError(f"context must be none or playbook, found {context!r:.80}")
    if samples is not None:
        settings["evaluation.samples"] = samples
    named, environment = _with_task(task, _dotted(settings))
    result, _ = measure(
        str(model.path if isinstance(model, Run) else model),
        named,
        which=which,
        file=None if config is None else Path(config),
        context=context,
        playbook=playbook.path if isinstance(playbook, Run) else playbook,
        environment=environment,
        output=None if output is None else Path(output),
        given=_GIVEN,
    )
    return result


def start_run(
    config: RunConfig,
    view: RunView | None = None,
    *,
    environment: Environment | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train a model; returns the run directory.

    Args:
        config: of the run.
        view: what a person sees.
        environment: an object that is the task, in place of the one that `config` names.
        callbacks: told of steps and evaluations.

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
        setup = backend.together(lambda: prepare(config, environment))
        try:
            run = _shared(backend, lambda: _created(config))
        except BaseException:
            setup.close()
            raise
        _run(setup, run, view, backend, callbacks)
    return run.path


def resume_run(
    path: Path,
    view: RunView | None = None,
    *,
    accept: Collection[str] = (),
    steps: int | None = None,
    environment: Environment | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Go on with a run after its newest checkpoint; the end is the same as without the break.

    Args:
        path: the run, wherever it was moved.
        view: what a person sees.
        accept: what may have changed since the run was made: `config`, `task`, `method`, `engine`,
            `versions`, a dotted setting, or a library.
        steps: train to this many steps, more than the run had; it may be complete.
        environment: the object that is its task, if it was made with one.
        callbacks: told of steps and evaluations.

    Raises:
        UserError: there is no run, it is complete already, another process has it open, or it is
            not what it was made of.
    """
    from resd.loop.setup import prepare

    config = read_config(path)
    if environment is None:
        check_named(config.task)
    with closing(make_backend(config.model.device)) as backend:
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
            setup = backend.together(lambda: prepare(read_config(path, own_code=True), environment))
        except BaseException:
            shown.close()
            run.close()
            raise
        _run(setup, run, shown, backend, callbacks)
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


def _run(
    setup: object,
    run: RunDirectory,
    view: RunView | None,
    backend: Backend,
    callbacks: Sequence[Callback],
) -> None:
    from resd.loop.setup import Setup
    from resd.loop.trainer import Trainer

    assert isinstance(setup, Setup)
    shown = view or (make_view() if backend.main else MuteView())
    try:
        try:
            trainer = Trainer(setup, run, shown, backend=backend, callbacks=callbacks)
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
    task = "stream" if config.stream else _short(config.task)
    return Path("runs") / f"{task}-{_short(config.method.name)}-s{config.seed}"


def _short(named: str) -> str:
    """A task or method as a part of a file's name."""
    place, _, inside = named.rpartition(":")
    return inside if place in ADAPTERS else Path(place or named.strip("<>").split()[0]).stem


def more_steps(named: Named, run: Path, dashes: str = "--") -> int | None:
    """The steps that a resumed run is to have; None for as many as it had.

    Raises:
        UserError: another setting is named, or it is no number of steps.
    """
    other = next((key for key, _ in named if key != "train.steps"), None)
    if other is not None:
        raise UserError(
            f"{dashes}{other}: resume goes on with a run as it was; it takes no other setting but "
            f"more {dashes}train.steps. If you mean it, edit {run}/config.toml and resume with "
            f"--accept {other}"
        )
    steps = named[-1][1] if named else None
    if named and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise UserError(f"{dashes}train.steps must be a whole number above 0, found {steps!r:.80}")
    return steps


# -- what a program gives --------------------------------------------------------------------------


def _refuse_inside_an_import() -> None:
    """A script with a task of its own is imported by whoever evaluates with that task."""
    file = plugins.file_at_work()
    if file is not None:
        raise UserError(
            f"{file.name} is imported here for what it defines, and would train once more: put "
            'what it does as a program under if __name__ == "__main__":'
        )


def _path_of(model: str | Path | Settings | None) -> Settings | None:
    return {"path": str(model)} if isinstance(model, str | Path) else model


def _method_of(method: str | type | Settings | None) -> str | Settings | None:
    if not isinstance(method, type):
        return method
    spec = plugins.spec_of(method)
    if spec is None:
        raise UserError(
            f"method {method.__name__} is of a notebook or inside a function, where nobody who "
            "resumes the run finds it: write it into a file"
        )
    return spec


def _dotted(settings: Settings) -> Named:
    """Nested tables as dotted keys; an empty table stays one."""
    pairs: Named = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs += [(f"{key}.{inner}", item) for inner, item in _dotted(value)]
        else:
            pairs.append((key, str(value) if isinstance(value, Path) else value))
    return pairs


def _with_task(task: object, named: Named) -> tuple[Named, Environment | None]:
    """The settings with the task's name among them, and the task itself if it is an object."""
    if task is None:
        return named, None
    args: dict[str, Any] = {}
    for key, value in named:
        if key.startswith("task_args."):
            set_dotted(args, key.removeprefix("task_args."), value)
    given = given_task(task, args)
    if given.environment is None:
        return [("task", given.name), *named], None
    for key, value in named:
        if key == "stream":
            raise UserError("stream: its tasks are named there, and none is given as an object")
        if key == "rollout.env_mode" and value != "thread":
            raise UserError(
                f"rollout.env_mode {value}: an object, or a class of a notebook, cannot be made "
                "again in another process; put its class into a module, or leave this out"
            )
    return [("task", given.name), ("rollout.env_mode", "thread"), *named], given.environment


def _resumed_task(task: object, run: Path) -> Environment | None:
    """The task of a run that is gone on with, if it is an object.

    Raises:
        UserError: it is another task than the run's.
    """
    if task is None:
        return None
    config = read_config(run)
    given = given_task(task, config.task_args if isinstance(task, type) else {})
    if anchored(config.model_copy(update={"task": given.name}), Path.cwd()).task != config.task:
        raise UserError(f"{run} was made with task {config.task}, and this is {given.name}")
    return given.environment
