"""BouncingSim as an `Environment`: predictions run in the sandbox and meet the exact physics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from resd.errors import UserError
from resd.sandbox import Kind, Limits, make_sandbox
from resd.tasks.answers import NO_CODE_BLOCK, last_code_block
from resd.tasks.bouncing import feedback
from resd.tasks.bouncing.prompt import FUNCTION, TOLERANCE, prompt_text
from resd.tasks.bouncing.scenes import LEVELS, TIMES, make_scene
from resd.tasks.bouncing.simulator import Array, Event, Leg, positions_at, trajectory
from resd.types import Example, Outcome, Split

_LIMITS = Limits(seconds=20.0, cpu_seconds=2, memory_mb=512)
_WORST = 1e6  # units: a mean error beyond that is reported as that
# A table of legs, looked up: what gold answers and the equal-mass baseline are.
_TABLE = """LEGS = {legs}

def {function}(t):
    start, balls = [leg for leg in LEGS if leg[0] <= t][-1]
    return [[x + vx * (t - start), y + vy * (t - start)] for x, y, vx, vy in balls]
"""


class BouncingEnvironment:
    """Programs that predict bouncing balls (paper: BouncingSim, App. G).

    Args:
        level: `easy` (3 balls, 400 to 600 units a second) or `medium` (4 or 5 balls, 600 to 800).
        train_size, test_size: scenes; no scene is in both.
        reveal: show the expected positions in the feedback. Off by default: with them a reflection
            can copy the numbers of this scene into a table, which teaches nothing about the next.
        sandbox: `strict`, or `none` on a machine without protection (see `resd.sandbox`).

    Raises:
        UserError: a bad argument, or a machine that cannot protect itself.
    """

    description = "Python that predicts bouncing balls, run in a sandbox against exact physics"

    def __init__(
        self,
        level: str = "easy",
        train_size: int = 400,
        test_size: int = 100,
        reveal: bool = False,
        sandbox: Kind = "strict",
    ) -> None:
        if level not in LEVELS:
            raise UserError(f"level must be one of {', '.join(LEVELS)}, found {level!r:.80}")
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            if type(size) is not int or size < 1:
                raise UserError(f"{name} must be a whole number, 1 or more, found {size!r:.80}")
        self.level = level
        self.reveals_gold = bool(reveal)
        self._sizes: dict[Split, int] = {"train": train_size, "test": test_size}
        self._sandbox = make_sandbox(sandbox, _LIMITS)
        self.notes = (
            ("sandbox = none: model-written programs run without protection",)
            if sandbox == "none"
            else ()
        )

    def examples(self, split: Split) -> Sequence[Example]:
        """The scenes of a split; the same on every machine."""
        return [self._example(f"{split}-{i:04d}") for i in range(self._sizes[split])]

    def _example(self, name: str) -> Example:
        scene = make_scene(self.level, name)
        prompt = prompt_text(scene, _LIMITS)
        data = json.dumps(scene)  # a string: small, plain, and a key for the cache
        return Example(f"{self.level}-{name}", [{"role": "user", "content": prompt}], data)

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Run the program in the last fenced block; one test case a time."""
        source = last_code_block(response)
        if source is None:
            return _failed(NO_CODE_BLOCK)
        result = self._sandbox.call(source, FUNCTION, [[time] for time in TIMES])
        if result.values is None:
            return _failed(feedback.failure(result))
        reference, legs, events = _reference(example.data)
        try:
            found = _positions(result.values, reference.shape[1])
        except ValueError as error:
            return _failed(str(error))
        distances = np.linalg.norm(found - reference, axis=2)
        errors = distances.mean(axis=1)
        right = errors <= TOLERANCE
        metrics = {"mean_error": float(min(errors.mean(), _WORST))}
        if right.all():
            return Outcome(1.0, True, "", len(TIMES), len(TIMES), metrics)
        text = feedback.wrong(found, distances, right, legs, events)
        if self.reveals_gold:
            text += f"\n{feedback.expected(reference, int((~right).argmax()))}"
        return Outcome(0.0, False, text, int(right.sum()), len(TIMES), metrics)

    def gold(self, example: Example) -> str:
        """A program that looks the true legs up."""
        _, legs, _ = _reference(example.data)
        return _table_program(legs)

    def secrets(self, example: Example) -> list[str]:
        """The true centres, as they might be printed."""
        reference, _, _ = _reference(example.data)
        numbers = reference.reshape(-1)
        return [f"{x:.{digits}f}" for x in numbers for digits in (1, 2, 3)]

    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """Balls that never bounce, and balls that all weigh the same."""
        return {
            "straight line": partial(_baseline, simulated=False),
            "equal mass": partial(_baseline, simulated=True),
        }


def _baseline(example: Example, simulated: bool) -> str:
    scene = json.loads(example.data)
    balls = scene["balls"]
    if simulated:
        return _table_program(trajectory(scene, TIMES[-1], [1.0] * len(balls))[0])
    at = np.array([ball["position"] for ball in balls], dtype=np.float64)
    velocity = np.array([ball["velocity"] for ball in balls], dtype=np.float64)
    return _table_program([Leg(0.0, at, velocity)])


def _table_program(legs: Sequence[Leg]) -> str:
    rows = [
        [leg.time, np.concatenate([leg.positions, leg.velocities], axis=1).round(6).tolist()]
        for leg in legs
    ]
    source = _TABLE.format(legs=json.dumps(rows), function=FUNCTION)
    return f"```python\n{source}```"


@lru_cache(maxsize=2048)
def _reference(data: str) -> tuple[Array, list[Leg], list[Event]]:
    """True centres at `TIMES`, and how they came about."""
    legs, events = trajectory(json.loads(data), TIMES[-1])
    return positions_at(legs, TIMES), legs, events


def _failed(text: str) -> Outcome:
    return Outcome(0.0, False, text, 0, len(TIMES), {"mean_error": _WORST})


def _positions(values: Sequence[Any], balls: int) -> Array:
    """What the program returned, `[T, n, 2]`.

    Raises:
        ValueError: a value is not a list of [x, y] of real numbers, one a ball.
    """
    for time, value in zip(TIMES, values, strict=True):
        problem = _problem(value, balls)
        if problem:
            raise ValueError(
                f"{FUNCTION}({time}) must return a list of {balls} pairs [x, y] of real numbers; "
                f"{problem}."
            )
    return np.array(values, dtype=np.float64).clip(-_WORST, _WORST)


def _problem(value: Any, balls: int) -> str:
    if type(value) is not list:
        return f"it returned {_kind(value)}"
    if len(value) != balls:
        return f"it returned a list of {len(value)}"
    for i, pair in enumerate(value, start=1):
        if type(pair) is not list or len(pair) != 2:
            found = f"a list of {len(pair)}" if type(pair) is list else _kind(pair)
            return f"for ball {i} it returned {found}"
        for number in pair:
            if type(number) not in (int, float) or not math.isfinite(number):
                return f"for ball {i} it returned {_kind(number)} as a coordinate"
    return ""


def _kind(value: Any) -> str:
    names = {"NoneType": "None", "dict": "a dict", "list": "a list", "str": "a string"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")
