"""Ctrl-C and kill -9 on a real `resd train`: it ends at once, leaves no process, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny


def children(pid: int) -> set[int]:
    """All processes below one, as /proc knows them."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(place.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_run_that_is_interrupted(
    number: signal.Signals, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = tiny.arguments(tiny.settings(tiny_model, run, train__steps=500))
    command = [sys.executable, "-m", "resd.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [*command, "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A suite in the background of a shell ignores it, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as training:
        assert training.stdout is not None and training.stderr is not None
        while not (line := training.stdout.readline()).startswith("step 2/"):
            assert line, training.stderr.read()
        below = children(training.pid)
        assert below, "responses are evaluated in a process of their own"
        began = time.monotonic()
        training.send_signal(number)
        said = training.communicate(timeout=30)[1]
        assert time.monotonic() - began < 10
    while any(alive(pid) for pid in below):
        assert time.monotonic() - began < 10, "a process outlives its run"
        time.sleep(0.02)
    if number == signal.SIGINT:
        assert training.returncode == 130
        assert said.splitlines()[-1] == f"resd: stopped; go on with resd train --resume {run}"
        assert "Traceback" not in said
    assert any((run / "checkpoints").iterdir())
