"""What the student is told: everything that the answer depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from resd.sandbox import Limits
from resd.tasks.bouncing.scenes import TIMES
from resd.tasks.bouncing.simulator import polygon

TOLERANCE = 50.0  # units: mean distance over balls, at every time
FUNCTION = "predict_position"

_RULES = """Write a Python function that predicts where bouncing balls will be.

The world is a plane, in units and seconds. There is no gravity, no friction and no drag.
- One box that does not move: a regular polygon, the balls are inside.
- Balls are regular polygons, not circles. They move, but they never rotate.
- All bounces are perfectly elastic. A ball bounces when its polygon touches a wall, or another \
ball's polygon.
- Off a wall, the velocity along the wall's normal turns round.
- Two balls push each other along the normal of the touching edge, as masses do; mass is \
proportional to the polygon's area.

Define {function}(t): it gets seconds as a float, and returns a list with [x, y] of the centre of \
each ball, in the order below. It is called for {times}, all in one process. At each of these \
times \
the mean distance over the balls to the true centres must be at most {tolerance:g} units.
It may import from Python's standard library only, has no files and no network, and gets \
{seconds:g} s of CPU time and {memory} MiB in all. Give the whole program in a fenced block \
(```python). The last closed block after your thinking counts.

"""


def prompt_text(scene: Mapping[str, Any], limits: Limits) -> str:
    """The prompt of a scene; what all share stands first."""
    rules = _RULES.format(
        function=FUNCTION,
        times=f"t = {', '.join(map(str, TIMES))}",
        tolerance=TOLERANCE,
        seconds=limits.cpu_seconds,
        memory=limits.memory_mb,
    )
    box = scene["boxes"][0]
    corners = polygon(box["sides"], box["diameter"] / 2, math.radians(box["rotation"]))
    lines = [f"The box has its corners at {_points(corners, box['center'])}."]
    for i, ball in enumerate(scene["balls"], start=1):
        (x, y), (vx, vy) = ball["position"], ball["velocity"]
        shape = _points(polygon(ball["sides"], ball["radius"]), (0, 0))
        lines.append(
            f"Ball {i}: centre ({x}, {y}), velocity ({vx}, {vy}); {ball['sides']} corners, from "
            f"the centre at {shape}."
        )
    return rules + "\n".join(lines)


def _points(corners: Any, centre: Any) -> str:
    shifted = [(x + centre[0], y + centre[1]) for x, y in corners]
    text = ", ".join(f"({x:.3f}, {y:.3f})" for x, y in shifted)
    return text.replace("-0.000", "0.000")
