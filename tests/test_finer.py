"""FiNER: reading its files, strict grading, and feedback that gives away what it is asked to."""

from __future__ import annotations

import builtins
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd.config import load_config
from resd.errors import UserError
from resd.tasks.check import run_checks
from resd.tasks.finer import FinerEnvironment
from resd.tasks.hostile import hostile_responses, near_misses
from resd.tasks.registry import load_environment
from resd.types import Example

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
OPTIONS = (
    "Goodwill",
    "Revenues",
    "SharePrice",
    "DebtInstrumentTerm",
    "Depreciation",
    "LongTermDebt",
)
GOLD = ("Goodwill", "DebtInstrumentTerm", "Revenues", "Goodwill")


def row(gold: tuple[str, ...] = GOLD, note: str = "") -> dict[str, str]:
    questions = "\n".join(
        f'{i}. What is best tag for entity "{10 * i}" in sentence: "{note} It was {10 * i} .?"'
        for i in range(1, len(gold) + 1)
    )
    context = (
        f"Here is a list of US GAAP tags options: ,{','.join(OPTIONS)}. Answer the following "
        f"questions.\n{questions}\nOutput US GAAP tags:"
    )
    return {"context": context, "target": ",".join(gold)}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def made(directory: Path, **arguments: Any) -> FinerEnvironment:
    others = [tuple(OPTIONS[(i + k) % 6] for k in range(4)) for i in range(6)]
    write(
        directory / "train.jsonl",
        [row(), *(row(gold, f"case {i}") for i, gold in enumerate(others))],
    )
    write(directory / "test.jsonl", [row(gold, "test") for gold in others])
    return FinerEnvironment(str(directory), **arguments)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> FinerEnvironment:
    return made(tmp_path_factory.mktemp("finer"))


@pytest.fixture(scope="module")
def example(world: FinerEnvironment) -> Example:
    return world.examples("train")[0]


RIGHT = ",".join(GOLD)
PASSES = {
    "plain": RIGHT,
    "case": RIGHT.upper(),
    "spaces": " , ".join(GOLD),
    "spaces around": f"\n\n  {RIGHT} \t\r\n ",
    "full stop": f"{RIGHT}.",
    "backticks": f"`{RIGHT}`.",
    "fence": f"```text\n{RIGHT}\n```",
    "after words": f"The first is goodwill, so:\n\n{RIGHT}",
    "after thinking": f"<think>Revenues?\n</think>\n\n{RIGHT}",
    "thinking opened in the template": f"Revenues?\n</think>{RIGHT}",
}
FAILS = {  # response and the questions that still count
    "order swapped": ("DebtInstrumentTerm,Goodwill,Revenues,Goodwill", 2),
    "one wrong": ("Goodwill,DebtInstrumentTerm,Revenues,Revenues", 3),
    "last missing": ("Goodwill,DebtInstrumentTerm,Revenues", 3),
    "first missing": ("DebtInstrumentTerm,Revenues,Goodwill", 0),
    "one too many": (f"{RIGHT},Revenues", 3),
    "twice": (f"{RIGHT},{RIGHT}", 0),
    "all options": (",".join(OPTIONS), 0),
    "right, then all options": (f"{RIGHT},{','.join(OPTIONS)}", 0),
    "trailing comma": (f"{RIGHT},", 3),
    "leading comma": (f",{RIGHT}", 0),
    "full-width commas": ("，".join(GOLD), 0),
    "semicolons": (";".join(GOLD), 0),
    "spaces for commas": (" ".join(GOLD), 0),
    "a line each": ("\n".join(GOLD), 1),  # the last line alone, at position 1
    "label": (f"Output US GAAP tags: {RIGHT}", 3),
    "numbered": ("1. Goodwill,2. DebtInstrumentTerm,3. Revenues,4. Goodwill", 0),
    "bold": (f"**{RIGHT}**", 2),
    "words after it": (f"{RIGHT}\nI hope this helps, dear user", 0),
    "thinking never closed": (f"<think>{RIGHT}", 0),
    "only in the thinking": (f"<think>{RIGHT}</think>", 0),
    "python": (f"{list(GOLD)}", 0),
    "code": ("__import__('os').abort(),a,b,c", 0),
    "full stops": (f"{RIGHT}..", 3),
    "empty": ("", 0),
    "blank": (" \n\t \n", 0),
    "empty fence": ("```\n```", 0),
    "commas": (",,,", 0),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_passes(name: str, world: FinerEnvironment, example: Example) -> None:
    outcome = world.evaluate(example, PASSES[name])
    assert (outcome.reward, outcome.passed, outcome.feedback) == (1.0, True, "")
    assert (outcome.cases_passed, outcome.cases) == (4, 4)


@pytest.mark.parametrize("name", FAILS)
def test_what_fails(name: str, world: FinerEnvironment, example: Example) -> None:
    response, passed = FAILS[name]
    outcome = world.evaluate(example, response)
    assert (outcome.reward, outcome.passed, outcome.cases_passed) == (passed / 4, False, passed)
    assert outcome.feedback
    assert not leaks(outcome.feedback, response, example)


def leaks(feedback: str, response: str, example: Example) -> list[str]:
    """Right tags that the feedback holds though the response did not, whatever their case."""
    return [
        tag
        for tag in example.data["tags"]
        if tag.lower() in feedback.lower() and tag.lower() not in response.lower()
    ]


def test_feedback_says_what_is_wrong_with_each(world: FinerEnvironment, example: Example) -> None:
    lines = world.evaluate(example, "goodwill,Sharepriceless,SharePrice").feedback.split("\n")
    assert "3 tags; 4 are asked for" in lines[0]
    assert lines[1:] == [
        '1. entity "10": right',
        "2. entity \"20\": 'Sharepriceless' is not in the list of options",
        "3. entity \"30\": 'SharePrice' is wrong",
        '4. entity "40": no tag',
    ]
    lines = world.evaluate(example, "Goodwill,,SharePrice,Goodwill").feedback.split("\n")
    assert lines[0] == "2 of 4 tags are right."
    assert lines[2] == '2. entity "20": an empty tag'
    assert "never closed" in world.evaluate(example, "<think>hm").feedback


def test_the_gold_tag_stands_beside_each_wrong_one_if_asked_for(tmp_path: Path) -> None:
    shown = made(tmp_path, show_gold=True)
    first = shown.examples("train")[0]
    assert shown.reveals_gold
    assert shown.evaluate(first, "SharePrice,SharePrice,Revenues").feedback.split("\n")[1:] == [
        "1. entity \"10\": 'SharePrice' is wrong; the right tag is Goodwill",
        "2. entity \"20\": 'SharePrice' is wrong; the right tag is DebtInstrumentTerm",
        '3. entity "30": right',
        '4. entity "40": no tag; the right tag is Goodwill',
    ]
    assert shown.evaluate(first, "").feedback.count("the right tag is ") == 4
    assert shown.evaluate(first, RIGHT).feedback == ""
    assert not made(tmp_path).reveals_gold


def test_the_reward_may_ask_for_all(tmp_path: Path) -> None:
    strict = made(tmp_path, reward="all")
    first = strict.examples("train")[0]
    found = [strict.evaluate(first, response) for response in (RIGHT, FAILS["one wrong"][0])]
    assert [(o.reward, o.passed, o.cases_passed) for o in found] == [
        (1.0, True, 4),
        (0.0, False, 3),
    ]
    with pytest.raises(UserError, match="reward must be fraction or all, found 'half'"):
        made(tmp_path, reward="half")


@pytest.mark.parametrize("name", ["finer-paper", "finer-released"])
def test_the_presets_are_the_paper_s_task(name: str, tmp_path: Path) -> None:
    made(tmp_path)
    args = {**load_config(None, [("preset", name)]).task_args, "train": str(tmp_path)}
    world = load_environment("finer", args)
    outcome = world.evaluate(world.examples("train")[0], FAILS["last missing"][0])
    assert (outcome.reward, outcome.passed) == (0.75, False)
    assert '4. entity "40": no tag; the right tag is Goodwill' in outcome.feedback


tags = st.sampled_from([*OPTIONS, *(o.lower() for o in OPTIONS), "", "Tag", "`", "\x00", "é" * 500])
pieces = st.one_of(
    tags, st.sampled_from([",", " ,", "\n", ".", "```", "<think>", "</think>", "，"])
)


@given(
    st.one_of(st.text(), st.lists(pieces, max_size=14).map(",".join), st.lists(pieces).map("".join))
)
def test_any_response_is_graded_and_nothing_leaks(
    world: FinerEnvironment, example: Example, response: str
) -> None:
    outcome = world.evaluate(example, response)
    assert outcome.passed == (outcome.reward == 1.0) == (outcome.cases_passed == 4)
    assert outcome.passed or outcome.feedback
    assert len(outcome.feedback) <= 1500
    if outcome.passed:
        assert all(tag.lower() in response.lower() for tag in GOLD)
    elif "think" not in response:  # a tag may be put together around a thinking block
        assert not leaks(outcome.feedback, response, example)
    assert world.evaluate(example, response) == outcome


def test_a_long_list_of_questions_has_bounded_feedback(tmp_path: Path) -> None:
    file = write(tmp_path / "long.jsonl", [row(("Goodwill",) * 300)])
    world = FinerEnvironment(str(file), str(file))
    (example,) = world.examples("train")
    outcome = world.evaluate(example, ",".join(["Goodwill"] * 299 + ["x" * 100]))
    assert outcome.cases_passed == 299
    assert "Of the other 294 tags 293 are right" in outcome.feedback
    assert len(world.evaluate(example, ",".join(["x" * 150] * 300)).feedback) <= 1600


def test_reading(tmp_path: Path, world: FinerEnvironment) -> None:
    examples = [*world.examples("train"), *world.examples("test")]
    assert [e.id for e in examples[:2]] == ["train-00000", "train-00001"]
    assert examples[0].prompt == [{"role": "user", "content": row()["context"]}]
    assert all(world.evaluate(e, world.gold(e)).passed for e in examples)
    assert len({id(e.data["options"]) for e in examples[:7]}) == 1  # one tuple, not seven
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n\r\n  \n")
    assert len(FinerEnvironment(str(odd), str(odd)).examples("test")) == 1
    plain = {"context": '1. What is "x"?\n2. And y?', "target": "A, B"}
    bare = write(tmp_path / "bare.jsonl", [plain])
    (example,) = FinerEnvironment(str(bare), str(bare)).examples("test")
    assert example.data == {
        "entities": ('What is "x"?', "And y?"),
        "options": (),
        "tags": ("A", "B"),
    }


def test_the_trivial_strategies(tmp_path: Path) -> None:
    common = ("Revenues", "SharePrice", "SharePrice", "Revenues")
    train = [row(common, f"case {i}") for i in range(3)] + [row(("Depreciation",), "one")]
    world = FinerEnvironment(
        str(write(tmp_path / "train.jsonl", train)), str(write(tmp_path / "test.jsonl", [row()]))
    )
    (example,) = world.examples("test")
    answers = {name: answer(example) for name, answer in world.baselines().items()}
    assert answers == {
        "commonest tag": ",".join(["Revenues"] * 4),
        "same entity in training": ",".join(common),
    }


def test_overlap_of_the_splits_is_noted(tmp_path: Path, world: FinerEnvironment) -> None:
    assert list(world.notes) == []
    file = write(tmp_path / "data.jsonl", [row(), row(note="more")])
    test = write(tmp_path / "test.jsonl", [row(note="new"), row(note="more")])
    (note,) = FinerEnvironment(str(file), str(test)).notes
    assert "1 of 2 test prompts" in note


BAD_ROWS = {
    "no JSON": ("{", "line 2: not JSON"),
    "deep": ("[" * 100_000, "line 2: not JSON"),
    "no object": ("[1]", "line 2: expected an object, found [1]"),
    "other keys": ('{"tokens": [], "id": 3}', "found tokens: list, id: int"),
    "no text": ('{"context": "1. a", "target": 3}', "found context: str, target: int"),
    "no question": ('{"context": "a", "target": "A"}', "no numbered question"),
    "too few tags": (json.dumps({**row(), "target": "Goodwill"}), "4 questions need as many tags"),
    "too many": (json.dumps({**row(), "target": f"{RIGHT},Goodwill"}), "4 questions need as many"),
    "an empty tag": (
        json.dumps({**row(), "target": "Goodwill,,Goodwill,Goodwill"}),
        "as many tags",
    ),
    "unlisted": (json.dumps(row(("Goodwil",))), "'Goodwil' is not among the options"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_malformed_row_is_named(name: str, tmp_path: Path) -> None:
    line, wanted = BAD_ROWS[name]
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{json.dumps(row())}\n{line}\n")
    with pytest.raises(UserError, match=re.escape(wanted)) as caught:
        FinerEnvironment(str(file), str(file))
    assert "bad.jsonl, line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    file = write(tmp_path / "one.jsonl", [row()])
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    cases = {
        (None, None): "--task_args.train PATH --task_args.test PATH",
        (str(file), None): "--task_args.test PATH",
        (str(tmp_path / "no.jsonl"), str(file)): "train data: .*no.jsonl does not exist; a row is",
        (str(tmp_path), None): "train.jsonl does not exist",
        (str(file), str(tmp_path / "empty.jsonl")): "empty.jsonl holds no rows",
        (str(tmp_path / "binary.jsonl"), str(file)): "not UTF-8",
        ("", ""): "train data",
    }
    for (train, test), wanted in cases.items():
        with pytest.raises(UserError, match=wanted):
            FinerEnvironment(train, test)
    with pytest.raises(UserError, match=r"task finer: give the data: --task_args.train"):
        load_environment("finer", {})


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'resd\[hub\]'"):
        FinerEnvironment("someone/finer-batched")


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": [row(), row(note="more")], "test": [row(note="new")]}

    def load_dataset(name: str, *, split: str) -> list[dict[str, str]]:
        if name != "someone/finer-batched":
            raise ConnectionError("Couldn't reach\nthe Hub")
        return splits[split]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    world = FinerEnvironment("someone/finer-batched")
    assert [len(world.examples("train")), len(world.examples("test"))] == [2, 1]
    with pytest.raises(UserError, match=r"\(Couldn't reach the Hub\); download it where there is"):
        FinerEnvironment("someone/else")
    splits["train"] = [{"tokens": "a"}]
    with pytest.raises(UserError, match=r"\(train\) on the Hub, row 1: expected the texts context"):
        FinerEnvironment("someone/finer-batched")


def test_the_task_is_sound(tmp_path: Path) -> None:
    made(tmp_path)
    for show_gold, said in ((False, "in none of"), (True, "show it on purpose")):
        args = {"train": str(tmp_path), "show_gold": show_gold}
        checks = {c.name: c for c in run_checks("finer", args, workers=4)}
        assert {c.name for c in checks.values() if c.state == "fail"} == set(), checks
        assert (checks["gold stays hidden"].state, said in checks["gold stays hidden"].detail) == (
            "ok",
            True,
        )


def test_real_files_hold_what_the_paper_needs() -> None:
    train, test = DATA / "finer_val_500.jsonl", DATA / "finer_test_441.jsonl"
    if not train.is_file():
        pytest.skip("the shared data are not here")
    world = FinerEnvironment(str(train), str(test))
    assert list(world.notes) == []
    for split, number in (("train", 500), ("test", 441)):
        examples = world.examples(split)
        assert len(examples) == number
        assert {len(e.data["options"]) for e in examples} == {139}
        assert {len(e.data["tags"]) for e in examples} == {4}
        assert all(world.evaluate(e, world.gold(e)).passed for e in examples)
        for e in examples[:: number // 10]:
            responses = {**hostile_responses(e, world.gold(e)), **near_misses(world.gold(e))}
            for response in responses.values():
                outcome = world.evaluate(e, response)
                assert outcome.passed or outcome.feedback
                assert len(outcome.feedback) <= 1500
                assert not leaks(outcome.feedback, response, e)


def test_baselines_of_the_real_files() -> None:
    train, test = DATA / "finer_val_500.jsonl", DATA / "finer_test_441.jsonl"
    if not train.is_file():
        pytest.skip("the shared data are not here")
    world = FinerEnvironment(str(train), str(test))
    passed = {}
    for name, answer in world.baselines().items():
        outcomes = [world.evaluate(e, answer(e)) for e in world.examples("test")]
        passed[name] = sum(o.passed for o in outcomes), sum(o.cases_passed or 0 for o in outcomes)
    assert passed == {"commonest tag": (3, 100), "same entity in training": (4, 215)}
