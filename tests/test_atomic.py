"""Writes that a full disk cannot tear."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import one_line

from resd.cli import main
from resd.runs import atomic, read_metrics

Words = Callable[..., list[str]]


def test_a_failed_append_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metrics.jsonl"
    atomic.append_line(file, '{"step": 1}')

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(atomic.StorageError, match=r"No space left on device.*make room"):
        atomic.append_line(file, '{"step": 2}')
    assert file.read_text() == '{"step": 1}\n'


def test_a_half_line_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1}\n{"step": 2, "a": [1,\n[3]\n{"step": "4"}\n'
    )
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_failed_replacement_leaves_the_old_file_and_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "playbook.json"
    atomic.write_json(file, {"a": 1})

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(atomic.StorageError, match=r"cannot write .*playbook.json: No space left"):
        atomic.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["playbook.json"]


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "model"
    atomic.write_directory(place, lambda path: (path / "a").write_text("1") and None)

    def fails(path: Path) -> None:
        (path / "a").write_text("2")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(atomic.StorageError):
        atomic.write_directory(place, fails)
    assert (place / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_mistake_in_the_program_is_not_called_a_full_disk(tmp_path: Path) -> None:
    def mistaken(path: Path) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        atomic.write_directory(tmp_path / "model", mistaken)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        run = disk / "run"
        assert main(train_words(output=run, train__steps=1)) == 2
        line = one_line(capsys)
        assert "No space left on device" in line
        assert "make room" in line
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert main(["train", "--resume", str(run)]) == 0
        assert main(train_words(output=tmp_path / "roomy", train__steps=1)) == 0
        for name in ("final/model.safetensors", "playbook.json", "done.json"):
            assert (run / name).read_bytes() == (tmp_path / "roomy" / name).read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=False)


# -- seeds ----------------------------------------------------------------------------------------
