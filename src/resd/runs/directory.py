"""The run directory: configuration, metrics, playbook, traces, checkpoints, models.

config.toml       the resolved configuration, its paths absolute
identity.json     versions, task, settings and place that the run was made of, and its id
metrics.jsonl     one line a step, one an evaluation
notes.txt         what the environment said of itself, if anything (a sandbox that is off)
anchors.json      the initial model's answers to the prompts of the anchors, as token ids
playbook.json/md  the playbook, for programs and for people
traces/           what it saw and wrote, a file a step and an evaluation (`resd.runs.traces`)
warnings.jsonl    what the run warned of, a line each
checkpoints/      complete states, the newest few, each with its checksums.json
evaluated/        students at evaluated steps, the best few by rank sum
best/, final/     models in Hugging Face format, each with its model card
done.json         written last
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from resd.config import RunConfig
from resd.errors import UserError
from resd.runs import atomic, identity
from resd.runs.card import with_card
from resd.runs.config_file import config_text, read_config
from resd.runs.rows import append_row, read_metrics, read_rows, write_rows
from resd.runs.traces import FOLDER, forget_after, write_traces
from resd.runs.warnings import NAME as WARNINGS
from resd.runs.warnings import add_warning

_CHECKPOINT = re.compile(r"step-(\d{6,})")
_FOLDERS = ("checkpoints", "evaluated", FOLDER)
# What a crash before the first write that counts leaves behind.
_STILLBORN = (".lock", ".config.toml.tmp")


class TakenError(UserError):
    """The directory holds something already, or another process has it open."""


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
            identity.save(path, identity.identity(config, Path.cwd()))
        except atomic.StorageError as error:
            run.discard()
            reason = getattr(error.__cause__, "strerror", None) or error
            raise UserError(f"output: cannot write into {path}: {reason}") from None
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def create_numbered(cls, path: Path, config: RunConfig) -> RunDirectory:
        """Start a run in `path`, or in `path`-2, -3, ... where that is taken.

        Of two processes at once each gets a directory of its own.

        Raises:
            UserError: the directory cannot be made.
        """
        for number in count(1):
            place = path if number == 1 else path.with_name(f"{path.name}-{number}")
            try:
                return cls.create(place, config.model_copy(update={"output": place}))
            except TakenError:
                continue
        raise AssertionError("numbers have no end")

    @classmethod
    def open(
        cls, path: Path, accept: Collection[str] = (), steps: int | None = None
    ) -> tuple[RunDirectory, RunConfig]:
        """Open a run to go on with it.

        Args:
            path: the directory.
            accept: what may have changed since it was made, see `identity.check`.
            steps: more steps than it had: it may be complete then, and is not any more.

        Raises:
            UserError: it is no run, it is complete, another process has it open, or it is not
                what it was.
        """
        config = read_config(path)
        run = cls(path, _locked(path))
        try:
            if steps is None and run.is_complete():
                raise UserError(
                    f"{path} is complete; its model is in {path / 'final'}; more steps: resd train "
                    f"--resume {path} --train.steps N"
                )
            now = identity.check(path, config, accept)
            if steps is not None:
                config = run._extended(config, steps)
                now["settings"] = identity.settings(config)
            if now != identity.load(path):
                identity.save(path, now)
            if steps is not None:
                atomic.write_text(path / "config.toml", config_text(config))
                atomic.remove(path / "done.json")
            for named in (*config.tasks, config.method.name, config.engine.kind):
                identity.find_modules_of(path, named)
        except BaseException:
            run.close()
            raise
        return run, config

    def _extended(self, config: RunConfig, steps: int) -> RunConfig:
        """The configuration with more steps.

        Raises:
            UserError: they are not more than the run had, or has done.
        """
        if config.stream:
            raise UserError(
                f"--train.steps: {self.path} is a stream, whose steps belong to its tasks; start "
                "another stream from its final model with --model.path"
            )
        reached = max([number for number, _ in self.checkpoints()], default=0)
        least = max(reached, config.train.steps or 0)
        if steps < least:
            raise UserError(
                f"--train.steps {steps}: {self.path} has {least} steps already; steps can only be "
                "raised"
            )
        train = config.train.model_copy(update={"steps": steps})
        return config.model_copy(update={"train": train})

    def set_damaged_aside(self, warn: Callable[[str], None]) -> None:
        """Leave the newest checkpoints out that are not what was written; say so.

        They are renamed, not removed: a bad cable or a lost mount may be to blame.

        Raises:
            UserError: none is left.
        """
        found = self.checkpoints()
        for number, place in reversed(found):
            problem = identity.damage(place)
            if problem is None:
                return
            if number == found[0][0]:
                raise UserError(
                    f"checkpoint {place} is damaged ({problem}), and there is none before it: put "
                    f"it back from a copy, or remove {place.parent} to begin from the start"
                )
            before = found[[n for n, _ in found].index(number) - 1][0]
            aside = place.with_name(f"damaged-{place.name}")
            atomic.remove(aside)
            try:
                place.rename(aside)
            except OSError as error:
                raise atomic.storage_error(place, error) from error
            warn(
                f"checkpoint {place} is damaged ({problem}); it is now {aside.name}, and the run "
                f"goes on from step {before}"
            )

    def check_rows(self, warn: Callable[[str], None]) -> None:
        """Say so if metrics.jsonl lacks something that the newest checkpoint has seen."""
        checkpoints = self.checkpoints()
        problem = read_rows(self.path).problem(checkpoints[-1][0] if checkpoints else 0)
        if problem is not None:
            warn(f"{self.path}: {problem}")

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def discard(self) -> None:
        """Take a run that was created but never started away again; release the lock."""
        if self._fresh and not self.checkpoints():
            for name in ("config.toml", identity.NAME, WARNINGS, *_STILLBORN, *_FOLDERS):
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
        append_row(self.path, row)

    def trace(self, what: str, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the traces of a `step` or an `evaluation`; nothing is resumed from them."""
        self._folder(FOLDER)
        write_traces(self.path, what, step, records)

    def warned(self, step: int, text: str) -> None:
        """Keep what the run warned of."""
        add_warning(self.path, step, text)

    def save_artifacts(self, files: Mapping[str, str]) -> None:
        """Write files of a method into the run directory, by name; nothing is resumed from them."""
        for name, text in files.items():
            atomic.write_text(self.path / name, text, lasting=False)

    def save_notes(self, notes: Sequence[str]) -> None:
        """Write notes.txt, a line a note."""
        lines = (" ".join(note.split()) for note in notes)
        atomic.write_text(self.path / "notes.txt", "".join(f"{line}\n" for line in lines))

    def rewind(self, step: int, keep: int, budget: float | None = None) -> None:
        """Forget what was written after the checkpoint of `step`: it will be written again.

        Args:
            step: of the checkpoint that the run goes on from; -1 if there is none.
            keep: checkpoints to keep.
            budget: see `save_checkpoint`.
        """
        if (self.path / "metrics.jsonl").exists():
            write_rows(self.path, [r for r in read_metrics(self.path) if r["step"] <= step])
        forget_after(self.path, step)
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            for leftover in [*folder.glob(".*.tmp"), *folder.glob(".*.trash")]:
                atomic.barrier(f"before removing {leftover.name}")
                atomic.remove(leftover)
        self._prune(keep, budget)

    # -- checkpoints -----------------------------------------------------------------------

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints, oldest first."""
        return _numbered(self.path / "checkpoints")

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def save_checkpoint(
        self, step: int, keep: int, fill: Callable[[Path], None], budget: float | None = None
    ) -> None:
        """Write a checkpoint; drop all but the newest `keep`, and what is over the budget.

        Args:
            step: of the checkpoint.
            keep: how many.
            fill: writes it.
            budget: most bytes of all checkpoints together; the newest stays in any case.
        """

        def fill_and_sum(path: Path) -> None:
            fill(path)
            identity.write_checksums(path)

        self._folder("checkpoints")
        atomic.write_directory(self.checkpoint(step), fill_and_sum)
        self._prune(keep, budget)

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

    def save_final(self, fill: Callable[[Path], None]) -> None:
        """Write the model at the end of the run, and its card."""
        atomic.write_directory(self.path / "final", with_card(self.path, fill))

    def finish(self, best: int, summary: Mapping[str, Any]) -> None:
        """Put the best student beside the last, and say that the run is complete."""
        kept = self.evaluated().get(best, self.path / "final")

        def copy(path: Path) -> None:
            shutil.copytree(kept, path, dirs_exist_ok=True)

        atomic.write_directory(self.path / "best", with_card(self.path, copy, best))
        atomic.write_json(self.path / "done.json", summary)

    def _prune(self, keep: int, budget: float | None = None) -> None:
        kept = self.checkpoints()
        for _, old in kept[:-keep]:
            atomic.remove_directory(old)
        if budget is None:
            return
        left = budget
        for number, (_, place) in enumerate(reversed(kept[-keep:])):
            left -= sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
            if left < 0 and number > 0:
                atomic.remove_directory(place)

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
        raise TakenError(
            f"output directory {path} is not empty; choose another with --output"
            + (go_on if is_run else "")
        )


def _locked(path: Path) -> TextIO:
    try:
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write into {path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise TakenError(f"{path} is in use by another process; wait for it, or stop it") from None
    except OSError as error:
        lock.close()
        raise UserError(f"cannot lock {path}: {error.strerror}") from None
    return lock


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        match = _CHECKPOINT.fullmatch(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)
