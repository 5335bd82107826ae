"""The runs of a comparison: their settings, their directories, and what is there already."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from resd.compare.variants import Variant, check_seeds, check_variants
from resd.config import RunConfig, load_config, read_toml
from resd.config.paths import anchored
from resd.errors import UserError
from resd.runs import atomic, identity, read_config
from resd.runs.directory import is_new

_OURS = {"seed": "--seeds", "output": "--output"}


class State(Enum):
    """How far a run is."""

    NEW = "new"
    BROKEN_OFF = "broken off"
    FINISHED = "finished"


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
        file: the TOML file that it starts from.
        overrides: dotted settings; with `file` they give `config`.
        path: its run directory.
    """

    variant: Variant
    seed: int
    config: RunConfig
    file: Path | None
    overrides: tuple[tuple[str, Any], ...]
    path: Path

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.name

    def state(self) -> State:
        """How far it is, by what is on disk."""
        if (self.path / "done.json").is_file():
            return State.FINISHED
        return State.BROKEN_OFF if (self.path / "config.toml").is_file() else State.NEW


Command = Callable[[Run, bool], Sequence[str]]
"""The command line of a run; the second argument says whether to resume it."""


def train_command(run: Run, resume: bool) -> list[str]:
    """`resd train` in a process of its own."""
    command = [sys.executable, "-m", "resd.cli", "train"]
    if resume:
        return [*command, "--resume", str(run.path)]
    command += [str(run.file)] if run.file else []
    return [*command, *(f"--{key}={_word(value)}" for key, value in run.overrides)]


def check_jobs(jobs: int) -> None:
    """Refuse a number of runs at a time that is none.

    Raises:
        UserError: as said.
    """
    if jobs < 1:
        raise UserError(f"jobs: at least 1 run at a time, found {jobs}")


def make_folders(output: Path, *names: str) -> None:
    """Make the directory of several runs, and folders in it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        for name in names:
            (output / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output directory {output}: {error.strerror}") from None


def make_runs(
    config_file: Path | None,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    shared: Sequence[tuple[str, Any]],
    output: Path,
) -> list[Run]:
    """All runs, seed by seed, so that what is finished early covers every variant.

    Raises:
        UserError: a setting is wrong, or a directory holds something else.
    """
    check_variants(variants)
    check_seeds(seeds)
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {output} is a file; name a directory with --output")
    if config_file is not None:
        read_toml(config_file)
    runs = [_run(config_file, v, seed, shared, output) for seed in seeds for v in variants]
    for run in runs:
        check_directory(run)
    return runs


def with_file_kept(runs: Sequence[Run], output: Path) -> list[Run]:
    """The same runs, started from a copy of the config file.

    A comparison takes hours; whoever edits the file meanwhile shall not mix two settings.
    """
    file = next((run.file for run in runs), None)
    if file is None:
        return list(runs)
    kept = output / "shared.toml"
    atomic.write_text(kept, file.read_text(encoding="utf-8"))
    return [replace(run, file=kept) for run in runs]


def _run(
    file: Path | None,
    variant: Variant,
    seed: int,
    shared: Sequence[tuple[str, Any]],
    output: Path,
) -> Run:
    path = output / f"{variant.slug}-s{seed}"
    # As `resd train` reads them.
    given = [(key.replace("-", "_"), value) for key, value in (*shared, *variant.settings)]
    ours = next((key for key, _ in given if key in _OURS), None)
    if ours is not None:
        raise UserError(f"variant {variant.label!r}: {ours} is set by {_OURS[ours]}")
    overrides = (*given, ("seed", seed), ("output", str(path)))
    try:
        # A table given as a value would be filled with the keys that follow it.
        config = load_config(file, copy.deepcopy(overrides))
    except UserError as error:
        hint = ""
        if str(error).startswith("unknown key method."):
            hint = "; settings of one method go into --variant 'LABEL: method.name=... KEY=VALUE'"
        raise UserError(f"variant {variant.label!r}: {error}{hint}") from None
    return Run(variant, seed, config, file, overrides, path)


def check_directory(run: Run) -> None:
    """A directory holds nothing, or this very run.

    Raises:
        UserError: it holds something else.
    """
    if run.state() is State.NEW:
        if not is_new(run.path):
            raise UserError(f"{run.path} is in the way: it is no run; choose another --output")
        return
    if not (run.path / "config.toml").is_file():
        raise UserError(f"{run.path} has a done.json but no config.toml; choose another --output")
    wanted = _plain(anchored(run.config, Path.cwd()))
    saved = _plain(read_config(run.path))
    key = _difference(wanted, saved)
    if key is not None:
        raise UserError(
            f"{run.path} was made with {key} = {_shown(saved, key)}, and now it is "
            f"{_shown(wanted, key)}; choose another --output, or remove that run"
        )


def _plain(config: RunConfig) -> dict[str, Any]:
    """Dotted settings that make a run what it is: all but where it lies."""
    values = config.model_dump(mode="json")
    del values["output"]
    return dict(identity.flat(values))


def _difference(wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """The first key that differs; the method's name says more than what follows from it."""
    keys = ["method.name", *wanted, *(key for key in saved if key not in wanted)]
    return next((key for key in keys if wanted.get(key) != saved.get(key)), None)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return _word(values.get(key))[:80]


def _word(value: Any) -> str:
    """A value as the command line reads it back."""
    return "none" if value is None else json.dumps(value, default=str)
