"""Writes that a crash at any moment cannot tear: a file or folder is there whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from resd.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch says, in a RuntimeError, when it cannot write a file to its end.
_TORCH_WRITES = ("inline_container", "PytorchStreamWriter", "iostream")


class StorageError(UserError):
    """A write failed: a full disk, a lost mount, missing rights."""


def _nothing(what: str) -> None:
    """Called between every two writes; tests crash the process here."""


barrier: Callable[[str], None] = _nothing


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Replace a file by new text, atomically.

    Args:
        path: the file.
        text: what it holds from now on.
        lasting: wait until it would survive a power cut (milliseconds). Without, only a crash of
            the process, of whatever kind, finds the old file or the new one whole.

    Raises:
        StorageError: the file cannot be written; the old one is still there.
    """
    write_bytes(path, text.encode("utf-8"), lasting=lasting)


def write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace a file, as `write_text` does."""
    scratch = path.with_name(f".{path.name}.tmp")
    barrier(f"before {path.name}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        barrier(f"written {path.name}")
        os.replace(scratch, path)
        if lasting:
            sync_directory(path.parent)
    except OSError as error:
        remove(scratch)  # a full disk needs the room
        raise storage_error(path, error) from error
    barrier(f"replaced {path.name}")


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a JSON value, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=True) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line; a crash may leave it out or cut it short.

    Raises:
        StorageError: the line cannot be written; the file is as it was.
    """
    barrier(f"before append to {path.name}")
    size: int | None = None
    try:
        size = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        _cut_back(path, size)
        raise storage_error(path, error) from error
    barrier(f"appended to {path.name}")


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace a directory, atomically but for an instant in which it may be absent.

    Args:
        path: the directory.
        fill: writes the content into the scratch directory that it is given.

    Raises:
        StorageError: it cannot be written; the old one is still there, or nothing is.
    """
    scratch = scratch_of(path)
    barrier(f"before {path.name}")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        fill(scratch)
        for item in [*scratch.rglob("*"), scratch]:
            _sync(item)
        barrier(f"filled {path.name}")
        if path.exists():
            remove_directory(path)
        barrier(f"removed the old {path.name}")
        os.rename(scratch, path)
        sync_directory(path.parent)
    except StorageError:
        remove(scratch)
        raise
    except (OSError, SafetensorError) as error:
        remove(scratch)
        raise storage_error(path, error) from error
    except RuntimeError as error:
        if not any(name in str(error) for name in _TORCH_WRITES):
            raise
        remove(scratch)
        raise storage_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
    barrier(f"renamed {path.name}")


def scratch_of(path: Path) -> Path:
    """Where a file or directory is written before it gets its name."""
    return path.with_name(f".{path.name}.tmp")


def remove_directory(path: Path) -> None:
    """Remove a directory so that it is never seen half empty under its name.

    Raises:
        StorageError: it cannot be renamed.
    """
    trash = path.with_name(f".{path.name}.trash")
    shutil.rmtree(trash, ignore_errors=True)
    barrier(f"before trashing {path.name}")
    try:
        os.rename(path, trash)
    except OSError as error:
        raise storage_error(path, error) from error
    barrier(f"trashed {path.name}")
    shutil.rmtree(trash, ignore_errors=True)
    barrier(f"emptied the trash of {path.name}")


def remove(path: Path) -> None:
    """Remove a file or folder, or leave it where that fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(path: Path, error: BaseException) -> StorageError:
    """What to tell the user of a failed write."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    full = getattr(error, "errno", None) in _NO_ROOM or not isinstance(error, OSError)
    cure = "make room on the disk" if full else "mend that"
    return StorageError(
        f"cannot write {path}: {reason}; what was learnt up to the last checkpoint is kept: "
        f"{cure}, then go on with resd train --resume RUN"
    )


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_directory(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _cut_back(path: Path, size: int | None) -> None:
    """Take a half-written line away again; needs no room."""
    try:
        if size is not None and path.exists():
            os.truncate(path, size)
    except OSError:
        return
