"""The solution buffer, and which lessons are the same."""

import json

import pytest

from resd.context import SolutionBuffer
from resd.context.playbook.similarity import same_lesson, significant_words

# -- near-duplicates -------------------------------------------------------------------------------

LONG = (
    "when the list is read in a loop then check that its length is known and that it is not nil, "
    "and do so at every turn"
)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Check it.", "check it", True),
        ("Check the end", "check end", True),
        ("Look, then check,", "look then check", True),
        ("You should always check it", "you check it", True),
        ('close with ";"', "close with ;", True),
        ("close with `;`", "close with `!`", False),
        ("close with end", "close with stop", False),
        ("key is x", "key is X", False),
        ("strings take '", 'strings take "', False),
        ("strings take `'`", 'strings take `"`', False),
        ("level: +2", "level: -2", False),
        ("level: +2", "level: +3", False),
        (LONG, LONG.replace("loop", "cycle"), True),
        (LONG, LONG.replace("not nil", "nil"), False),
        (LONG, LONG.replace("nil", "0"), False),
        (LONG, LONG.replace("known", "Known"), False),
        (f"it can be so {LONG}", f"it can't be so {LONG}", False),
        (f"go left {LONG}", f"go right {LONG}", False),
        (LONG, "no " + LONG, False),
        (LONG, LONG.split(" then ")[0], False),
        ("x y " * 20 + "z", "x " * 20 + "y " * 20 + "z", False),
        ("", "a", False),
        ("the", "a", False),
        ("close with please", "close with always", False),
        ("close with please", "please close with please", True),
    ],
)
def test_same_lesson(a, b, same):
    assert same_lesson(a, b, 0.94) is same
    assert same_lesson(b, a, 0.94) is same
    assert same_lesson(a, b, 1) is (significant_words(a) == significant_words(b))


def test_lessons_that_are_just_as_alike_as_it_takes():
    assert same_lesson("alpha", "alpha beta gamma", 0.5)  # two words of four have a twin
    assert not same_lesson("alpha", "alpha beta gamma", 0.51)


def test_very_long_lessons_are_the_same_only_word_for_word():
    long = "x y " * 400
    assert same_lesson(long, "the " + long, 0.9)
    assert not same_lesson(long, long + "z", 0.9)


@pytest.mark.parametrize(("number", "same"), [(60, True), (119, True), (121, False)])
def test_long_lessons_are_compared_up_to_a_bound(number, same):
    words = [f"{a}q{b}" for a in "abcdefghijkl" for b in "bcdefghijklm"][:number]
    other = [*words[:30], "another", *words[31:]]
    assert same_lesson(" ".join(words), " ".join(other), 0.95) is same


# -- solutions -------------------------------------------------------------------------------------


def test_the_solution_buffer_keeps_the_latest():
    buffer = SolutionBuffer()
    assert buffer.get("a") is None
    assert buffer.add("a", "one") and buffer.add("a", "two")
    assert buffer.get("a") == "two" and len(buffer) == 1


def test_the_solution_buffer_is_bounded():
    buffer = SolutionBuffer(max_examples=2, max_chars=5)
    for example in "abac":
        buffer.add(example, example)
    assert [buffer.get(x) for x in "abc"] == ["a", None, "c"]
    assert buffer.add("d", "12345") and not buffer.add("a", "123456")
    assert [buffer.get(x) for x in "acd"] == [None, "c", "12345"]


def test_how_much_a_solution_buffer_holds_by_default():
    buffer = SolutionBuffer()
    assert buffer.add("long", "x" * 100_000) and not buffer.add("too long", "x" * 100_001)
    for number in range(4096):
        buffer.add(str(number), "x")
    assert len(buffer) == 4096 and buffer.get("long") is None


@pytest.mark.parametrize("response", ["", " \n"])
def test_a_response_without_a_solution_is_not_kept(response):
    assert not SolutionBuffer().add("a", response)


def test_the_solution_buffers_state_goes_through_json():
    buffer = SolutionBuffer(max_examples=3)
    for example in "abca":
        buffer.add(example, f"{example}\ud800")
    state = json.loads(json.dumps(buffer.state_dict()))
    other = SolutionBuffer(max_examples=2)
    other.load_state_dict(state)
    assert [other.get(x) for x in "abc"] == ["a\ud800", None, "c\ud800"]
    other.add("d", "d")
    assert [x for x in "abcd" if other.get(x)] == ["a", "d"]
    assert len(buffer) == 3


@pytest.mark.parametrize("bounds", [{"max_examples": 0}, {"max_chars": 0}])
def test_the_solution_buffer_must_hold_something(bounds):
    with pytest.raises(ValueError, match="at least one"):
        SolutionBuffer(**bounds)
    assert SolutionBuffer(**dict.fromkeys(bounds, 1)).add("a", "x")
