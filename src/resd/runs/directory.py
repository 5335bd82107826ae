"""The run directory: configuration, metrics, playbook, traces, checkpoints, models.

config.toml       the resolved configuration
metrics.jsonl     one line a step, one an evaluation
notes.txt         what the environment said of itself, if anything (a sandbox that is off)
playbook.json/md  the playbook, for programs and for people
traces/           rollouts, reflections, curations, teacher prompts, a file a step
checkpoints/      complete states, the newest few
evaluated/        students at evaluated steps, the best few by rank sum
best/, final/     models in Hugging Face format
done.json         written last
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import tomli_w

from resd.config import RunConfig, read_toml, validate
from resd.errors import UserError
from resd.runs import atomic

_CHECKPOINT = re.compile(r"step-(\d{6,})")
_FOLDERS = ("checkpoints", "evaluated", "traces")
# What a crash before the first write that counts leaves behind.
_STILLBORN = (".lock", ".config.toml.tmp")


class RunDirectory:
    """A run on disk, locked while it is open for writing.

    Use `create` for a new run and `open` to go on with one.
    """

    def __init__(self, path: Path, lock: TextIO) -> None:
        self.path = path
        self._lock = lock
        self._fresh = self._made = False

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunDirectory:
        """Start a run in an empty or new directory.

        Raises:
            UserError: the directory is not empty, cannot be made, or is in use.
        """
        check_new(path)
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output: cannot make directory {path}: {error.strerror}") from None
        atomic.barrier("made the run directory")
        lock = _locked(path)
        atomic.barrier("locked the run directory")
        run = cls(path, lock)
        try:
            check_new(path)  # another process may have been faster
            run._fresh, run._made = True, made
            # The first thing written: a directory that has a configuration can be resumed.
            atomic.write_text(path / "config.toml", config_text(config))
        except atomic.StorageError as error:
            run.discard()
            reason = getattr(error.__cause__, "strerror", None) or error
            raise UserError(f"output: cannot write into {path}: {reason}") from None
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, RunConfig]:
        """Open a run to go on with it.

        Raises:
            UserError: it is no run, it is complete, or another process has it open.
        """
        config = read_config(path)
        run = cls(path, _locked(path))
        if run.is_complete():
            run.close()
            raise UserError(f"{path} is complete; its model is in {path / 'final'}")
        return run, config

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def discard(self) -> None:
        """Take a run that was created but never started away again; release the lock."""
        if self._fresh and not self.checkpoints():
            for name in ("config.toml", *_STILLBORN, *_FOLDERS):
                atomic.remove(self.path / name)
            if self._made:
                atomic.remove(self.path)
        self.close()

    def is_complete(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "done.json").is_file()

    # -- metrics and traces ----------------------------------------------------------------

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        atomic.append_line(self.path / "metrics.jsonl", json.dumps(row))

    def trace(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the traces of a step."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        atomic.write_text(self._folder("traces") / f"step-{step:06d}.jsonl", text)

    def save_artifacts(self, files: Mapping[str, str]) -> None:
        """Write files of a method into the run directory, by name."""
        for name, text in files.items():
            atomic.write_text(self.path / name, text)

    def save_notes(self, notes: Sequence[str]) -> None:
        """Write notes.txt, a line a note."""
        lines = (" ".join(note.split()) for note in notes)
        atomic.write_text(self.path / "notes.txt", "".join(f"{line}\n" for line in lines))

    def rewind(self, step: int, keep: int) -> None:
        """Forget what was written after the checkpoint of `step`: it will be written again.

        Args:
            step: of the checkpoint that the run goes on from; -1 if there is none.
            keep: checkpoints to keep.
        """
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            rows = [row for row in read_metrics(self.path) if row["step"] <= step]
            atomic.write_text(metrics, "".join(json.dumps(row) + "\n" for row in rows))
        for number, file in _numbered(self.path / "traces", ".jsonl"):
            if number > step:
                atomic.barrier(f"before removing {file.name}")
                atomic.remove(file)
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            for leftover in [*folder.glob(".*.tmp"), *folder.glob(".*.trash")]:
                atomic.barrier(f"before removing {leftover.name}")
                atomic.remove(leftover)
        self._prune(keep)

    # -- checkpoints -----------------------------------------------------------------------

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints, oldest first."""
        return _numbered(self.path / "checkpoints")

    def save_checkpoint(self, step: int, keep: int, fill: Callable[[Path], None]) -> None:
        """Write a checkpoint and drop all but the newest `keep`."""
        atomic.write_directory(self._folder("checkpoints") / f"step-{step:06d}", fill)
        self._prune(keep)

    def save_evaluated(self, step: int, keep: Sequence[int], fill: Callable[[Path], None]) -> None:
        """Write an evaluated student and drop those that are not to be kept."""
        folder = self._folder("evaluated")
        if step in keep:
            atomic.write_directory(folder / f"step-{step:06d}", fill)
        for other, path in _numbered(folder):
            if other not in keep:
                atomic.remove_directory(path)

    def evaluated(self) -> dict[int, Path]:
        """Evaluated students on disk, by step."""
        return dict(_numbered(self.path / "evaluated"))

    def _prune(self, keep: int) -> None:
        for _, old in self.checkpoints()[:-keep]:
            atomic.remove_directory(old)

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise atomic.storage_error(folder, error) from error
        return folder


def is_new(path: Path) -> bool:
    """Whether a run can start at `path`: nothing is there, or nothing that counts.

    Raises:
        OSError: it cannot be looked into.
    """
    if not path.exists():
        return True
    return path.is_dir() and all(item.name in _STILLBORN for item in path.iterdir())


def check_new(path: Path) -> None:
    """Refuse a run directory that holds something.

    Raises:
        UserError: it is a file, or not empty.
    """
    if path.is_file():
        raise UserError(f"output: {path} is a file; name a directory with --output")
    try:
        new = is_new(path)
    except OSError as error:
        raise UserError(f"output: cannot look into {path}: {error.strerror}") from None
    if not new:
        go_on = f", or go on with it: resd train --resume {path}"
        is_run = (path / "config.toml").is_file()
        raise UserError(
            f"output directory {path} is not empty; choose another with --output"
            + (go_on if is_run else "")
        )


def config_text(config: RunConfig) -> str:
    """A configuration as TOML.

    TOML has no null: what is None stands as "none", which `validate` reads back.
    """
    return tomli_w.dumps(_without_nulls(config.model_dump(mode="json")))


def read_config(path: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        UserError: there is no run at `path`.
    """
    if not path.is_dir():
        raise UserError(f"there is no run directory {path}")
    file = path / "config.toml"
    if not file.is_file():
        raise UserError(f"{path} is no run directory: it has no config.toml")
    return validate(read_toml(file), f"in {file}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a line that a crash cut short is left out."""
    file = path / "metrics.jsonl"
    rows = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return "none" if value is None else value


def _locked(path: Path) -> TextIO:
    try:
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write into {path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(f"{path} is in use by another process; wait for it, or stop it") from None
    except OSError as error:
        lock.close()
        raise UserError(f"cannot lock {path}: {error.strerror}") from None
    return lock


def _numbered(folder: Path, suffix: str = "") -> list[tuple[int, Path]]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        match = _CHECKPOINT.fullmatch(path.name.removesuffix(suffix))
        if match and path.name.endswith(suffix):
            found.append((int(match.group(1)), path))
    return sorted(found)
