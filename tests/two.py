"""Runs of two processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def torchrun(
    place: Path,
    commands: Sequence[Sequence[str]],
    number: int = 2,
    seconds: float = 500,
    **environment: str,
) -> list[list[int]]:
    """Exit codes of command lines in each process, one command after the other."""
    plans = place / f"plans{number}.json"
    plans.write_text(json.dumps(commands))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(number), str(HERE / "processes.py"), str(plans)),
        ],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**ENVIRONMENT, **environment},
    )
    files = [Path(f"{plans}.{rank}") for rank in range(number)]
    assert all(file.is_file() for file in files), done.stdout[-2000:] + done.stderr[-4000:]
    codes = [json.loads(file.read_text()) for file in files]
    assert all(len(row) == len(commands) for row in codes), done.stderr[-4000:]
    return codes


def start(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A run of two processes as a user starts it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "resd.cli", *words],
        capture_output=True,
        text=True,
        timeout=200,
        env=ENVIRONMENT,
    )
