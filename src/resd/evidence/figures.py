"""The pictures of the experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resd.errors import UserError
from resd.evidence.registry import Panel
from resd.evidence.results import Result
from resd.evidence.statistics import by_dialect, effect
from resd.report.plot import COLOURS, DPI, STYLE, replacing

_HEIGHT, _WIDTH = 3.6, 4.2
_LABELS = {
    "mean": "mean@n, test split",
    "rollouts": "training rollouts",
    "tokens": "generated tokens, of every purpose",
    "seconds": "seconds of training, one core",
    "step": "step",
    "playbook/entries": "lessons in the playbook",
    "playbook/precision": "precision of the playbook",
    "playbook/recall": "recall of the playbook",
}


def save_figure(result: Result, file: Path) -> None:
    """Draw an experiment and write it.

    Raises:
        UserError: no run holds what the picture shows.
    """
    spec = result.experiment.figure
    assert spec is not None
    draw: Callable[[Result], Figure] = {
        "curves": _curves,
        "bars": _bars,
        "dial": _dial,
        "phases": _phases,
        "tokens": _by_word,
    }[spec.kind]
    with style.context(["default", STYLE]):
        figure = draw(result)
        with replacing(file) as scratch:
            figure.savefig(scratch, format="png", dpi=DPI, metadata={"Software": None})


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(_WIDTH * panels, _HEIGHT), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    for one in axes:
        one.grid(True)
        one.set_axisbelow(True)
        one.tick_params(length=0)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    return figure, axes


def _colours(result: Result) -> dict[str, str]:
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(result.runs)}


def _curves(result: Result) -> Figure:
    """A panel an axis: the median over dialects, a band over their middle half."""
    spec = result.experiment.figure
    assert spec is not None
    figure, axes = _figure(len(spec.panels))
    drawn = 0
    for panel, one in zip(spec.panels, axes, strict=True):
        for label, colour in _colours(result).items():
            points = median_curve(result, label, panel)
            if not points:
                continue
            drawn += 1
            x, low, middle, high = np.array(points).T
            one.plot(x, middle, color=colour, lw=2, label=label)
            one.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        one.set_xlabel(_LABELS.get(panel.x, panel.x))
        one.set_ylabel(panel.label or _LABELS.get(panel.y, panel.y))
    if not drawn:
        raise UserError("no run holds what the picture shows")
    _share_legend(figure, axes)
    return figure


def median_curve(
    result: Result, label: str, panel: Panel
) -> list[tuple[float, float, float, float]]:
    """x, quartile, median and quartile over dialects, at the steps that every run has.

    Along an axis on which runs differ (tokens, seconds) a step stands at its median.
    """
    xs: dict[float, list[float]] = {}
    ys: dict[float, dict[tuple[int, int], float]] = {}
    runs = result.runs[label]
    for place, run in runs.items():
        steps = [step for step, _ in run.curve("step", panel.y)]
        for step, (x, y) in zip(steps, run.curve(panel.x, panel.y), strict=True):
            xs.setdefault(step, []).append(x)
            ys.setdefault(step, {})[place] = y
    points = []
    for step in sorted(step for step, found in ys.items() if len(found) == len(runs)):
        values = list(by_dialect(ys[step]).values())
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        points.append((median(xs[step]), float(low), float(middle), float(high)))
    return points


def _bars(result: Result) -> Figure:
    """A row a variant: a dot a dialect, the median with its interval."""
    spec = result.experiment.figure
    assert spec is not None
    figure, axes = _figure(len(spec.panels))
    figure.set_figheight(max(_HEIGHT, 0.45 * len(result.runs) + 1))
    drawn = 0
    for panel, one in zip(spec.panels, axes, strict=True):
        for row, (label, colour) in enumerate(_colours(result).items()):
            values = list(result.values(label, panel.y).values())
            if not values:
                continue
            drawn += 1
            found = effect(values)
            one.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, ms=4, mew=0)
            one.plot([found.low, found.high], [row, row], color=colour, lw=2)
            one.plot([found.median], [row], "D", color=colour, ms=7)
        one.set_xlabel(panel.label or _LABELS.get(panel.y, panel.y))
        one.set_yticks(range(len(result.runs)), list(result.runs))
        one.set_ylim(len(result.runs) - 0.5, -0.5)
        if one is not axes[0]:
            one.set_yticklabels([])
    if not drawn:
        raise UserError("no run holds what the picture shows")
    return figure


def _dial(result: Result) -> Figure:
    """A metric against what the variants differ in, a line a method."""
    spec = result.experiment.figure
    assert spec is not None
    figure, axes = _figure(len(spec.panels))
    lines: dict[str, list[tuple[float, str]]] = {}
    for variant in result.experiment.variants:
        if variant.x is not None:
            lines.setdefault(variant.line or "", []).append((variant.x, variant.label))
    drawn = 0
    for panel, one in zip(spec.panels, axes, strict=True):
        for (name, places), colour in zip(lines.items(), COLOURS, strict=False):
            points = []
            for x, label in sorted(places):
                values = list(result.values(label, panel.y).values())
                if values:
                    found = effect(values)
                    points.append((x, found.low, found.median, found.high))
            if points:
                drawn += 1
                x_axis, low, middle, high = np.array(points).T
                one.plot(x_axis, middle, "o-", color=colour, lw=2, label=name)
                one.fill_between(x_axis, low, high, color=colour, alpha=0.15, lw=0)
        one.set_xlabel(spec.x_label)
        one.set_ylabel(panel.label or _LABELS.get(panel.y, panel.y))
    if not drawn:
        raise UserError("no run holds what the picture shows")
    _share_legend(figure, axes)
    return figure


def _phases(result: Result) -> Figure:
    """Seconds of a step by phase, a row a variant."""
    figure, (one,) = _figure(1)
    figure.set_size_inches(2 * _WIDTH, max(_HEIGHT, 0.5 * len(result.runs) + 1))
    means = {label: phase_seconds(result, label) for label in result.runs}
    phases = list(dict.fromkeys(phase for row in means.values() for phase in row))
    left = np.zeros(len(means))
    for i, phase in enumerate(phases):
        widths = np.array([row.get(phase, 0.0) for row in means.values()])
        colour = COLOURS[i % len(COLOURS)]
        one.barh(list(means), widths, left=left, label=phase, color=colour, alpha=0.85)
        left += widths
    one.invert_yaxis()
    one.set_xlabel("seconds a step, one core")
    _share_legend(figure, [one])
    return figure


def phase_seconds(result: Result, label: str) -> Mapping[str, float]:
    """Median over runs of the mean seconds that a step spends in each phase."""
    found: dict[str, list[float]] = {}
    for run in result.runs[label].values():
        for phase, value in run.phases().items():
            found.setdefault(phase, []).append(value)
    return {phase: median(values) for phase, values in found.items()}


def _by_word(result: Result) -> Figure:
    """Mean loss of a token by its place in the response: tokens that are wrong, and the others."""
    figure, axes = _figure(len(result.runs))
    drawn = 0
    for one, label in zip(axes, result.runs, strict=True):
        rows = [row for run in result.runs[label].values() for row in run.by_word]
        for wrong, colour in ((True, COLOURS[1]), (False, COLOURS[0])):
            points = _mean_by_place([row for row in rows if row["wrong"] is wrong])
            if points:
                drawn += 1
                x, y = zip(*points, strict=True)
                one.plot(x, y, "o-", color=colour, label="wrong" if wrong else "right")
        one.set_title(label)
        one.set_xlabel("place in the response, in words")
        one.set_ylabel("loss of a token, in nats")
    if not drawn:
        raise UserError("no run holds what the picture shows")
    _share_legend(figure, axes)
    return figure


def _mean_by_place(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    loss: dict[int, float] = {}
    tokens: dict[int, float] = {}
    for row in rows:
        loss[row["word"]] = loss.get(row["word"], 0.0) + row["loss"]
        tokens[row["word"]] = tokens.get(row["word"], 0.0) + row["tokens"]
    return [(place, loss[place] / tokens[place]) for place in sorted(loss)]


def _share_legend(figure: Figure, axes: Sequence[Any]) -> None:
    found: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside upper center",
        ncols=min(5, len(found)),
        frameon=False,
    )
