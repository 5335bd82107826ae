"""The console: diagnostic errors, no message that holds a right answer, lessons that are scored."""

from __future__ import annotations

import pytest

from resd.tasks.console import ConsoleEnvironment
from resd.tasks.console.language import VERBS, Dialect, score_lessons


@pytest.fixture(scope="module")
def world():
    return ConsoleEnvironment(0)


def test_a_wrong_verb_tells_what_it_moves_and_not_what_is_right(world):
    for example in world.examples("test"):
        request, right = example.data, world.gold(example).split()[0]
        for device, verb in world.dialect.verbs.items():
            outcome = world.evaluate(example, f"{verb} {request.room} {request.level}")
            assert outcome.passed is (verb == right)
            if not outcome.passed:
                assert f"The verb {verb} is for the {device}, not" in outcome.feedback
                # Of the right verb it says no more than that there is one.
                assert outcome.feedback.count(right) == 1
                assert world.dialect.known() in outcome.feedback


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("", "one line of three words"),
        ("{verb} {room}", "one line of three words"),
        ("{verb} {room} {level}\n{verb} {room} {level}", "one line of three words"),
        ("tick {room} {level}", "The verb is unknown. The console knows these verbs:"),
        ("{verb} yard {level}", "no room 'yard'"),
        ("{verb} {room} seven", "no level 'seven'"),
        ("{verb} {room} 10", "no level '10'"),
    ],
)
def test_what_cannot_be_read(world, answer, says):
    example = world.examples("train")[0]
    verb, room, level = world.gold(example).split()
    outcome = world.evaluate(example, answer.format(verb=verb, room=room, level=level))
    assert not outcome.passed and outcome.reward == 0.0
    assert says in outcome.feedback


def test_the_wrong_room_and_the_wrong_level(world):
    example = world.examples("train")[0]
    verb, room, level = world.gold(example).split()
    other = "hall" if room != "hall" else "attic"
    assert f"in the {other} moved" in world.evaluate(example, f"{verb} {other} {level}").feedback
    wrong = int(level) % 9 + 1
    assert f"to level {wrong}" in world.evaluate(example, f"{verb} {room} {wrong}").feedback
    assert world.evaluate(example, f"  {verb}   {room} {level}\n").passed


def test_the_prompt_gives_no_verb_away():
    for number in range(6):
        world = ConsoleEnvironment(number, devices=8)
        for example in [*world.examples("train"), *world.examples("test")]:
            words = set(example.prompt[0]["content"].replace("\n", " ").split())
            assert not words & set(VERBS)


def test_dialects_are_apart_and_the_same_everywhere():
    assert Dialect.numbered(0, 6) == Dialect.numbered(0, 6)
    assert len({tuple(Dialect.numbered(n, 6).verbs.values()) for n in range(20)}) == 20
    assert Dialect.numbered(3, 4).verbs.keys() == {"lamp", "fan", "door", "heater"}
    splits = [{e.data for e in ConsoleEnvironment(1).examples(s)} for s in ("train", "test")]
    assert not splits[0] & splits[1]
    assert {e.device for e in splits[1]} == set(Dialect.numbered(1, 6).verbs)


def test_lessons_are_scored():
    dialect = Dialect({"lamp": "hum", "fan": "zap"})
    perfect = ConsoleEnvironment(0)
    assert perfect.score_playbook(perfect.lessons()) == {
        "precision": 1.0,
        "recall": 1.0,
        "stated": 1.0,
    }

    def score(*lessons):
        return tuple(score_lessons(lessons, dialect).values())

    assert score() == (1.0, 0.0, 0.0)
    assert score("Hum is for the lamp.") == (1.0, 0.5, 1.0)
    assert score("Use zap for the lamp.") == (0.0, 0.0, 1.0)
    assert score("hum: lamp", "zap: lamp") == (0.5, 0.5, 1.0)
    assert score("Zap is for the fan, not for the lamp. The verbs are hum, zap.") == (1.0, 0.5, 1.0)
    assert score("The verb zap is for the lamp, not for the fan.") == (0.0, 0.0, 1.0)
    # Two devices, two verbs, a denial, or none of them: nothing is stated.
    for lesson in (
        "hum moves lamp and fan",
        "hum or zap: lamp",
        "zap isn't for the lamp",
        "Do not use zap for the fan.",
        "hi",
    ):
        assert score(lesson) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("args", [{"dialect": -1}, {"devices": 1}, {"devices": 9}])
def test_arguments_that_make_no_sense(args):
    with pytest.raises(ValueError, match="dialect must be >= 0 and devices 2 to 8"):
        ConsoleEnvironment(**args)
