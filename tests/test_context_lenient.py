"""The lenient readers of JSON and YAML, shape by shape: what is read, where it ends, how deep."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resd.context.curation import parse_curation
from resd.context.lenient_json import Cut, pairs, read_string, read_value, unescape
from resd.context.lenient_yaml import read_yaml
from resd.context.parsing import Output
from resd.context.reflection import parse_reflection
from resd.context.thinking import _string_end, _tags, without_thinking

JSON: dict[str, tuple[str, Any, bool]] = {
    "the end": ('{"a": 1} x', {"a": 1}, False),
    "comments": ('{"a": "x", // one\n"b": /* two */ 2 # three\n}', {"a": "x", "b": 2}, False),
    "a comment of stars": ('{"a": /* ** * / */ "b" /***/}', {"a": "b"}, False),
    "words": (
        "[true, None, False, null, undefined, 1.5, x y]",
        [True, None, False, None, None, 1.5, "x y"],
        False,
    ),
    "tuple": ('{"a": (1, "b"), "c": 2}', {"a": [1, "b"], "c": 2}, False),
    "assignments": (
        "{a = 1, b := 2, c => 3, 'd'： 4}",
        {"a": 1, "b": 2, "c": 3, "d": 4},
        False,
    ),
    "a comma in words": ("{a: one, two, b: 2}", {"a": "one, two", "b": 2}, False),
    "triple": ('{"a": """say "b", \\"c\\": d"""}', {"a": 'say "b", "c": d'}, False),
    "quotes inside": (
        '{"a": "say "b" and "c", then", "d": 1}',
        {"a": 'say "b" and "c", then', "d": 1},
        False,
    ),
    "an escaped backslash": ('{"a": "b\\\\", "c": 1}', {"a": "b\\", "c": 1}, False),
    "an escaped quote": ('{"a": "b\\", c", "d": 1}', {"a": 'b", c', "d": 1}, False),
    "key without a value": ('{"a", "b": 1}', {"b": 1}, False),
    "never closed": ('{"a": [1, 2', {"a": [1, 2]}, True),
    "an object in a key's place": ('{"a": "1", {"b": 2}', {"a": "1"}, False),
    "a list closed by a brace": ('{"a": [1, 2}', {"a": [1, 2]}, False),
    "only the bracket": ("[", [], True),
}


@pytest.mark.parametrize("shape", JSON)
def test_what_a_value_is(shape: str) -> None:
    text, value, cut = JSON[shape]
    found, _, was_cut = read_value(text, 0)
    assert (found, was_cut) == (value, cut)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ('x {"a": 1} y', 2, 10),
        ("[1, [2], 3]]", 0, 11),
        ('{"a": [1, 2} y', 0, 12),
        ("[1, 2) y", 0, 6),
        ("(1, 2) y", 0, 6),
        ('["a" y', 0, 6),
        ("[", 0, 1),
    ],
)
def test_where_a_value_ends(text: str, start: int, end: int) -> None:
    assert read_value(text, start)[1] == end


def test_a_string_that_the_text_ended_in_is_marked() -> None:
    (whole, cut), _, was_cut = read_value('["a", "b', 0)
    assert (whole, cut, was_cut) == ("a", "b", True)
    assert not isinstance(whole, Cut)
    assert isinstance(cut, Cut)


def test_where_a_string_ends() -> None:
    assert read_string('"a" b', 0) == 5  # nothing that follows a value follows
    assert read_string('"a", "b"', 0) == 3
    assert read_string("x 'a'}", 2) == 5
    assert read_string("“a”, “b”", 0) == 3


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('a\\nb\\tc\\/\\"\\\\', 'a\nb\tc/"\\'),
        ("\\u00e9\\ud83d\\ude00", "é😀"),
        ("\\d \\u12", "\\d \\u12"),
        ("\\b\\f\\r", "\b\f\r"),
        ("end\\", "end"),
        ("\\ud800", "�"),
    ],
)
def test_escapes(raw: str, text: str) -> None:
    assert unescape(raw) == text


@pytest.mark.parametrize(
    ("items", "value"),
    [
        ([("a", 1), ("a", 2)], {"a": 2}),
        ([("a", 1), ("a", "")], {"a": 1}),
        ([("a", []), ("a", {})], {"a": {}}),
        ([("a", {"b": 1}), ("a", {"c": 2})], {"a": [{"b": 1}, {"c": 2}]}),
        ([("a", {"b": 1}), ("a", {}), ("a", {"c": 2})], {"a": [{"b": 1}, {}, {"c": 2}]}),
        ([("a", {"b": 1}), ("a", {"c": 2}), ("a", "d"), ("a", {"e": 3})], {"a": {"e": 3}}),
        ([("a", [1]), ("a", {"c": 2})], {"a": {"c": 2}}),
    ],
)
def test_a_key_that_stands_twice(items: list[tuple[str, Any]], value: Any) -> None:
    assert pairs(items) == value


def depth_of(value: Any) -> int:
    levels = 0
    while isinstance(value, list | dict) and value:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
        levels += 1
    return levels


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":(', "{a:["])
def test_json_is_not_read_to_any_depth(opening: str) -> None:
    """Nor does the reader end in Python's limit of recursion."""
    assert 20 <= depth_of(read_value(opening * 5_000, 0)[0]) <= 40


@pytest.mark.parametrize(
    "lines",
    [
        [" " * level + "a:" for level in range(1_500)],
        [" " * level * 2 + "- a:" for level in range(1_500)],
        [" " * level + ("a:" if level % 2 else "-") for level in range(1_500)],
    ],
)
def test_yaml_is_not_read_to_any_depth(lines: list[str]) -> None:
    value = read_yaml("\n".join(["a:", *(" " + line for line in lines)]), {"a"})
    assert 10 <= depth_of(value) <= 40


YAML: dict[str, tuple[str, Any]] = {
    "quoted keys": ('"a": 1\n"b": 2', {"a": "1", "b": "2"}),
    "bold keys": ("**a**: x\n**b:** y", {"a": "x", "b": "y"}),
    "bullets": ("a:\n* x\n• y\n- z", {"a": ["x", "y", "z"]}),
    "an empty item": (
        "a:\n  - x\n  -\n    b: y\n  -\nc: z",
        {"a": ["x", {"b": "y"}, None], "c": "z"},
    ),
    "a colon in a value": ("a: x: y\nb: http://z", {"a": "x: y", "b": "http://z"}),
    "several lines": ("a: x\n  y\n\n  z\nb: w", {"a": "x y z", "b": "w"}),
    "text below its key": ("a:\n  x y\n  z\nb: w", {"a": "x y z", "b": "w"}),
    "literal": ("a: |\n  x\n    y\nb: |-\n  z", {"a": "x\ny", "b": "z"}),
    "folded": ("a: >\n  x\n  y\nb: >+\n  z", {"a": "x y", "b": "z"}),
    "literal with a width": ("a: |2\n  x\n  y", {"a": "x\ny"}),
    "JSON": ('a: {"b": [1,\n  2]}\nc: [x, y]', {"a": {"b": [1, 2]}, "c": ["x", "y"]}),
    "quotes": ("a: \"x\\ny\" # z\nb: 'x\\ny'", {"a": "x\ny", "b": "x\\ny"}),
    "quotes in a comment": ('a: "x" # not "y".', {"a": "x"}),
    "an apostrophe": ("a: 'tis so\nb: \"", {"a": "'tis so", "b": '"'}),
    "comments": ("# one\na: x # two\n  # three\nb: # four\n  y", {"a": "x", "b": "y"}),
    "no comment": ("a: x#y\nb: C# is", {"a": "x#y", "b": "C# is"}),
    "nothing": ("a: null\nb: ~\nc: None\nd:\ne: x", dict.fromkeys("abcd") | {"e": "x"}),
    "fences": ("```yaml\na: x\n---\nb: y\n...\n```", {"a": "x", "b": "y"}),
    "tabs": ("a:\n\tb: x\n\tc: y", {"a": {"b": "x", "c": "y"}}),
    "what is indented less ends it": ("  a: x\n  b: y\nc: z", {"a": "x", "b": "y"}),
    "what is no member ends it": ("a: x\nso it is\nb: y", {"a": "x"}),
    "text before": ("Well, here:\n\n  a:\n    b: x", {"a": {"b": "x"}}),
    "a list first": ("- a: x\n  b: y\n- a: z", [{"a": "x", "b": "y"}, {"a": "z"}]),
    "a list, flush": ("a:\n- b: x\n  c: y\nd: z", {"a": [{"b": "x", "c": "y"}], "d": "z"}),
    "a key with words": ("A (or B): x", None),
    "a plain key": ("A: x\nwhat to do: y", {"A": "x", "what to do": "y"}),
    "twice": ("a: x\na: y", {"a": "y"}),
    "no such key": ("b: x", None),
    "empty": ("", None),
}


def test_hundreds_of_lines_of_yaml() -> None:
    assert read_yaml("a:\n" + "  - x\n" * 300, {"a"}) == {"a": ["x"] * 300}


@pytest.mark.parametrize("shape", YAML)
def test_what_yaml_is(shape: str) -> None:
    text, value = YAML[shape]
    assert read_yaml(text, {"a"}) == value


@pytest.mark.parametrize(
    ("key", "read"),
    [
        *((key, True) for key in ("What went wrong", "error_identification", "Key insight")),
        *((key, True) for key in ("root cause analysis", "correct approach", "what_to_do")),
        # Prose begins so.
        *((key, False) for key in ("Root cause", "Error", "Lesson", "Insight", "Advice")),
    ],
)
def test_only_keys_that_prose_does_not_use_make_a_reflection_of_lines(key: str, read: bool) -> None:
    for text in (f"{key}: mind the end", f"<{key.replace(' ', '_')}>x</{key.replace(' ', '_')}>"):
        assert bool(parse_reflection(text)) is read, text


def operations(output: str) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(o.op, o.section, o.content, o.ids) for o in parse_curation(output).operations]


def test_lessons_grouped_by_section_are_lessons_each() -> None:
    grouped = '{"operations": {"ADD": {"err": ["use it", "close it"], "code": "open it"}}}'
    assert operations(grouped) == [
        ("ADD", "err", "use it", ()),
        ("ADD", "err", "close it", ()),
        ("ADD", "code", "open it", ()),
    ]


def test_operations_grouped_by_id_need_ids() -> None:
    good = '{"operations": [{"UPDATE": {"misc-00001": "say it", "err-2": "do it"}}]}'
    assert [(o[2], o[3]) for o in operations(good)] == [
        ("say it", ("misc-00001",)),
        ("do it", ("err-00002",)),
    ]
    for bad in ('{"why": "old"}', '{"misc-00001": "say it", "why": "old"}'):
        curation = parse_curation(f'{{"operations": [{{"UPDATE": {bad}}}]}}')
        assert curation.operations == ()
        assert sum(curation.rejected.values()) == 1
        assert curation.problem


def test_a_long_output_that_wants_nothing_is_no_problem() -> None:
    curation = parse_curation("well " * 10_000 + '{"operations": []}')
    assert (curation.operations, curation.problem) == ((), "")
    assert curation.rejected == {"curation_too_long": 1}


def nested(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = {"more": value}
    return value


def test_an_answer_is_looked_for_five_levels_deep() -> None:
    wish = {"operations": [{"op": "ADD", "content": "mind the end"}]}
    lesson = {"what_to_do": "mind the end"}
    tags = {"tags": [{"id": "err-1", "tag": "helpful"}]}
    for levels, found in ((5, True), (6, False)):
        assert bool(parse_curation(json.dumps(nested(wish, levels))).operations) is found
        assert bool(parse_reflection(json.dumps(nested(lesson, levels)))) is found
        # Tags beside the text: `more` is the first level.
        beside = json.dumps(lesson | nested(tags, levels))
        assert bool(parse_reflection(beside).tags) is found


def test_a_string_in_a_string_is_unwrapped_five_times() -> None:
    text = "mind"
    for _ in range(5):
        text = json.dumps(text)
    assert Output.of(text).text == "mind"
    assert Output.of(json.dumps(text)).text == '"mind"'


# -- thinking around an answer ---------------------------------------------------------------------


@pytest.mark.parametrize("quote", ["`", '"', "'"])
def test_a_tag_in_quotes_is_spoken_of_wherever_it_stands(quote: str) -> None:
    for text in (
        f'{quote}</think>{quote} ends it. {{"a": 1}}',
        f'x {quote}</think>{quote} {{"a": 1}}',
    ):
        assert without_thinking(text) == (text, False)
    assert without_thinking('"</think>` {"a": 1}') == ('` {"a": 1}', False)


def test_a_quote_before_any_json_holds_no_tag() -> None:
    text = 'I note: "so\n<think>a</think> {"x": 1}'
    assert without_thinking(text) == (text.replace("<think>a</think>", ""), False)


def test_a_broken_string_ends_at_thinkings_tag() -> None:
    text = 'so: {"a": "b, then</think>\n{"c": 1}<think>x'
    close, again = text.index("</"), text.index("<think")
    assert _string_end(text, text.index('"b'))[0] == close
    whole = 'so: "a <b>", "c"'
    assert _string_end(whole, 4) == (whole.index(","), 0)
    assert _tags(text) == [(close, close + 8, True), (again, again + 7, False)]
