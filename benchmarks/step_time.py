"""Seconds a training step of the lab, by method and by number of threads: medians and ratios.

python benchmarks/step_time.py [STEPS]

Runs are interleaved (machines are shared and noisy): compare ratios of one invocation.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from resd.cli import main

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 6
CASES = {
    "resd, 1 thread": ["--method.name", "resd", "--model.threads", "1"],
    "resd, 2 threads": ["--method.name", "resd", "--model.threads", "2"],
    "sdpo, 1 thread": ["--method.name", "sdpo", "--model.threads", "1"],
    "grpo N=8, 1 thread": ["--method.name", "grpo", "--model.threads", "1"],
}


def step_seconds(words, folder):
    run = Path(folder) / "run"
    settings = ["--train.steps", str(STEPS), "--evaluation.every", "0"]
    settings += ["--evaluation.at_start", "false", "--evaluation.max_examples", "1"]
    if main(["train", *words, *settings, "--output", str(run)]) != 0:
        raise SystemExit(1)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["time/step_s"] for row in rows if "time/step_s" in row]


def measure():
    times = {name: [] for name in CASES}
    for _ in range(3):
        for name, words in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                times[name] += step_seconds(words, folder)
    first = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:20} {median:.3f} s a step  {median / first:.2f} x")


if __name__ == "__main__":
    measure()
