"""The numbers of a run's page: what came of it, what it cost, its curves, its warnings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.runs.rows import is_step
from resd.runs.warnings import read_warnings

Row = Mapping[str, Any]
# One chart of the page: title, what the numbers are, how they are drawn, and the metrics shown.
_CHARTS: tuple[tuple[str, str, str, str], ...] = (
    ("Accuracy on the test problems", "fraction", "line", r"eval/(mean|best)@\d+|baseline/.*"),
    ("Accuracy of each task", "fraction", "line", r"eval/tasks/.*"),
    ("Test cases passed", "fraction", "line", r"eval/case_(mean|best)@\d+|baseline_cases/.*"),
    ("Training rollouts", "fraction", "line", r"rollout/(passed|reward|cases)"),
    ("Loss", "", "line", r"train/(loss|anchor_kl)"),
    ("Entropy of the student", "nats a token", "line", r"train/entropy"),
    ("Response length", "tokens", "line", r"rollout/length"),
    ("Cut off or unfinished", "fraction", "line", r"(rollout|eval)/(truncated|unfinished.*)"),
    ("Responses that taught", "fraction", "line", r"train/taught"),
    ("Written texts rejected", "pieces a step", "stack", r"count/(?!op_add|tag_helpful).*"),
    ("Playbook", "lessons", "line", r"playbook/(entries|candidates)"),
    ("Playbook against the truth", "fraction", "line", r"playbook/(precision|recall)"),
    ("What is to be kept", "fraction", "line", r"eval/retention/.*"),
    ("Teacher outside the loss's tokens", "fraction", "line", r"train/teacher_outside"),
    ("Gradient norm", "", "line", r"train/grad_norm"),
    ("Seconds of a step", "seconds", "stack", r"time/(?!step_s).*"),
    ("Tokens generated", "tokens a step", "stack", r"tokens/(?!evaluation).*"),
)
# Counts that say that something was left out, by the beginning of their names.
_REFUSED = re.compile(
    r"count/(reflection|curation|review|op_(?!add|update|merge|remove|duplicate)|tag_unknown|"
    r"tag_over|prompt_too|teacher_prompt|empty|skipped|nothing|env|entry|tags?_bad)"
)
_MOST_LINES = 8


def curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The charts that a run has numbers for, each with its lines."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    charts = []
    for title, unit, kind, pattern in _CHARTS:
        chosen = [name for name in names if re.fullmatch(pattern, name)]
        if title == "Written texts rejected":
            chosen = [name for name in chosen if _REFUSED.match(name)]
        lines = [_line(name, rows) for name in chosen]
        lines = [line for line in lines if line["x"]]
        lines = _merged(lines)
        lines.sort(key=lambda line: -sum(line["y"]) if kind == "stack" else 0)
        if title == "Test cases passed" and _same_as_tasks(rows):
            continue
        if lines:
            charts.append({"title": title, "unit": unit, "kind": kind, "lines": _fewer(lines)})
    return charts


def _line(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
    if name.startswith(("time/", "tokens/", "count/")) and points:
        # A step without the key had none of it.
        found = dict(points)
        points = [(row["step"], found.get(row["step"], 0)) for row in rows if is_step(row)]
    return {
        "name": _label(name),
        "dashed": name.startswith("baseline"),
        "x": [x for x, _ in points],
        "y": [_rounded(y) for _, y in points],
    }


def _label(name: str) -> str:
    group, _, short = name.partition("/")
    if group.startswith("baseline"):
        short = f"trivial: {short}"
    elif short.startswith(("retention/", "tasks/")):
        short = short.partition("/")[2]
    elif group == "eval" and "@" not in short:
        short = f"evaluation: {short}"
    elif group == "time":
        short = short.removesuffix("_s")
    return short.replace("_", " ")


def _merged(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines that lie on each other are one, with all their names."""
    found: dict[Any, dict[str, Any]] = {}
    for line in lines:
        key = (tuple(line["x"]), tuple(line["y"]))
        if key in found and any(line["y"]):
            found[key]["name"] += f", {line['name']}"
        else:
            found[key if any(line["y"]) else line["name"]] = line
    return list(found.values())


def _fewer(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest lines, and one for the rest where they are stacked on the same steps."""
    if len(lines) <= _MOST_LINES:
        return lines
    kept, rest = lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1 :]
    if any(line["x"] != rest[0]["x"] for line in rest):
        return lines[:_MOST_LINES]
    total = [_rounded(sum(values)) for values in zip(*(line["y"] for line in rest), strict=True)]
    return [*kept, {"name": "other", "dashed": False, "x": rest[0]["x"], "y": total}]


def _same_as_tasks(rows: Sequence[Row]) -> bool:
    """Whether the fractions of cases say the same as those of whole problems."""
    pairs = [(f"eval/{a}@", f"eval/case_{a}@") for a in ("mean", "best")]
    return all(
        row[name] == row.get(name.replace(task, cases))
        for row in rows
        for task, cases in pairs
        for name in row
        if name.startswith(task)
    )


def headline(run: Path, config: RunConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """Task, model, method, and what changed between the start and the best evaluation."""
    points = []
    baselines: dict[str, float] = {}
    for row in rows:
        mean = next((k for k in row if re.fullmatch(r"eval/mean@\d+", k)), None)
        if mean is not None and _is_number(row[mean]):
            best = row.get(mean.replace("mean", "best"))
            points.append({"step": row["step"], "mean": row[mean], "best": best, "name": mean[5:]})
        named = {k: v for k, v in row.items() if k.startswith("baseline/") and _is_number(v)}
        baselines |= {k.removeprefix("baseline/"): v for k, v in named.items()}
    done = _done(run)
    best = next((p for p in points if p["step"] == done.get("best_step")), None)
    if best is None and points:
        best = max(points, key=lambda point: (point["mean"], point["step"]))
    steps = [row for row in rows if is_step(row)]
    return {
        "task": ", ".join(dict.fromkeys(config.tasks)),
        "model": config.model.path,
        "method": config.method.name,
        "seed": config.seed,
        "start": points[0] if points else None,
        "best": best,
        "last": points[-1] if points else None,
        "baselines": baselines,
        "rollouts": max([row.get("rollouts", 0) for row in rows], default=0),
        "passed_last": _rounded(steps[-1].get("rollout/passed", 0.0)) if steps else None,
    }


def cost(rows: Sequence[Row]) -> dict[str, Any]:
    """Generated tokens by purpose and seconds by phase, over the run."""

    def sums(prefix: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for row in rows:
            for name, value in row.items():
                if name.startswith(prefix) and _is_number(value):
                    short = name.removeprefix(prefix)
                    found[short] = found.get(short, 0.0) + value
        return found

    seconds = sums("time/")
    total = seconds.pop("step_s", 0.0)
    by_phase = {name.removesuffix("_s"): value for name, value in seconds.items()}
    phases = sorted(by_phase.items(), key=lambda pair: -pair[1])
    return {
        "tokens": [(k, round(v)) for k, v in sorted(sums("tokens/").items())],
        "seconds": [(name, round(value, 2)) for name, value in phases],
        "total_seconds": round(total, 2),
    }


def warnings(run: Path) -> list[dict[str, Any]]:
    """What the run warned of, each once, with the step at which it first did."""
    return [{"step": step, "text": text} for step, text in read_warnings(run)]


def _done(run: Path) -> dict[str, Any]:
    try:
        done = json.loads((run / "done.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return done if isinstance(done, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
