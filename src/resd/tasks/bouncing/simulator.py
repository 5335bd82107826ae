"""Exact physics of polygon balls in a regular polygon box: from event to event, without time steps.

Nothing rotates, so a ball and a wall meet when the ball's farthest vertex reaches the wall, and two
balls meet when the difference of their centres enters the Minkowski sum of the one and the
mirrored other: both are linear in time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resd.errors import UserError

Array = NDArray[np.float64]
_EPSILON = 1e-9
_MAX_EVENTS = 100_000


@dataclass(frozen=True)
class Event:
    """A bounce at `time`: of `ball` off a wall, or off another ball (`other`)."""

    time: float
    ball: int
    other: int | None


@dataclass(frozen=True)
class Leg:
    """Centres and velocities, each `[n, 2]`, from `time` to the next leg."""

    time: float
    positions: Array
    velocities: Array


def polygon(sides: int, radius: float, rotation: float = 0.0) -> Array:
    """Vertices of a regular polygon around the origin, `[sides, 2]`, counter-clockwise."""
    angles = rotation + 2 * math.pi * np.arange(sides) / sides
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def simulate(scene: Mapping[str, Any], times: Sequence[float]) -> Array:
    """Positions of the balls' centres.

    Args:
        scene: `boxes` (one: center, diameter, sides, rotation) and `balls` (position, velocity,
            radius, sides, density). Lengths are units, velocities units a second.
        times: seconds from the start, in any order.

    Returns:
        `[T, n, 2]`, a row a time.

    Raises:
        UserError: the scene asks for what is not modelled, or a time is negative or not finite.
    """
    if not all(math.isfinite(t) and t >= 0 for t in times):
        raise UserError(f"times must be finite and not negative, found {list(times)!r:.80}")
    return positions_at(trajectory(scene, max(times, default=0.0))[0], times)


def positions_at(legs: Sequence[Leg], times: Sequence[float]) -> Array:
    """Centres `[T, n, 2]` at times, seconds, that the legs reach."""
    starts = [leg.time for leg in legs]
    rows = []
    for time in times:
        leg = legs[int(np.searchsorted(starts, time, side="right")) - 1]
        rows.append(leg.positions + leg.velocities * (time - leg.time))
    return np.array(rows).reshape(len(times), *legs[0].positions.shape)


def trajectory(
    scene: Mapping[str, Any], end: float, masses: Sequence[float] | None = None
) -> tuple[list[Leg], list[Event]]:
    """Legs between bounces, and the bounces, from 0 to `end` seconds.

    Args:
        scene: as for `simulate`.
        end: seconds.
        masses: of the balls; by default area times density.

    Raises:
        UserError: the scene asks for what is not modelled.
    """
    check_scene(scene)
    box, balls = scene["boxes"][0], scene["balls"]
    shapes = [polygon(ball["sides"], ball["radius"]) for ball in balls]
    mass = [ball_mass(ball) for ball in balls] if masses is None else list(masses)
    walls = [wall_limits(box, shape) for shape in shapes]
    pairs = {
        (i, j): contact_planes(shapes[i], shapes[j])
        for i in range(len(balls))
        for j in range(i + 1, len(balls))
    }
    at = np.array([ball["position"] for ball in balls], dtype=np.float64)
    velocity = np.array([ball["velocity"] for ball in balls], dtype=np.float64)
    now, legs = 0.0, [Leg(0.0, at.copy(), velocity.copy())]
    events: list[Event] = []
    while len(events) < _MAX_EVENTS:
        wait, first, other, normal = _next_bounce(at, velocity, walls, pairs)
        if now + wait > end:
            return legs, events
        at, now = at + velocity * wait, now + wait
        if other is None:
            velocity[first] -= 2 * (velocity[first] @ normal) * normal
        else:
            speed = (velocity[other] - velocity[first]) @ normal
            push = 2 * speed / (1 / mass[first] + 1 / mass[other])
            velocity[first] += push / mass[first] * normal
            velocity[other] -= push / mass[other] * normal
        legs.append(Leg(now, at.copy(), velocity.copy()))
        events.append(Event(now, first, other))
    raise UserError(f"the scene has more than {_MAX_EVENTS} bounces in {end:g} s")


def ball_mass(ball: Mapping[str, Any]) -> float:
    """Area of the polygon times density."""
    sides, radius = ball["sides"], ball["radius"]
    area = sides / 2 * radius**2 * math.sin(2 * math.pi / sides)
    return float(area * ball.get("density", 1.0))


def check_scene(scene: Mapping[str, Any]) -> None:
    """Refuse what is not modelled rather than simulate something else.

    Raises:
        UserError: gravity, friction, a rotating box or ball, lost energy, or not one box.
    """
    physics, boxes = scene.get("physics", {}), scene.get("boxes", [])
    if physics.get("gravity_enabled") or len(boxes) != 1:
        raise UserError("a scene has one box and no gravity")
    box = boxes[0]
    if box.get("friction") or box.get("rotation_speed") or box.get("restitution", 1.0) != 1.0:
        raise UserError("a box has no friction, does not rotate, and loses no energy")
    for ball in scene["balls"]:
        if ball.get("restitution", 1.0) != 1.0 or ball.get("rotation_affected"):
            raise UserError("balls lose no energy and do not rotate")


def wall_limits(box: Mapping[str, Any], shape: Array) -> tuple[Array, Array]:
    """Inward normals `[s, 2]`, and the least `normal . centre` a ball may have, `[s]`."""
    corners = polygon(box["sides"], box["diameter"] / 2, math.radians(box.get("rotation", 0.0)))
    edges = np.roll(corners, -1, axis=0) - corners
    normals = np.stack([-edges[:, 1], edges[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    places = ((corners + np.asarray(box["center"], dtype=np.float64)) * normals).sum(axis=1)
    return normals, places - (shape @ normals.T).min(axis=0)


def contact_planes(one: Array, other: Array) -> tuple[Array, Array]:
    """Outward normals of `one` plus mirrored `other`, and their distances from the origin."""
    edges = np.concatenate(
        [np.roll(one, -1, axis=0) - one, np.roll(-other, -1, axis=0) + other], axis=0
    )
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals, (one @ normals.T).max(axis=0) + (-other @ normals.T).max(axis=0)


def _next_bounce(
    at: Array,
    velocity: Array,
    walls: Sequence[tuple[Array, Array]],
    pairs: Mapping[tuple[int, int], tuple[Array, Array]],
) -> tuple[float, int, int | None, Array]:
    """Seconds until the next bounce, its ball, the other ball if there is one, and the normal."""
    best: tuple[float, int, int | None, Array] = (math.inf, 0, None, np.zeros(2))
    for i, (normals, limits) in enumerate(walls):
        closing, gaps = -(normals @ velocity[i]), normals @ at[i] - limits
        for k in map(int, np.flatnonzero(closing > _EPSILON)):
            wait = max(0.0, float(gaps[k] / closing[k]))
            if wait < best[0]:
                best = (wait, i, None, normals[k])
    for (i, j), (normals, limits) in pairs.items():
        closing = -(normals @ (velocity[j] - velocity[i]))
        gaps = normals @ (at[j] - at[i]) - limits
        entering, leaving = closing > _EPSILON, closing < -_EPSILON
        if not entering.any() or (gaps[~entering & ~leaving] > 0).any():
            continue
        waits = np.where(entering, gaps / np.where(entering, closing, 1.0), -math.inf)
        k = int(waits.argmax())
        wait = float(waits[k])
        out = (gaps[leaving] / closing[leaving]).min() if leaving.any() else math.inf
        if -_EPSILON <= wait < out and wait < best[0]:
            best = (max(0.0, wait), i, j, normals[k])
    return best
