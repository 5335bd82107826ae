"""A comparison as a table, for the terminal and as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resd import __version__
from resd.compare.plan import Run
from resd.errors import terminal_safe
from resd.report.results import THRESHOLD, RunResult, Summary

_NONE = "-"
_EXPENDABLE = ("each seed", "s / run", "rollouts", "seeds", "playbook precision", "min", "max")


def make_rows(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Headings, a row a variant and a trivial strategy; a column that nobody fills is left out."""
    n = samples_name(summaries)
    columns = [
        ("variant", [summary.variant.label for summary in summaries]),
        ("seeds", [_seeds(summary) for summary in summaries]),
        ("rollouts", [_number(summary.median_of("rollouts"), 0) for summary in summaries]),
        (f"mean@{n}", [_number(s.median_final("mean")) for s in summaries]),
        ("min", [_number(min(s.finals, default=None)) for s in summaries]),
        ("max", [_number(max(s.finals, default=None)) for s in summaries]),
        (f"best@{n}", [_number(s.median_final("best")) for s in summaries]),
        ("each seed", [" ".join(map(_number, s.finals)) or _NONE for s in summaries]),
        (f"rollouts to {THRESHOLD}", [_number(s.rollouts_to_threshold, 0) for s in summaries]),
        ("s / run", [_number(s.median_of("seconds"), 0) for s in summaries]),
    ]
    precision = [_number(summary.median_of("precision")) for summary in summaries]
    if any(value != _NONE for value in precision):
        columns.insert(-1, ("playbook precision", precision))
    groups = dict.fromkeys(name for s in summaries for r in s.results for name in r.retention)
    for group in groups:
        kept = [[r.retention[group] for r in s.results if group in r.retention] for s in summaries]
        shown = [_number(median(found) if found else None) for found in kept]
        columns.insert(-1, (f"kept: {group}", shown))
    rows = [list(row) for row in zip(*(values for _, values in columns), strict=True)]
    names = [name for name, _ in columns]
    for label, values in _baselines(summaries).items():
        cells = {"variant": f"({label})", f"mean@{n}": _number(median(values))}
        rows.append([cells.get(name, _NONE) for name in names])
    return names, rows


def _baselines(summaries: Sequence[Summary]) -> dict[str, list[float]]:
    """What trivial strategies solve, a value a run."""
    found: dict[str, list[float]] = {}
    for result in (result for summary in summaries for result in summary.results):
        for name, value in result.baselines.items():
            found.setdefault(name, []).append(value)
    return found


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The table in Markdown, aligned for who reads it as it is."""
    names, rows = make_rows(summaries)
    cells = [[_escaped(cell) for cell in row] for row in (names, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        "| " + " | ".join(_padded(row, widths)) + " |" for row in (cells[0], dashes, *cells[1:])
    ]
    return "\n".join(lines) + "\n"


def rich_table(summaries: Sequence[Summary], console: Console) -> Table:
    """The table for a terminal; one too narrow for it goes without what can be missed most."""
    names, rows = make_rows(summaries)
    spare = [name for name in _EXPENDABLE if name in names]
    unlimited = console.options.update(width=10_000)
    table = _rich(summaries, names, rows)
    while spare and console.measure(table, options=unlimited).maximum > console.width:
        at = names.index(spare.pop(0))
        names, rows = names[:at] + names[at + 1 :], [row[:at] + row[at + 1 :] for row in rows]
        table = _rich(summaries, names, rows)
        table.caption = Text("a wider terminal shows more columns, table.md all of them", "dim")
        table.caption_justify = "left"
    return table


def _rich(summaries: Sequence[Summary], names: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=Text(title(summaries), "bold"), title_justify="left", box=SIMPLE_HEAD)
    for i, name in enumerate(names):
        # A heading may break where it has a space, a number never.
        heading = Text(name.replace(" to ", "\nto ").replace("playbook ", "playbook\n"))
        if i:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, min_width=7)
    for row in rows:
        table.add_row(*(Text(terminal_safe(cell)) for cell in row))
    return table


def title(summaries: Sequence[Summary]) -> str:
    """Task, model and number of seeds."""
    seeds = {len(s.results) for s in summaries if s.results} or {0}
    few, many = min(seeds), max(seeds)
    count = f"{few} to {many}" if few < many else str(many)
    return f"{task_name(summaries)}, {model_name(summaries)}, {count} seed{'s' * (many != 1)}"


def task_name(summaries: Sequence[Summary]) -> str:
    """What all variants train on, without its path."""
    names = {summary.task for summary in summaries}
    return f"task {names.pop().rpartition(':')[2]}" if len(names) == 1 else "several tasks"


def model_name(summaries: Sequence[Summary]) -> str:
    """What all variants start from, without its path."""
    names = {summary.model.rstrip("/") for summary in summaries}
    return f"model {names.pop().rpartition('/')[2]}" if len(names) == 1 else "several models"


def samples_name(summaries: Sequence[Summary]) -> str:
    """The n of mean@n: a number if all variants share it."""
    numbers = set[int]().union(*(summary.samples for summary in summaries))
    return str(numbers.pop()) if len(numbers) == 1 else "n"


def notes(summaries: Sequence[Summary]) -> list[str]:
    """What the columns mean."""
    n = samples_name(summaries)
    return [
        f"mean@{n}, best@{n}: accuracy on the test split after the last step, the median over "
        f"seeds; min, max, each seed: mean@{n} of single runs.",
        f"rollouts to {THRESHOLD}: training rollouts until the median mean@{n} first reaches "
        f"{THRESHOLD}.",
        "s / run: seconds of training steps, without evaluation.",
        *(
            ["kept: what has nothing to do with the task, after the last step, the median."]
            if any(result.retention for s in summaries for result in s.results)
            else []
        ),
        *(
            ["in brackets: trivial strategies on the same problems."]
            if _baselines(summaries)
            else []
        ),
    ]


def failure_lines(summaries: Sequence[Summary]) -> list[str]:
    """Runs that have no result, and why."""
    return [
        f"no result: {summary.variant.label}, seed {seed}: {reason}"
        for summary in summaries
        for seed, reason in summary.failures.items()
    ]


def as_json(summaries: Sequence[Summary], runs: Sequence[Run]) -> dict[str, Any]:
    """Everything: settings, summary, and the curve of each run."""
    configs = {run.variant.label: run.config for run in reversed(runs)}
    return {
        "format": 1,
        "resd": __version__,
        "title": title(summaries),
        "variants": [
            {
                "label": summary.variant.label,
                "settings": dict(summary.variant.settings),
                "config": configs[summary.variant.label].model_dump(
                    mode="json", exclude={"seed", "output"}
                ),
                "summary": _summary(summary),
                "runs": [_run(result) for result in summary.results],
                "failures": [{"seed": s, "reason": r} for s, r in summary.failures.items()],
            }
            for summary in summaries
        ],
    }


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "seeds": len(summary.results),
        "rollouts": summary.median_of("rollouts"),
        "mean": summary.median_final("mean"),
        "mean_min": min(summary.finals, default=None),
        "mean_max": max(summary.finals, default=None),
        "best": summary.median_final("best"),
        "case_mean": summary.median_final("case_mean"),
        "case_best": summary.median_final("case_best"),
        "rollouts_to_half": summary.rollouts_to_threshold,
        "playbook_precision": summary.median_of("precision"),
        "playbook_recall": summary.median_of("recall"),
        "seconds": summary.median_of("seconds"),
        "median_curve": [asdict(point) for point in summary.median_curve],
    }


def _run(result: RunResult) -> dict[str, Any]:
    return {
        "seed": result.seed,
        "directory": result.path.name,
        "samples": result.samples,
        "rollouts": result.rollouts,
        "seconds": round(result.seconds, 3),
        "playbook_precision": result.precision,
        "playbook_recall": result.recall,
        "counts": dict(result.counts),
        "baselines": dict(result.baselines),
        "retention": dict(result.retention),
        "curve": [asdict(point) for point in result.curve],
    }


def _seeds(summary: Summary) -> str:
    done, failed = len(summary.results), len(summary.failures)
    return f"{done} of {done + failed}" if failed else str(done)


def _number(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")
