"""BouncingSim: the physics, the scenes, and programs that must or must not pass."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resd.errors import UserError
from resd.sandbox import SandboxUnavailable
from resd.tasks.bouncing import BouncingEnvironment, simulate
from resd.tasks.bouncing.scenes import LEVELS, TIMES, is_calm, make_scene
from resd.tasks.bouncing.simulator import (
    ball_mass,
    contact_planes,
    polygon,
    trajectory,
    wall_limits,
)

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors" / "bouncing_dev.jsonl"
BOX = {"center": [0, 0], "diameter": 200 * math.sqrt(2), "sides": 4, "rotation": 45.0}
SQUARE = {"radius": 10 * math.sqrt(2), "sides": 4, "density": 1.0}


@pytest.fixture(scope="module")
def environment() -> BouncingEnvironment:
    try:
        return BouncingEnvironment(train_size=4, test_size=6)
    except SandboxUnavailable:
        return BouncingEnvironment(train_size=4, test_size=6, sandbox="none")


def test_the_reference_positions() -> None:
    if not VECTORS.is_file():
        pytest.skip("no reference positions")
    for row in map(json.loads, VECTORS.open()):
        found = simulate(row["scene"], row["timestamps"])
        distances = np.linalg.norm(found - np.array(row["positions"]), axis=2)
        assert distances.max() <= 0.5


def ball(x: float, y: float, vx: float, vy: float) -> dict[str, Any]:
    return {**SQUARE, "position": [x, y], "velocity": [vx, vy]}


def test_a_wall_by_hand() -> None:
    # The box reaches from -100 to 100, the ball's farthest corner is its radius away.
    scene = {"boxes": [BOX], "balls": [ball(0, 0, 100, 0)]}
    reach = 100 - SQUARE["radius"]
    found = simulate(scene, [0.5, 1.0, 0.0])
    assert found[0, 0] == pytest.approx([50, 0])
    assert found[1, 0] == pytest.approx([2 * reach - 100, 0])
    assert found[2, 0] == pytest.approx([0, 0])


def test_unequal_balls_head_on() -> None:
    light, heavy = ball(-50, 1, 60, 0), {**ball(50, 1, 0, 0), "density": 3.0}
    scene = {"boxes": [BOX], "balls": [light, heavy]}
    legs, events = trajectory(scene, 1.3)
    assert [event.other for event in events][:1] == [1]
    before, after = legs[0].velocities, legs[1].velocities
    momentum = np.array([1.0, 3.0]) @ after
    assert momentum == pytest.approx(np.array([1.0, 3.0]) @ before)
    assert (np.array([1.0, 3.0]) * (after**2).sum(1)).sum() == pytest.approx(3600)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("number", range(6))
def test_laws_hold_in_every_scene(level: str, number: int) -> None:
    scene = make_scene(level, f"laws {number}")
    legs, events = trajectory(scene, 3.0)
    masses = np.array([ball_mass(b) for b in scene["balls"]])
    energies = [(masses * (leg.velocities**2).sum(axis=1)).sum() for leg in legs]
    assert energies == pytest.approx([energies[0]] * len(legs))
    for event, before, after in zip(events, legs, legs[1:], strict=False):
        if event.other is not None:
            assert masses @ after.velocities == pytest.approx(masses @ before.velocities)
    shapes = [polygon(b["sides"], b["radius"]) for b in scene["balls"]]
    for positions in simulate(scene, np.linspace(0, 3, 200).tolist()):
        for i, shape in enumerate(shapes):
            normals, limits = wall_limits(scene["boxes"][0], shape)
            assert (normals @ positions[i] - limits).min() > -1e-6
            for j in range(i):
                normals, limits = contact_planes(shapes[j], shape)
                gap = normals @ (positions[i] - positions[j]) - limits
                assert gap.max() > -1e-6  # they never overlap


def test_time_runs_backwards() -> None:
    scene = make_scene("easy", "backwards")
    legs, _ = trajectory(scene, 0.7)
    end = legs[-1].positions + legs[-1].velocities * (0.7 - legs[-1].time)
    turned = [
        {**b, "position": list(p), "velocity": list(-v)}
        for b, p, v in zip(scene["balls"], end, legs[-1].velocities, strict=True)
    ]
    start = simulate({**scene, "balls": turned}, [0.7])[0]
    assert start == pytest.approx(np.array([b["position"] for b in scene["balls"]]), abs=1e-4)


def test_a_scene_that_hangs_on_a_hair_is_not_calm() -> None:
    # Corner to corner: a thousandth of a unit decides on which side they pass.
    tip = {"radius": 20.0, "sides": 4, "density": 1.0}
    big = {"center": [0, 0], "diameter": 2000, "sides": 4, "rotation": 45.0}
    balls = [
        {**tip, "position": [-100, 0], "velocity": [200, 0]},
        {**tip, "position": [100, 0.0001], "velocity": [-200, 0]},
    ]
    hair = {"boxes": [big], "balls": balls}
    assert sum(is_calm(hair, random.Random(seed)) for seed in range(20)) <= 6
    calm = [balls[0], {**balls[1], "position": [100, 300]}]
    assert is_calm({"boxes": [big], "balls": calm}, random.Random(0))


@pytest.mark.parametrize(
    "change",
    [
        {"physics": {"gravity_enabled": True}},
        {"boxes": []},
        {"boxes": [{**BOX, "friction": 0.1}]},
        {"boxes": [{**BOX, "rotation_speed": 1}]},
        {"boxes": [{**BOX, "restitution": 0.5}]},
        {"balls": [{**ball(0, 0, 1, 1), "restitution": 0.9}]},
    ],
)
def test_what_is_not_modelled_is_refused(change: dict[str, Any]) -> None:
    scene = {"boxes": [BOX], "balls": [ball(0, 0, 1, 1)]}
    simulate(scene, [1.0])
    with pytest.raises(UserError):
        simulate({**scene, **change}, [1.0])


@pytest.mark.parametrize("level", LEVELS)
def test_scenes_are_as_their_level_says(level: str) -> None:
    (fewest, most), (slow, fast) = LEVELS[level]
    for i in range(10):
        scene = make_scene(level, f"test-{i:04d}")
        assert fewest <= len(scene["balls"]) <= most
        for one in scene["balls"]:
            assert slow - 0.1 <= math.hypot(*one["velocity"]) <= fast + 0.1
            assert 3 <= one["sides"] <= 6


# -- the environment -----------------------------------------------------------------------------


def fenced(source: str) -> str:
    return f"```python\n{source}\n```"


def test_gold_passes_and_trivial_programs_do_not(environment: BouncingEnvironment) -> None:
    straight = environment.baselines()["straight line"]
    for example in environment.examples("test"):
        outcome = environment.evaluate(example, environment.gold(example))
        assert outcome.passed, outcome.feedback
        assert outcome.metrics["mean_error"] < 0.01
    outcomes = [environment.evaluate(e, straight(e)) for e in environment.examples("test")]
    assert sum(o.passed for o in outcomes) <= 1
    assert any("lets the ball go straight on" in o.feedback for o in outcomes)


BALLS = "[[750, 750], [750, 750], [750, 750]]"
WRONG = {
    "": "no closed fenced block",
    fenced("def predict(t): return 1"): "defines no function predict_position",
    fenced("def predict_position(t) return 1"): "does not compile in line 1",
    fenced("def predict_position(t):\n    return 1 / 0"): "in line 2 in predict_position(0.1)",
    fenced("def predict_position(t): return None"): "it returned None",
    fenced("def predict_position(t): return [[1, 2]]"): "it returned a list of 1",
    fenced("def predict_position(t): return [[1, 2], [1, 2], [1]]"): "it returned a list of 1",
    fenced("def predict_position(t): return [[1, 2], [1, 2], ['1', 2]]"): "a string as a coord",
    fenced("def predict_position(t): return [[1, 2], [1, 2], [True, 2]]"): "returned a bool",
    fenced("def predict_position(t): return [[1, 2], [1, 2], [1e999, 2]]"): "not finite",
    fenced("def predict_position(t): return [[1, 2], [1, 2], [float('nan'), 2]]"): "not finite",
    fenced("def predict_position(t): return [[1, 2], [1, 2], [10**400, 2]]"): "too large",
    fenced("def predict_position(t): return {'a': 1}"): "it returned a dict",
    fenced("class F(float): pass\ndef predict_position(t): return [[F(1), 2]] * 3"): "F",
    fenced(f"def predict_position(t): return {BALLS}"): "times are right",
    fenced("def predict_position(t): return [[1e300, 2]] * 3"): "over 100000",
    fenced("import os; os._exit(0)"): "ended itself",
}


@pytest.mark.parametrize("response", WRONG)
def test_a_wrong_program_is_told_why(response: str, environment: BouncingEnvironment) -> None:
    outcome = environment.evaluate(environment.examples("test")[0], response)
    assert not outcome.passed
    assert WRONG[response] in outcome.feedback
    assert len(outcome.feedback) < 1500


def test_positions_are_shown_only_if_asked_for(environment: BouncingEnvironment) -> None:
    response = fenced(f"def predict_position(t): return {BALLS}")
    example = environment.examples("test")[0]
    hidden = environment.evaluate(example, response).feedback
    assert not any(secret in hidden for secret in environment.secrets(example))
    kind: Any = "none" if environment.notes else "strict"
    open_one = BouncingEnvironment(test_size=6, reveal=True, sandbox=kind)
    shown = open_one.evaluate(example, response).feedback
    assert any(secret in shown for secret in environment.secrets(example))
    assert open_one.reveals_gold


def test_the_prompt_says_what_the_answer_depends_on(environment: BouncingEnvironment) -> None:
    example = environment.examples("train")[0]
    prompt = example.prompt[-1]["content"]
    scene = json.loads(example.data)
    for one in scene["balls"]:
        assert str(one["velocity"][0]) in prompt
        assert f"{one['sides']} corners" in prompt
    for word in ("never rotate", "mass is proportional", "elastic", "no gravity", str(TIMES[-1])):
        assert word in " ".join(prompt.split())


def test_a_sandbox_that_is_off_is_noted() -> None:
    assert "without protection" in BouncingEnvironment(sandbox="none").notes[0]


@pytest.mark.parametrize(
    "arguments",
    [{"level": "hard"}, {"train_size": 0}, {"test_size": True}, {"sandbox": "docker"}],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        BouncingEnvironment(**arguments)
