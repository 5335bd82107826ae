"""The page of a comparison: curves, the table, seeds in pairs, and each run's page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path
from statistics import mean
from typing import Any

from resd.errors import UserError

# Values of a run's last evaluation that are held against each other, and what they are called.
_VALUES = {"mean": "mean@n", "best": "best@n"}
_CURVES = (
    ("mean", "Accuracy: mean@n, median over seeds"),
    ("best", "best@n, median over seeds"),
    ("case_mean", "Test cases passed: mean@n, median over seeds"),
)


def is_comparison(folder: Path) -> bool:
    """Whether `resd compare` wrote the directory."""
    return (folder / "results.json").is_file() and not (folder / "config.toml").is_file()


def comparison_data(folder: Path) -> dict[str, Any]:
    """What the page of a comparison shows.

    Args:
        folder: what `resd compare` wrote.

    Raises:
        UserError: its results cannot be read.
    """
    file = folder / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        variants = results["variants"]
        return {
            "comparison": True,
            "name": folder.resolve().name,
            "title": str(results["title"]),
            "curves": [
                _chart(title, _lines(variants, key))
                for key, title in _CURVES
                if not _as_tasks(variants, key)
            ],
            "rows": [_row(variant) for variant in variants],
            "pairs": pairs(variants),
            "runs": [_run(v["label"], run, folder) for v in variants for run in v["runs"]],
            "failures": [
                [v["label"], failure["seed"], failure["reason"]]
                for v in variants
                for failure in v["failures"]
            ],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {error!r}"[:300]) from None


def _chart(title: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"title": title, "unit": "fraction", "kind": "line", "x": "rollouts", "lines": lines}


def _lines(variants: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Of each variant the median, and faint beside it each seed."""
    lines = []
    for place, variant in enumerate(variants):
        curves = [(None, variant["summary"]["median_curve"])]
        curves += [(run["seed"], run["curve"]) for run in variant["runs"]]
        for seed, curve in curves:
            if curve:
                lines.append(
                    {
                        "name": variant["label"],
                        "faint": seed is not None,
                        "colour": place,
                        "x": [point["rollouts"] for point in curve],
                        "y": [point[key] for point in curve],
                    }
                )
    return lines


def _as_tasks(variants: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether the fraction of cases says the same as that of whole problems."""
    points = [p for variant in variants for run in variant["runs"] for p in run["curve"]]
    return key == "case_mean" and all(point["case_mean"] == point["mean"] for point in points)


def _row(variant: Mapping[str, Any]) -> list[Any]:
    summary = variant["summary"]
    names = ("seeds", "rollouts", "mean", "mean_min", "mean_max", "best", "rollouts_to_half")
    return [variant["label"], *(summary[name] for name in (*names, "seconds"))]


def pairs(variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each variant against the first one, seed by seed, on the last evaluations."""
    if len(variants) < 2:
        return []
    first = {run["seed"]: run["curve"][-1] for run in variants[0]["runs"]}
    found = []
    for variant in variants[1:]:
        last = {run["seed"]: run["curve"][-1] for run in variant["runs"]}
        seeds = sorted(first.keys() & last.keys())
        for key, name in _VALUES.items():
            differences = [last[seed][key] - first[seed][key] for seed in seeds]
            found.append(
                {
                    "name": f"{variant['label']} minus {variants[0]['label']}",
                    "value": name,
                    "seeds": seeds,
                    "differences": differences,
                    "mean": mean(differences) if differences else None,
                    "sign": sign_test(differences),
                }
            )
    return found


def sign_test(differences: Sequence[float]) -> float | None:
    """The exact two-sided sign test: how likely so uneven a split is by chance; ties left out."""
    up, down = (sum(d * sign > 0 for d in differences) for sign in (1, -1))
    n = up + down
    if n == 0:
        return None
    tail = sum(comb(n, k) for k in range(max(up, down), n + 1))
    return min(1.0, 2 * tail / float(2**n))


def _run(label: str, run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    place = str(run["directory"])
    last = run["curve"][-1]
    page = folder / place / "report.html"
    return {
        "label": label,
        "seed": run["seed"],
        "directory": place,
        "page": f"{place}/report.html" if page.is_file() else None,
        "mean": last["mean"],
        "best": last["best"],
    }


def write_pages(folder: Path, write: Callable[[Path, Path], None]) -> None:
    """Write the page of each run of a comparison that has none since the run ended.

    Raises:
        UserError: the results cannot be read.
    """
    for run in comparison_data(folder)["runs"]:
        place = folder / run["directory"]
        page, done = place / "report.html", place / "done.json"
        fresh = page.is_file() and done.is_file() and page.stat().st_mtime >= done.stat().st_mtime
        if done.is_file() and not fresh:
            write(place, page)
