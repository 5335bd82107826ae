"""What is said of a wrong prediction: when, which ball, how far, and after which bounce."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resd.sandbox import CallResult
from resd.tasks.bouncing.prompt import FUNCTION, TOLERANCE
from resd.tasks.bouncing.scenes import TIMES
from resd.tasks.bouncing.simulator import Array, Event, Leg


def failure(result: CallResult) -> str:
    """Why the program gave no positions."""
    place = f" in line {result.line}" if result.line else ""
    when = "" if result.call is None else f" in {FUNCTION}({TIMES[result.call]})"
    what = {
        "syntax": "The program does not compile",
        "exception": "The program raised an exception",
        "no_function": "Nothing to call",
        "bad_value": "Not a list of positions",
        "timeout": "The program took too long",
        "memory": "The program ran out of memory",
        "killed": "The program was stopped",
        "exit": "The program ended itself",
        "output": "The program printed too much",
        "protocol": "The program broke its own answer",
    }.get(str(result.failure), "The program failed")
    return f"{what}{place}{when}: {result.message}."


def wrong(
    found: Array,
    distances: Array,
    right: NDArray[np.bool_],
    legs: Sequence[Leg],
    events: Sequence[Event],
) -> str:
    """How many times are right, the first that is not, each ball's error, and the bounce before."""
    first = int((~right).argmax())
    time = TIMES[first]
    each = ", ".join(f"ball {i} {_distance(d)}" for i, d in enumerate(distances[first], start=1))
    lines = [
        f"{int(right.sum())} of {len(right)} times are right. The first that is not is t = {time}: "
        f"mean distance {_distance(distances[first].mean())} units, at most {TOLERANCE:g} wanted; "
        f"by ball: {each}."
    ]
    worst = int(distances[first].argmax())
    past = [i for i, event in enumerate(events) if event.time <= time and worst in _balls(event)]
    if not past:
        lines.append(f"Ball {worst + 1} has not bounced by then: it moves in a straight line.")
        return "\n".join(lines)
    last = events[past[-1]]
    before = legs[past[-1]]  # legs[k] ends with events[k]
    straight = before.positions[worst] + before.velocities[worst] * (time - before.time)
    other = next((ball for ball in _balls(last) if ball != worst), None)
    against = "a wall" if other is None else f"ball {other + 1}"
    lines.append(
        f"Bounces of ball {worst + 1} by then: {len(past)}, the last off {against} at about t = "
        f"{last.time:.2f}."
    )
    if np.linalg.norm(found[first, worst] - straight) <= 5:
        lines.append("The program misses that bounce: it lets the ball go straight on.")
    return " ".join(lines)


def expected(reference: Array, first: int) -> str:
    """The true positions at one time."""
    shown = ", ".join(f"({x:.1f}, {y:.1f})" for x, y in reference[first])
    return f"The true centres at t = {TIMES[first]} are {shown}."


def _balls(event: Event) -> tuple[int, ...]:
    return (event.ball,) if event.other is None else (event.ball, event.other)


def _distance(value: float) -> str:
    return f"{value:.0f}" if value < 1e5 else "over 100000"
