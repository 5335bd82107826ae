"""The picture of a comparison: validation accuracy against rollouts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from resd.report.labels import End, label_ends, write_line
from resd.report.results import Summary
from resd.report.table import samples_name, title

# Okabe and Ito's palette, without its yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_WIDTH, _HEIGHT, DPI = 8.0, 4.5, 200
_LEFT, _BOTTOM, _TOP = 0.098, 0.13, 0.83
_INK, _FAINT = "#222222", "#666666"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": "#aaaaaa",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    # The same data give the same file, bit for bit.
    "svg.hashsalt": "resd",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class _Look:
    colour: str
    dashes: Any
    order: float


def save_pictures(summaries: Sequence[Summary], png: Path, svg: Path) -> None:
    """Draw and write both files.

    Args:
        summaries: at least one with a result; those without are left out.
        png: the one for a README.
        svg: the one for print.
    """
    with style.context(["default", STYLE]):
        figure = draw([summary for summary in summaries if summary.results])
        with replacing(png) as scratch:
            figure.savefig(scratch, format="png", dpi=DPI, metadata={"Software": None})
        with replacing(svg) as scratch:
            figure.savefig(scratch, format="svg", metadata={"Date": None, "Creator": "resd"})


def draw(summaries: Sequence[Summary]) -> Figure:
    """The figure: a bold median, a thin line a seed, a band between them."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_LEFT, _BOTTOM, 0.7, _TOP - _BOTTOM))
    # The first variant lies on top.
    looks = [
        _Look(COLOURS[i % len(COLOURS)], _DASHES[i // len(COLOURS) % len(_DASHES)], 9 - i / 100)
        for i in range(len(summaries))
    ]
    for summary, look in zip(summaries, looks, strict=True):
        _draw_variant(axes, summary, look)
    _scale_x(axes, summaries)
    _scale_y(axes, summaries)
    axes.set_ylabel(f"mean@{samples_name(summaries)}, test split")
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    write_line(figure, 0.945, f"Validation accuracy: {title(summaries)}", 13, _INK, "bold")
    write_line(figure, 0.882, _how_to_read(summaries), 9.5, _FAINT)
    label_ends(figure, axes, _ends(summaries, looks))
    return figure


def _draw_variant(axes: Any, summary: Summary, look: _Look) -> None:
    for result in summary.results if len(summary.results) > 1 else ():
        x, y = [p.rollouts for p in result.curve], [p.mean for p in result.curve]
        axes.plot(x, y, color=look.colour, lw=0.8, alpha=0.35, zorder=look.order - 2)
    curve = summary.median_curve
    if not curve:
        return
    x = [point.rollouts for point in curve]
    if len(summary.results) > 1:
        low, high = zip(*(_band(summary, point.step) for point in curve), strict=True)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.13, lw=0, zorder=look.order - 4)
    y = [point.mean for point in curve]
    axes.plot(
        x,
        y,
        color=look.colour,
        ls=look.dashes,
        lw=2.6,
        zorder=look.order,
        solid_capstyle="round",
        clip_on=False,
    )
    axes.plot(x[-1:], y[-1:], "o", color=look.colour, ms=6, zorder=look.order, clip_on=False)


def _band(summary: Summary, step: int) -> tuple[float, float]:
    """Quartiles of four seeds or more, else the least and the greatest."""
    values = [point.mean for r in summary.results for point in r.curve if point.step == step]
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _how_to_read(summaries: Sequence[Summary]) -> str:
    seeds = max(len(summary.results) for summary in summaries)
    if seeds < 2:
        return "one seed, with its last value"
    band = "middle half of the seeds" if seeds >= 4 else "least to greatest"
    return f"bold: median over seeds, with its last value; thin: each seed; band: {band}"


def _scale_x(axes: Any, summaries: Sequence[Summary]) -> None:
    """Linear, or logarithmic from the first evaluation on if budgets differ more than fourfold."""
    curves = [result.curve for summary in summaries for result in summary.results]
    last = max(curve[-1].rollouts for curve in curves)
    ends = [end for s in summaries if (end := s.median_of("rollouts"))]
    axes.set_xlabel("training rollouts")
    if ends and max(ends) > 4 * min(ends):
        first = min(point.rollouts for curve in curves for point in curve if point.rollouts > 0)
        axes.set_xscale("symlog", linthresh=first, linscale=0.4)
        axes.xaxis.set_major_locator(FixedLocator([0, *_ticks(first, last)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("training rollouts (logarithmic)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _count(x)))
    axes.set_xlim(0, max(last, 1))


def _ticks(first: float, last: float) -> list[float]:
    """1, 2, 5, 10, ... between two numbers; powers of ten alone if that makes too many."""
    powers = range(len(str(int(first))) - 1, len(str(int(last))))
    fine = [float(digit * 10**power) for power in powers for digit in (1, 2, 5)]
    inside = [tick for tick in fine if first <= tick <= last]
    return inside if len(inside) <= 9 else [t for t in inside if str(int(t)).startswith("1")]


def _count(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _scale_y(axes: Any, summaries: Sequence[Summary]) -> None:
    """From 0 to 1, unless nothing comes far."""
    most = max(point.mean for s in summaries for result in s.results for point in result.curve)
    top = 1.0 if most == 0 or most > 0.6 else most * 1.15
    axes.set_ylim(-0.015 * top, 1.015 * top)


def _ends(summaries: Sequence[Summary], looks: Sequence[_Look]) -> list[End]:
    """Names with the final median, at the last point of each median."""
    ends = []
    for summary, look in zip(summaries, looks, strict=True):
        if curve := summary.median_curve:
            value, last = summary.median_final("mean"), curve[-1]
            name = summary.variant.label
            ends.append(End(name, f"{value:.2f}", last.rollouts, last.mean, look.colour))
    return ends


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch file that becomes `path` once it is complete."""
    scratch = path.with_name(f".{path.name}.tmp")
    yield scratch
    os.replace(scratch, path)
