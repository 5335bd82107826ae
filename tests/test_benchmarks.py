"""The benchmarks run; what they measure is for their tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PLACE = Path(__file__).parent.parent / "benchmarks"
# Words of the command, and how many rows its table has at least.
COMMANDS = {
    "gpu, parts": (["gpu.py", "--device", "cpu", "--tiny", "--only", "head", "update", "long"], 9),
    "gpu, rows": (["gpu.py", "--device", "cpu", "--tiny", "--only", "padding", "trl"], 3),
    "traces": (["traces.py", "--steps", "2", "--vocabulary", "1200"], 2),
    "step": (["step.py", "--rounds", "1", "--steps", "2", "--without-trl"], 3),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_prints_its_table(name: str) -> None:
    words, rows = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, str(PLACE / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert sum(any(c.isdigit() for c in line) for line in done.stdout.splitlines()) >= rows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "no GPU here"),
        (["--device", "cpu", "--only", "heads"], "no case heads; there are head, update"),
    ],
)
def test_what_the_gpu_benchmark_refuses(words: list[str], said: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, str(PLACE / "gpu.py"), *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr
