"""The general skills: each judge takes what was asked for, and nothing else."""

from __future__ import annotations

import random

import pytest

from resd.tasks.skills import SkillsEnvironment
from resd.tasks.skills.judges import JUDGES, passes
from resd.tasks.skills.makers import GROUPS

# judge, what it compares with, answers that pass, answers that do not
CASES = [
    ("number", 1200, ["1200", "It is 1,200.", "3 * 400 = 1200"], ["1200 or 1300", "none", "-1200"]),
    ("words", 3, ["one two three", " a  b\nc "], ["one two", "a b c d"]),
    ("lines", 2, ["a\nb", "a\n\nb"], ["a", "1. a\n2. b", "a\nb\nc"]),
    ("sentences", 2, ["It is. It was!", "Is it 1.5? Yes."], ["It is.", "It is so"]),
    ("upper", None, ["IT IS 3."], ["IT is", "3"]),
    ("lower", None, ["it is 3."], ["It is", "3"]),
    ("starts", "river", ["River banks", '"River" it is'], ["Rivers run", "The river"]),
    ("ends", "stone", ["It is a stone.", "Stone"], ["A stone wall", "stones"]),
    ("holds", (("a", "b"), ("the",)), ["A or B."], ["a", "a, b, the end"]),
    ("without_letter", "b", ["sun, moon, rain"], ["sun, moon", "sun, bee, rain", "sun moon rain"]),
    ("json", {"a": True}, ['{"a": true}', '```json\n{"a": true}\n```'], ['{"a": 1}', "a", "{}"]),
    ("json", [1, 2], ["[1, 2]"], ["[2, 1]", '["1", "2"]', "[1, 2"]),
    ("list", "lemon, stone", ["lemon, stone", "Lemon stone."], ["stone, lemon", "lemon"]),
    ("exact", "Ada saw it.", ["Ada saw it.", "'Ada saw it.'"], ["ada saw it.", "Ada saw it"]),
]


@pytest.mark.parametrize(("judge", "wanted", "right", "wrong"), CASES)
def test_a_judge_takes_what_was_asked_for(judge, wanted, right, wrong):
    for answer in right:
        assert passes(judge, wanted, answer), answer
        assert passes(judge, wanted, f"<think>hm</think>{answer}")
    for answer in (*wrong, "", f"<think>{right[0]}"):
        assert not passes(judge, wanted, answer), answer


def test_every_judge_is_tried_and_used():
    assert {case[0] for case in CASES} == set(JUDGES)
    used = {GROUPS[name](random.Random(seed)).judge for name in GROUPS for seed in range(40)}
    assert used == set(JUDGES)


def test_right_answers_pass_and_copies_of_the_prompt_do_not():
    world = SkillsEnvironment(40)
    for split in ("train", "test"):
        for example in world.examples(split):
            assert world.evaluate(example, world.gold(example)).passed, example.prompt
            copied = world.evaluate(example, example.prompt[0]["content"])
            assert not copied.passed, example.prompt
            assert copied.feedback


def test_no_prompt_stands_in_both_splits():
    splits = [
        {e.prompt[0]["content"] for e in SkillsEnvironment().examples(s)} for s in ("train", "test")
    ]
    assert not splits[0] & splits[1]
    assert len(splits[0]) == len(splits[1]) == 100 * len(GROUPS)


def test_groups_are_the_same_everywhere_and_fewer_are_the_first_of_more():
    few, many = SkillsEnvironment(5).retention(), SkillsEnvironment(20).retention()
    assert list(few) == list(GROUPS)
    for name, examples in few.items():
        assert examples == list(many[name])[:5]
        assert len({e.prompt[0]["content"] for e in many[name]}) == 20
    # A change of a list or of a generator changes what every figure was measured on.
    assert (
        few["arithmetic"][0].prompt[0]["content"]
        == "What is 137 - 66? Answer with the number alone."
    )


@pytest.mark.parametrize("number", [0, 101])
def test_a_number_that_makes_no_sense(number):
    with pytest.raises(ValueError, match="number must be 1 to 100"):
        SkillsEnvironment(number)
