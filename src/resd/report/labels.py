"""Names at the ends of curves, moved apart so that none covers another."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

_SIZE = 11.0
_GAP = 5.0
_LEADER, _SPACE = 18.0, 6.0


@dataclass(frozen=True)
class End:
    """Where a curve ends, in data coordinates, and what is written there."""

    name: str
    value: str
    x: float
    y: float
    colour: str


def write_line(
    figure: Figure, y: float, text: str, size: float, colour: str, weight: str = "normal"
) -> None:
    """A line of text over the whole width, small enough to fit."""
    line = figure.text(0.015, y, text, size=size, color=colour, weight=weight, va="center")
    line.set_fontsize(size * min(1.0, 0.97 * figure.bbox.width / _extent(figure, line).width))


def label_ends(figure: Figure, axes: Any, ends: Sequence[End]) -> None:
    """Write names right of the axes, at the height of the curves' ends as far as there is room.

    The axes give up the width that the longest name needs.
    """
    box, canvas = axes.get_position(), figure.bbox
    names = [
        figure.text(0, 0, _wrapped(end), color=_darker(end.colour), size=_SIZE, va="center")
        for end in ends
    ]
    extents = [_extent(figure, name) for name in names]
    needed = sum(extent.height + _GAP for extent in extents)
    shrink = min(1.0, (box.height + 0.075) * canvas.height / max(needed, 1.0))
    width = max((extent.width for extent in extents), default=0.0) * shrink
    right = max(0.5, 1 - (width + _LEADER + 3 * _SPACE) / canvas.width)
    axes.set_position((box.x0, box.y0, right - box.x0, box.height))
    to_figure = axes.transData + figure.transFigure.inverted()
    points = [tuple(map(float, to_figure.transform((end.x, end.y)))) for end in ends]
    heights = [(extent.height + _GAP) * shrink / canvas.height for extent in extents]
    places = spread([y for _, y in points], heights, box.y0 - 0.05, box.y1 + 0.025)
    begin = right + _LEADER / canvas.width
    for name, end, (x, y), place in zip(names, ends, points, places, strict=True):
        name.set_position((begin + _SPACE / canvas.width, place))
        name.set_fontsize(_SIZE * shrink)
        leader = Line2D(
            [x, right, begin],
            [y, y, place],
            transform=figure.transFigure,
            color=end.colour,
            lw=1.0,
            ls=(0, (1, 2)),
        )
        figure.add_artist(leader)


def spread(
    wanted: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """Centres as near to the wanted ones as can be, without overlap.

    Neighbours that would overlap form a block around the mean of what they want; blocks that
    touch become one (isotonic regression).

    Args:
        wanted: centre of each label.
        heights: height of each.
        low: lower end of the room for labels.
        high: upper end; labels that need more room than there is go beyond it.
    """

    def height(block: Sequence[int]) -> float:
        return sum(heights[i] for i in block)

    def bottom(block: Sequence[int]) -> float:
        below = [height(block[:k]) + heights[i] / 2 for k, i in enumerate(block)]
        mean = sum(wanted[i] - b for i, b in zip(block, below, strict=True)) / len(block)
        return max(low, min(mean, high - height(block)))

    blocks: list[list[int]] = []
    for i in sorted(range(len(wanted)), key=lambda i: (wanted[i], -i)):
        blocks.append([i])
        while len(blocks) > 1 and bottom(blocks[-2]) + height(blocks[-2]) > bottom(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    places = [0.0] * len(wanted)
    for block in blocks:
        edge = bottom(block)
        for i in block:
            places[i] = edge + heights[i] / 2
            edge += heights[i]
    return places


def _darker(colour: str) -> tuple[float, ...]:
    """Thin letters need more contrast than a bold line."""
    return tuple(0.75 * part for part in to_rgb(colour))


def _wrapped(end: End) -> str:
    lines = textwrap.wrap(end.name, 20)
    shortened = [*lines[:2], f"{lines[2][:19]}…"] if len(lines) > 3 else lines
    return "\n".join(shortened) + f": {end.value}"


def _extent(figure: Figure, text: Any) -> Any:
    return text.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
