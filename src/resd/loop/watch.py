"""The view of a run that goes on elsewhere: it reads the run's files, and writes none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.loop.evaluate import Baseline, Evaluation
from resd.loop.view import RunView
from resd.runs import read_config
from resd.runs.rows import is_step, read_metrics
from resd.runs.traces import read_traces, trace_files
from resd.runs.warnings import read_warnings

# Seconds between two looks, and without anything new until somebody should know.
_EVERY_S = 1.0
_SILENT_S = 600.0


def watch(run: Path, view: RunView, wait: Callable[[float], None] = time.sleep) -> None:
    """Show a run until it is complete, what it did before first.

    Args:
        run: its directory.
        view: shows it.
        wait: between two looks; seconds.

    Raises:
        UserError: it is no run.
    """
    config = read_config(run)
    view.begin(config, 0, config.train.steps or 0)
    shown: set[tuple[int, bool]] = set()
    warned = 0
    heard, told = time.time(), False
    try:
        while True:
            complete = (run / "done.json").is_file()
            for _, warning in read_warnings(run)[warned:]:
                warned += 1
                view.warn(warning)
            for row in read_metrics(run):
                if (row["step"], is_step(row)) not in shown:
                    shown.add((row["step"], is_step(row)))
                    _show(run, view, row, config)
                    heard, told = max(heard, time.time()), False
            if complete:
                done = json.loads((run / "done.json").read_text(encoding="utf-8"))
                return view.finished(run, int(done.get("best_step", 0)), [])
            if time.time() - heard > _SILENT_S and not told:
                told = True
                view.warn(f"nothing new for {_SILENT_S / 60:.0f} min: does the run still go on?")
            wait(_EVERY_S)
    finally:
        view.close()


def _show(run: Path, view: RunView, row: Mapping[str, Any], config: RunConfig) -> None:
    if is_step(row):
        view.stepped(row["step"], row, _lesson(run, row["step"]))
    elif (result := _evaluation(row)) is not None:
        view.evaluated(row["step"], result)


def _lesson(run: Path, step: int) -> str:
    """The newest lesson that the teacher sees since a step."""
    file = dict(trace_files(run)).get(step)
    records = read_traces(file) if file else []
    entries = {e["id"]: e for r in records if r["kind"] == "playbook" for e in r["entries"]}
    new = [
        entries[r["id"]]["content"]
        for r in records
        if r["kind"] == "event"
        and r["what"] in ("added", "admitted")
        and entries.get(r["id"], {}).get("admitted")
    ]
    return str(new[-1]) if new else ""


def _evaluation(row: Mapping[str, Any]) -> Evaluation | None:
    name = next((key for key in row if key.startswith("eval/mean@")), None)
    if name is None:
        return None
    n = int(name.partition("@")[2])
    values = [row.get(f"eval/{key}@{n}", 0.0) for key in ("mean", "best", "case_mean", "case_best")]
    mean, best, case_mean, case_best = values

    def named(prefix: str) -> Iterator[tuple[str, float]]:
        return ((k.removeprefix(prefix), v) for k, v in row.items() if k.startswith(prefix))

    return Evaluation(
        mean,
        best,
        case_mean,
        case_best,
        n,
        problems=int(row.get("eval/problems", 0)),
        truncated=row.get("eval/truncated", 0.0),
        skipped=int(row.get("eval/skipped", 0)),
        failed=int(row.get("eval/env_failed", 0)),
        baselines={
            k: Baseline(v, row.get(f"baseline_cases/{k}", v)) for k, v in named("baseline/")
        },
        retention=dict(named("eval/retention/")),
    )
