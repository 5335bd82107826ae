"""reasoning_gym:NAME: the package's questions and scores, and answers that can do no harm."""

from __future__ import annotations

import functools
import importlib.util
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd.errors import UserError
from resd.tasks.adapters import ReasoningGymEnvironment
from resd.tasks.adapters.gym_feedback import describe, kind, without_secret
from resd.tasks.adapters.reasoning_gym import extract_answer
from resd.tasks.check import run_checks
from resd.tasks.registry import load_environment

pytest.importorskip("reasoning_gym")

# Datasets without an answer of the package's own, and one whose own are now and then an Integral().
NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
SOME_GOLD = {"intermediate_integration"}


def made(dataset: str, train: int = 6, test: int = 3, **more: Any) -> ReasoningGymEnvironment:
    return ReasoningGymEnvironment(dataset, train, test, **more)


shared = functools.cache(made)  # a process takes a second to start


def tagged(answer: str) -> str:
    return f"<answer>{answer}</answer>"


@pytest.fixture(scope="module")
def sums() -> ReasoningGymEnvironment:
    return shared("chain_sum")


# -- questions -----------------------------------------------------------------------------------


def test_questions_are_distinct_and_always_the_same(sums: ReasoningGymEnvironment) -> None:
    train, test = sums.examples("train"), sums.examples("test")
    assert [e.id for e in test] == ["test-00000", "test-00001", "test-00002"]
    assert len({e.prompt[0]["content"] for e in [*train, *test]}) == 9
    assert all(sums.evaluate(e, str(sums.gold(e))).passed for e in [*train, *test])
    again = made("chain_sum", train=12)  # the first questions do not depend on how many there are
    assert list(again.examples("test")) == list(test)
    assert list(again.examples("train"))[:6] == list(train)
    assert made("chain_sum", seed=1000).examples("test")[0].prompt != test[0].prompt
    assert set(train[0].data) == {"index", "answer"}


def test_the_dataset_has_its_options() -> None:
    config = {"min_digits": 6, "max_digits": 6, "min_terms": 2, "max_terms": 2}
    for example in made("chain_sum", config=config).examples("train"):
        assert re.search(r"\b\d{6} [+-] \d{6}\b", example.prompt[0]["content"])


def test_global_random_numbers_are_left_alone_and_do_not_matter() -> None:
    """list_functions draws from the global generator."""
    random.seed(1)
    state = random.getstate()
    first = made("list_functions").examples("train")
    assert random.getstate() == state
    random.seed(2)
    assert list(made("list_functions").examples("train")) == list(first)


def test_a_mixture_of_datasets() -> None:
    parts = [{"name": n, "weight": 1.0, "config": {}} for n in ("coin_flip", "chain_sum")]
    mixed = made("composite", train=12, config={"datasets": parts})
    examples = mixed.examples("train")
    assert {"coin" in e.prompt[0]["content"] for e in examples} == {True, False}
    assert all(mixed.evaluate(e, str(mixed.gold(e))).passed for e in examples)
    coins = [e for e in examples if "coin" in e.prompt[0]["content"]]
    assert not any(mixed.evaluate(e, tagged("0")).passed for e in coins)


BAD = {
    "unknown dataset": (
        {"dataset": "chain_sums"},
        r"no dataset 'chain_sums'; near to it: chain_sum",
    ),
    "unknown option": (
        {"config": {"min_digit": 3}},
        "no option 'min_digit' .did you mean min_digits",
    ),
    "bad option": ({"config": {"min_digits": 0}}, "chain_sum does not take this config: Assertion"),
    "option of a wrong type": (
        {"config": {"min_digits": "x"}},
        "does not take this config: TypeErr",
    ),
    "seed in config": ({"config": {"seed": 3}}, "must not hold 'seed': set seed instead"),
    "size in config": ({"config": {"size": 3}}, "set train_size and test_size instead"),
    "config is no table": ({"config": 3}, "config must be a table"),
    "config is not plain": ({"config": {"min_digits": {1}}}, "config must be plain"),
    "no training": ({"train_size": 0}, "train_size must be a whole number >= 1, found 0"),
    "no number": ({"test_size": "many"}, "test_size must be a whole number >= 1, found 'many'"),
    "negative seed": ({"seed": -1}, "seed must be a whole number >= 0"),
    "too few questions": (
        {"dataset": "count_bits", "config": {"min_n": 1, "max_n": 4}, "train_size": 3},
        r"count_bits has only 4 different questions in 124 draws, and train_size . test_size = 3 .",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    arguments, wanted = BAD[name]
    with pytest.raises(UserError, match=wanted) as caught:
        ReasoningGymEnvironment(
            **{"dataset": "chain_sum", "train_size": 3, "test_size": 3, **arguments}
        )
    assert "\n" not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"task reasoning_gym:lcm: .* pip install 'resd\[gym\]'"):
        load_environment("reasoning_gym:lcm", {})


# -- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("It is <ANSWER>\n 4 \n</Answer>.", "4"),
        ("<answer>3</answer> no, <answer>4</answer>", "4"),
        ("<answer>3<answer>4</answer></answer>", "4"),
        ("<answer>4</answer> or <answer>5", "4"),
        ("<answer></answer>", ""),
        ("<think><answer>3</answer></think>4", None),
        ("<think><answer>3</answer>", None),
        ("4", None),
        ("</answer>4<answer>", None),
        ("<answer>" * 50_000, None),
    ],
)
def test_the_answer_is_the_last_between_tags(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


def test_scores_are_rewards() -> None:
    lists = shared("string_insertion")
    example = lists.examples("train")[0]
    right = example.data["answer"]
    assert lists.evaluate(example, tagged(right)).reward == 1.0
    partly = lists.evaluate(example, tagged(str(list(right))))  # eval at work: worth 0.1 there
    assert (partly.reward, partly.passed) == (0.1, False)
    assert "scores 0.1, not 1" in partly.feedback
    integrals = shared("simple_integration")
    example = integrals.examples("train")[0]
    other = f"2*sin(1) + {example.data['answer']} - sqrt(5)"
    assert integrals.evaluate(example, tagged(other)).passed


def test_an_empty_answer_may_be_right() -> None:
    world = made("ab", train=400)
    (example,) = (e for e in world.examples("train") if not e.data["answer"])
    assert world.evaluate(example, str(world.gold(example))).passed
    assert not world.evaluate(world.examples("train")[0], tagged("")).passed


def test_feedback(sums: ReasoningGymEnvironment) -> None:
    example = sums.examples("train")[0]
    right = int(example.data["answer"])
    said = {
        "": "nothing stands after the thinking",
        "<think>hm": "nothing stands after the thinking",
        "4": "no <answer> stands after the thinking",
        "<answer>4": "never closed by </answer>; was the response cut off?",
        tagged(" "): "is empty",
        tagged(str(right + 1)): f"The answer '{right + 1}' is wrong. It is too large.",
        tagged(str(right - 1)): "It is too small.",
        tagged(f"it is {right}!"): "It holds a reference answer, with other text around it",
        tagged("three"): "It is text; the answer is expected to be a whole number.",
        tagged("9" * 20_001): "has 20001 characters, more than 20000",
    }
    for response, wanted in said.items():
        outcome = sums.evaluate(example, response)
        assert wanted in outcome.feedback, outcome
        assert not outcome.passed
        if str(right) not in response:
            assert str(right) not in outcome.feedback
    shown = made("chain_sum", show_answer=True)
    assert shown.reveals_gold
    assert shown.evaluate(example, "4").feedback.endswith(f" A right answer: {right}")


texts = st.one_of(
    st.text(max_size=40),
    st.text("0123456789 .,-/\n", max_size=30),
    st.sampled_from(["yes", "True", "[1, 2]", "1 2 3\n4 5 6", "x**2 + 1", "۳", "1e999", "\ud800"]),
)


@given(texts, texts, st.floats(0, 1))
def test_feedback_on_anything(answer: str, reference: str, score: float) -> None:
    said = describe(answer, reference, score)
    assert said
    assert len(said) <= 1500
    told = without_secret(said, reference, answer)
    if len(reference) >= 4 and reference not in answer:
        assert not re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", told)


@pytest.mark.parametrize(
    ("answer", "reference", "wanted"),
    [
        ("CAT ", "cat", "upper and lower case or white space"),
        ('"cat".', "cat", "the characters around it"),
        ("1 2\n3 4", "1 2\n3 4\n5 6", "It has 2 lines; a reference answer has 3."),
        ("1 2\n3 4", "1 2\n3 5", "3 of its 4 parts are those of a reference answer; the first"),
        ("a b d", "a c d", "the first that differs is part 2, 'b'."),
        ("a b", "a b c", "It has 2 parts; a reference answer has 3."),
        ("maybe", "yes", "expected to be YES or NO"),
        ("b", "", "The answer 'b' is wrong."),
        ("3/4", "0.5", "It is a fraction; the answer is expected to be a number."),
    ],
)
def test_feedback_says_how_an_answer_differs(answer: str, reference: str, wanted: str) -> None:
    assert wanted in describe(answer, reference, 0.0)


def test_kinds() -> None:
    kinds = {"-3": "a whole number", "2.50": "a number", "[1]": "a list in brackets"}
    kinds |= {"(1 + 2)*3": "an expression", "a\nb": "several lines", "False": "TRUE or FALSE"}
    assert {text: kind(text) for text in kinds} == kinds


def test_the_commonest_answer_is_a_baseline() -> None:
    world = shared("game_of_life_halting")
    ((name, answer),) = world.baselines().items()
    assert name == "commonest answer"
    assert answer(world.examples("test")[0]) in (tagged("True"), tagged("False"))
    assert shared("string_insertion").baselines() == {}  # no answer stands there twice


# -- all of it -----------------------------------------------------------------------------------


def test_the_task_is_sound() -> None:
    checks = list(run_checks("reasoning_gym:spell_backward", {"train_size": 9, "test_size": 5}))
    assert {c.state for c in checks} == {"ok"}, checks


@pytest.mark.slow
def test_every_dataset() -> None:
    """All make questions; those that know an answer give it full marks; nothing else scores."""
    from reasoning_gym.factory import DATASETS

    without, hostile = set(), ["", "no such answer", "f(" * 3000, "\x00\ud800", "open('x', 'w')"]
    problems = []
    for name in DATASETS:
        if name == "composite":
            continue
        world = made(name, train=3, test=3)
        for example in [*world.examples("train"), *world.examples("test")]:
            if world.gold(example) is None:
                without.add(name)
            for answer in hostile:
                outcome = world.evaluate(example, tagged(answer))
                if outcome.reward >= 0.5 or not outcome.feedback:
                    problems.append((name, answer[:20], outcome))
    assert len(DATASETS) >= 100
    assert problems == []
    assert without == NO_GOLD | SOME_GOLD
