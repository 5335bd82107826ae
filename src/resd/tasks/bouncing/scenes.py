"""Scenes by level, seeded; one whose outcome hangs on a hair is rejected."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from resd.tasks.bouncing.simulator import contact_planes, polygon, simulate, trajectory, wall_limits

LEVELS: Mapping[str, tuple[tuple[int, int], tuple[float, float]]] = {
    # balls, speeds in units a second
    "easy": ((3, 3), (400.0, 600.0)),
    "medium": ((4, 5), (600.0, 800.0)),
}
TIMES = tuple(round(0.1 * i, 1) for i in range(1, 16))  # seconds
_CENTRE, _DIAMETER, _RADIUS = (750, 750), 750, 20.0
_MARGIN = 5.0  # units between two balls, or a ball and a wall, at the start
_NUDGE = 1e-3  # units: a start moved by so much ...
_CALM = 1.0  # ... must move no ball by more than so much, a fiftieth of the tolerance
_NUDGES = 4


@lru_cache(maxsize=4096)
def make_scene(level: str, name: str) -> dict[str, Any]:
    """The scene of a level that `name` stands for; the same on every machine.

    In it balls hit each other, and no ball moves by more than 1 unit at any asked time when the
    start is moved by up to a thousandth of a unit.
    """
    for attempt in range(10_000):
        rng = random.Random(f"bouncing {level} {name} {attempt}")
        scene = _draw(level, rng)
        if scene is not None and _is_lively(scene) and is_calm(scene, rng):
            return scene
    raise AssertionError("no calm scene in 10,000 attempts")


def is_calm(scene: Mapping[str, Any], rng: random.Random) -> bool:
    """Whether the outcome does not hang on a hair."""
    reference = simulate(scene, TIMES)
    for _ in range(_NUDGES):
        nudged = [
            {**ball, "position": [x + rng.uniform(-_NUDGE, _NUDGE) for x in ball["position"]]}
            for ball in scene["balls"]
        ]
        moved = simulate({**scene, "balls": nudged}, TIMES) - reference
        if np.linalg.norm(moved, axis=2).max() > _CALM:
            return False
    return True


def _is_lively(scene: Mapping[str, Any]) -> bool:
    return any(event.other is not None for event in trajectory(scene, TIMES[-1])[1])


def _draw(level: str, rng: random.Random) -> dict[str, Any] | None:
    """A random scene; None if balls overlap or stick out."""
    (fewest, most), speeds = LEVELS[level]
    box = {"center": list(_CENTRE), "diameter": _DIAMETER, "sides": rng.randint(3, 6)}
    box["rotation"] = 0.0
    balls: list[dict[str, Any]] = []
    for _ in range(rng.randint(fewest, most)):
        angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(*speeds)
        ball = {
            "position": [rng.randint(375, 1125), rng.randint(375, 1125)],
            "velocity": [round(speed * math.cos(angle), 2), round(speed * math.sin(angle), 2)],
            "radius": _RADIUS,
            "sides": rng.randint(3, 6),
            "density": 1.0,
        }
        if not _fits(box, balls, ball):
            return None
        balls.append(ball)
    return {"boxes": [box], "balls": balls}


def _fits(box: Mapping[str, Any], others: Sequence[Mapping[str, Any]], ball: Any) -> bool:
    shape, at = polygon(ball["sides"], ball["radius"]), np.array(ball["position"], dtype=float)
    normals, limits = wall_limits(box, shape)
    if (normals @ at - limits).min() < _MARGIN:
        return False
    for other in others:
        normals, limits = contact_planes(polygon(other["sides"], other["radius"]), shape)
        gap = normals @ (at - np.array(other["position"], dtype=float)) - limits
        if gap.max() < _MARGIN:
            return False
    return True
