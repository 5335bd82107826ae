"""Reflector, reviewer and curator outputs of any shape: nothing raises, refusals are counted."""

import json
import re

import pytest

from resd.context import (
    Operation,
    parse_curation,
    parse_reflection,
    parse_success_tags,
)
from resd.context.thinking import without_thinking

PARSERS = (parse_reflection, parse_success_tags, parse_curation)
LESSON = "Use `end` to close, not `stop`: it's safer"
ADD = {"op": "ADD", "section": "err", "content": LESSON}
ADDED = Operation("ADD", LESSON, "err")
ONE = json.dumps({"operations": [ADD]})
DRAFT = ONE.replace(LESSON, "draft")
WRONG, TO_DO = "The list was read past its end.", "Check the length, first."
TAGS = [{"id": "err-00001", "tag": "helpful"}, {"id": "sai-00002", "tag": "harmful"}]
TAGGED = (("err-00001", "helpful"), ("sai-00002", "harmful"))
REFLECTION = {"what_went_wrong": WRONG, "what_to_do": TO_DO, "tags": TAGS}
WHOLE = json.dumps(REFLECTION)


def yaml_of(content):
    return f"operations:\n  - op: ADD\n    section: err\n    content: {content}\n"


def call(arguments):
    return json.dumps({"name": "write", "arguments": arguments})


def json5(content):
    return f"{{operations: [{{op: 'ADD', section: 'err', content: \"{content}\"}}]}}"


# One lesson, in the shapes that models write; each gives exactly `ADDED`.
CURATIONS = {
    "fence": f"Here {{x}} it is:\n```json\n{json.dumps(json.loads(ONE), indent=2)}\n```\nDone.",
    "python": str(json.loads(ONE)),
    "python tuple": str({"operations": (ADD,)}),
    "trailing commas": ONE.replace("}]}", ",},],}"),
    "line comment": ONE.replace("}]", "} // all, of it\n]").replace("[", "[ # one\n", 1),
    "block comment": ONE.replace("[{", "[ /* one { */ {"),
    "single quotes": ONE.replace("it's", "its").replace('"', "'").replace("its", "it's"),
    "no quotes": f"{{operations: [{{op: ADD, section: err, content: {LESSON}}}]}}",
    "json5": json5(LESSON),
    "full width": f"｛“operations”：［｛“op”：“ADD”，“section”：“err”，“content”：“{LESSON}”｝］｝",
    "triple quotes": ONE.replace(f'"{LESSON}"', f'"""{LESSON}"""'),
    "equals": ONE.replace('":', '" =>'),
    "missing commas": ONE.replace(', "', ' "').replace("},", "}"),
    "unclosed": ONE[:-3],
    "raw newline": ONE.replace("close, ", "close,\n "),
    "escaped": ONE.replace('"', '\\"'),
    "string": json.dumps(ONE),
    "string in string in string": json.dumps(json.dumps(json.dumps(json.loads(ONE)))),
    "list in string": json.dumps({"operations": json.dumps([ADD])}),
    "call": call({"operations": [ADD]}),
    "call, encoded": call(ONE),
    "call in marks": f"<tool_call>\n{call({'operations': [ADD]})}\n</tool_call>",
    "parameter": f"<function=curate><parameter=operations>\n{json.dumps([ADD])}\n</parameter>",
    "bare list": json.dumps([ADD]),
    "lines": json.dumps(ADD) + "\n" + json.dumps(ADD),
    "lines of lists": ONE + "\n" + ONE,
    "wrapped": json.dumps({"answer": [{"result": [ADD]}]}),
    "type": ONE.replace('"op"', '"type"'),
    "action": ONE.replace('"op": "ADD"', '"Action": "add lesson"'),
    "other keys": ONE.replace('"op"', '"operationType"').replace("content", "New Text"),
    "op as key": json.dumps({"operations": [{"ADD": {"section": "err", "content": LESSON}}]}),
    "grouped": json.dumps(
        {"operations": {"ADD": [{"section": "err", "text": LESSON}], "UPDATE": []}}
    ),
    "grouped by section": json.dumps({"add": {"err": [LESSON]}}),
    "numbered": json.dumps({"operations": {"1": ADD}}),
    "bullet": json.dumps(
        {"operations": [{"op": "ADD", "bullet": {"section": "err", "content": LESSON}}]}
    ),
    "no op": json.dumps({"operations": [{"section": "err", "content": LESSON}]}),
    "twice a key": '{"operations": [], ' + ONE[1:-1] + ', "operations": []}',
    "then an empty one": ONE + '\n(else I would write {"operations": []})',
    "then the form": ONE + '\nform: {"operations": [{"op": "ADD", "content": "..."}]}',
    "yaml": "Sure:\n```yaml\n" + yaml_of(LESSON) + "```\n",
    "yaml, quoted": yaml_of(f'"{LESSON}" # new'),
    "yaml, block": yaml_of("|\n      Use `end` to close,\n      not `stop`: it's safer"),
    "yaml, folded": yaml_of(">-\n      Use `end` to close,\n      not `stop`: it's safer"),
    "yaml, flush": yaml_of(LESSON).replace("\n  ", "\n"),
    "yaml, list": f"- op: ADD\n  section: err\n  content: {LESSON}",
    "yaml, op as key": f"operations:\n  - ADD:\n      section: err\n      content: {LESSON}",
    "thinking": f'<think>say {DRAFT} or "write </think> {{"</think>{ONE}',
    "template's thinking": f"I could say {DRAFT}\n</think>\n{ONE}",
    "thinking after": ONE + "<think>" + DRAFT,
    "spoken of": f"I close `</think>` first. {ONE} Then `<think>`.",
}


@pytest.mark.parametrize("shape", CURATIONS)
def test_a_lesson_arrives_whole_and_once(shape):
    curation = parse_curation(CURATIONS[shape])
    assert (curation.operations, +curation.rejected, curation.problem) == ((ADDED,), {}, "")


@pytest.mark.parametrize("tag", ["</think>", "<think>", "<think>x</think>"])
def test_tags_inside_of_strings_are_what_the_lesson_is_about(tag):
    lesson = f"write {tag} before the answer"
    strict = ONE.replace(LESSON, lesson)
    for text in (
        *(strict, strict[:-1] + ",}", str(json.loads(strict)), json.dumps(strict), json5(lesson)),
        *(
            strict.replace('"', '\\"'),
            "<think>hm</think>" + strict,
            f"say {strict} </think>{strict}",
        ),
        *(yaml_of(lesson), yaml_of(f'"{lesson}"'), f"｛“content”：“{lesson}”，“section”：“err”｝"),
    ):
        assert [o.content for o in parse_curation(text).operations] == [lesson], text
    text = WHOLE.replace(TO_DO, lesson)
    for shape in (text, text[:-1] + ",}"):
        assert parse_reflection(shape).what_to_do == lesson


@pytest.mark.parametrize(
    ("text", "rest", "unfinished"),
    [
        ("a", "a", False),
        ("<think>a</think>b", "b", False),
        ("a</think>b", "b", False),
        ("<think>a", "", True),
        ("a<think>b", "a", True),
        ("<think>a</think>b<think>c</think>d", "bd", False),
        ('<think>{"a": "</think>"}', "", True),
        ('<think>{"a": "b</think>{"c": 1}', '{"c": 1}', False),
        ('{"a": "b\n</think>\nso: {"c": 1}', '\nso: {"c": 1}', False),
        ("[THINK]a[/THINK]b", "b", False),
        ("< think >a</ thinking >b", "b", False),
        ("Note: a</think>\nb", "\nb", False),
    ],
)
def test_thinking_around_an_answer_goes(text, rest, unfinished):
    assert without_thinking(text) == (rest, unfinished)


# Output, operations, what is refused by reason, and a word of the problem.
REFUSED = [
    ("", (), {"curation_empty": 1}, "empty"),
    (" \n", (), {"curation_empty": 1}, "empty"),
    ("<think>" + ONE, (), {"curation_unfinished": 1}, "inside its thinking"),
    ("Nothing to add.", (), {"curation_no_json": 1}, "no JSON object"),
    ("null", (), {"curation_no_json": 1}, "no JSON object"),
    ("{", (), {"curation_wrong_keys": 1}, "could not be read: .* at character 1"),
    ('{"reasoning": "x"}', (), {"curation_wrong_keys": 1}, "none of the keys"),
    ("[]", (), {}, ""),
    ('{"operations": []}', (), {}, ""),
    ('{"operations": {}}', (), {}, ""),
    ("operations: []", (), {}, ""),
    ('{"operations": [', (), {"curation_cut_off": 1}, "cut off"),
    ('{"operations": null}', (), {"operations_not_a_list": 1}, "no list"),
    ('{"operations": "ADD"}', (), {"operations_not_a_list": 1}, "no list"),
    ('{"operations": [null, 1, "x", []]}', (), {"operation_not_an_object": 4}, "no JSON object"),
    ('{"operations": [{"op": 3}]}', (), {"operation_unknown": 1}, "no 'op'"),
    ('{"operations": [{"op": "EAT", "content": "x"}]}', (), {"operation_unknown": 1}, "no 'op'"),
    (
        '{"operations": [{"op": "ADD", "content": "..."}]}',
        (),
        {"operation_no_content": 1},
        "content",
    ),
    ('{"operations": [{"op": "ADD", "content": {}}]}', (), {"operation_no_content": 1}, "content"),
    ('{"operations": [{"op": "ADD", "content": "\\ud800"}]}', (), {"operation_no_content": 1}, "c"),
    ('{"operations": [{"op": "UPDATE", "content": "x"}]}', (), {"operation_no_id": 1}, "no 'id'"),
    ('{"operations": [{"op": "REMOVE", "id": 4}]}', (), {"operation_no_id": 1}, "no 'id'"),
    (
        '{"operations": [{"op": "MERGE", "ids": ["a-1", "A-01"], "content": "x"}]}',
        *((), {"operation_no_id": 1}, "fewer than two"),
    ),
    (DRAFT + "\nBetter:\n" + ONE, (ADDED,), {"curation_draft": 1}, ""),
    (DRAFT + "\nBetter:\n" + ONE[:-1] + ",}", (ADDED,), {"curation_draft": 1}, ""),
    (
        f"[{json.dumps(ADD)}] no: " + DRAFT,
        (Operation("ADD", "draft", "err"),),
        {"curation_draft": 1},
        "",
    ),
    (ONE[:-2] + ', {"op": "ADD", "content": "half a le', (ADDED,), {"curation_cut_off": 1}, ""),
    (ONE.replace('"err"', '"?!x"'), (Operation("ADD", LESSON),), {"section_unknown": 1}, ""),
    (" " * 40_000 + ONE, (ADDED,), {}, ""),
    ("x " * 40_000 + ONE, (ADDED,), {"curation_too_long": 1}, ""),
    ('{"n": ' + "9" * 5000 + ", " + ONE[1:], (ADDED,), {}, ""),
    ('{"x": [1, 2' * 300 + "}" + ONE, (ADDED,), {}, ""),
    ("for (;;) { if (x) { y(); } }" * 40 + ONE, (ADDED,), {}, ""),
]


@pytest.mark.parametrize(("output", "operations", "rejected", "problem"), REFUSED)
def test_what_is_lost_is_counted(output, operations, rejected, problem):
    curation = parse_curation(output)
    assert curation.operations == operations
    assert dict(curation.rejected) == rejected
    assert re.search(problem, curation.problem) and bool(problem) == bool(curation.problem)
    assert "\n" not in curation.problem


def test_lists_that_nothing_parts_count_together_in_their_order():
    lists = [json.dumps({"operations": [{**ADD, "content": f"lesson {n}"}]}) for n in range(4)]
    curation = parse_curation("\n".join(lists))
    assert [o.content for o in curation.operations] == [f"lesson {n}" for n in range(4)]


def test_operations_beyond_the_sixteenth_are_refused():
    many = [{**ADD, "content": f"lesson {i}"} for i in range(20)]
    curation = parse_curation(json.dumps({"operations": many}))
    assert [o.content for o in curation.operations] == [f"lesson {i}" for i in range(16)]
    assert curation.rejected == {"operation_too_many": 4}


@pytest.mark.parametrize(("length", "dropped"), [(32_000, 0), (32_001, 1)])
def test_of_a_long_output_the_end_counts(length, dropped):
    curation = parse_curation("x" * (length - len(ONE)) + ONE)
    assert curation.operations == (ADDED,)
    assert curation.rejected["curation_too_long"] == dropped


def test_as_many_ids_as_an_operation_needs():
    many = [f"err-{n:05d}" for n in range(1, 21)]
    for op, most in (("UPDATE", 1), ("MERGE", 16), ("REMOVE", 16)):
        for ids in (many, ", ".join(many)):
            item = {"op": op, "content": "x y", "ids": ids}
            operations = parse_curation(json.dumps({"operations": [item]})).operations
            assert [i for o in operations for i in o.ids] == many[:most]


A, B = "err-00001", "sai-00002"


@pytest.mark.parametrize(
    ("item", "operations"),
    [
        ({"op": "UPDATE", "id": "[ERR-1]", "content": "x"}, [Operation("UPDATE", "x", ids=(A,))]),
        ({"type": "edit", "bullet_id": A, "content": "x"}, [Operation("UPDATE", "x", ids=(A,))]),
        ({"op": "DELETE", "ids": [A, B]}, [Operation("REMOVE", ids=(i,)) for i in (A, B)]),
        ({"REMOVE": [A]}, [Operation("REMOVE", ids=(A,))]),
        ({"UPDATE": {A: "x"}}, [Operation("UPDATE", "x", ids=(A,))]),
        ({"op": "MERGE", "ids": f"{A}, {B}", "id": "c", "content": "x"}, None),
        ({"op": "MERGE", "source_ids": [A, {"id": B}], "content": "x"}, None),
        ({"op": "MERGE", "from": A, "into": B, "content": "x"}, None),
        ({"MERGE": [A, B], "content": "x"}, None),
        ({"op": "ADD", "content": '{"a": 1} is a dict'}, [Operation("ADD", '{"a": 1} is a dict')]),
        ({"op": "ADD", "content": ["a", "b", 3]}, [Operation("ADD", "a b")]),
    ],
)
def test_the_other_operations(item, operations):
    expected = operations or [Operation("MERGE", "x", ids=(A, B))]
    curation = parse_curation(json.dumps({"operations": [item]}))
    assert list(curation.operations) == expected and not curation.rejected


# -- reflections and tags ----------------------------------------------------------------------

TAG_SHAPES = [
    TAGS,
    json.dumps(TAGS),
    dict(TAGGED),
    [dict([pair]) for pair in TAGGED],
    {"helpful": [A], "harmful": B, "neutral": []},
    {"helpful": [{"id": A}], "harmful": [{"id": B}]},
    [list(pair) for pair in TAGGED],
    {A: {"tag": "helpful"}, B: {"tag": "harmful"}},
    {"1": TAGS[0], "2": TAGS[1]},
    ["err-00001: helpful", "[sai-00002] - HARMFUL"],
    "err-00001: helpful, sai-00002 (harmful)",
    [{"bullet_id": A, "label": "Helpful."}, {"ID": "[SAI-2]", " Tag": " HARMFUL "}],
    [{"id": A, "helpful": 1, "harmful": 0}, {"id": B, "helpful": False, "harmful": True}],
]
REFLECTIONS = [
    WHOLE,
    "```json\n" + WHOLE + "\n```",
    str(REFLECTION),
    WHOLE.replace('"', "'"),
    json.dumps(WHOLE),
    f"[{WHOLE}]",
    call(REFLECTION),
    call(WHOLE),
    WHOLE.replace('"what_to_do"', "// so\nwhat_to_do")[:-1] + ",}",
    WHOLE.replace("what_went_wrong", "error_identification").replace("what_to_do", "key_insight"),
    WHOLE.replace("what_went_wrong", "What went wrong").replace("what_to_do", "whatToDo"),
    json.dumps({"reflection": {"what_went_wrong": WRONG, "what_to_do": TO_DO}, "tags": TAGS}),
    "\n".join(json.dumps({key: value}) for key, value in REFLECTION.items()),
    "\n".join(map(json.dumps, [{"what_went_wrong": WRONG, "what_to_do": TO_DO}, *TAGS])),
    WHOLE + '\nForm: {"what_went_wrong": "...", "what_to_do": "", "tags": []}',
    f"what_went_wrong: {WRONG}\nwhat_to_do: >\n  {TO_DO}\ntags:\n- id: {A}\n  tag: helpful\n"
    f"- id: {B}\n  tag: harmful",
    f"what_went_wrong: '{WRONG}'\nwhat_to_do: {TO_DO}\ntags: {{{A}: helpful, {B}: harmful}}",
    f"<what_went_wrong>{WRONG}</what_went_wrong><what_to_do>{TO_DO}</what_to_do>"
    f"<tags>{json.dumps(TAGS)}</tags>",
    f"<function=r><parameter=what_went_wrong>\n{WRONG}\n</parameter>\n<parameter=what_to_do>{TO_DO}"
    f"</parameter><parameter=tags>{json.dumps(TAGS)}</parameter></function>",
    *(json.dumps({**REFLECTION, "tags": tags}) for tags in TAG_SHAPES),
]


@pytest.mark.parametrize("output", REFLECTIONS)
def test_a_reflection_arrives_whole(output):
    parsed = parse_reflection(output)
    assert (parsed.what_went_wrong, parsed.what_to_do, parsed.tags) == (WRONG, TO_DO, TAGGED)
    assert (dict(parsed.rejected), parsed.problem) == ({}, "") and parsed


@pytest.mark.parametrize(
    "output",
    [
        *(json.dumps({"tags": tags}) for tags in TAG_SHAPES),
        *(json.dumps(tags) for tags in TAG_SHAPES[:7]),
        "\n".join(map(json.dumps, TAGS)),
        call(json.dumps({"bullet_tags": TAGS})),
        json.dumps({"tags": TAGS})[:-2],
        json.dumps({"tags": TAGS}) + ' or else {"tags": []}',
        f"tags:\n  {A}: helpful\n  {B}: harmful",
        f"- id: {A}\n  tag: helpful\n- id: {B}\n  tag: harmful",
    ],
)
def test_tags_after_a_success_arrive(output):
    parsed = parse_success_tags(output)
    assert parsed.tags == TAGGED and not parsed.rejected and not parsed.problem and not parsed


@pytest.mark.parametrize(
    ("output", "texts", "tags", "rejected"),
    [
        ("", ("", ""), 0, {"reflection_empty": 1}),
        ("<think>" + WHOLE, ("", ""), 0, {"reflection_unfinished": 1}),
        ("Mind the end.", ("", ""), 0, {"reflection_no_json": 1}),
        ("Lesson: mind the end.", ("", ""), 0, {"reflection_no_json": 1}),
        ('"Mind the end."', ("", ""), 0, {"reflection_no_json": 1}),
        ("[1, 2]", ("", ""), 0, {"reflection_wrong_keys": 1}),
        ("{}", ("", ""), 0, {"reflection_wrong_keys": 1}),
        (
            '{"what_to_do": 5}',
            ("", ""),
            0,
            {"reflection_text_mistyped": 1, "reflection_no_text": 1},
        ),
        ('{"tags": [["err-1", "helpful"]]}', ("", ""), 1, {"reflection_no_text": 1}),
        (
            '{"what_went_wrong": {}, "lesson": ["b", 1, "c"]}',
            ("", "b c"),
            0,
            {"reflection_text_mistyped": 1},
        ),
        ('{"what_to_do": "a\\u0000\\ud800b\\nc"}', ("", "ab\nc"), 0, {}),
        ('{"what_to_do": "' + "x" * 5000 + '"}', ("", "x" * 4000), 0, {}),
        ('{"what_to_do": "half a sen', ("", "half a sen"), 0, {"reflection_cut_off": 1}),
        (
            WHOLE.replace(TO_DO, "no") + " Better: " + WHOLE,
            (WRONG, TO_DO),
            2,
            {"reflection_draft": 1},
        ),
        ('{"what_to_do": "a", "tags": 7}', ("", "a"), 0, {"tags_not_a_list": 1}),
        ('{"what_to_do": "a", "tags": [null, "x", 1, [], {}]}', ("", "a"), 0, {"tag_malformed": 5}),
        (
            '{"what_to_do": "a", "tags": [{"id": "err-1", "helpful": 1, "harmful": 1}]}',
            *(("", "a"), 0, {"tag_malformed": 1}),
        ),
        ('{"what_to_do": "a", "tags": {"err-1": "unhelpful"}}', ("", "a"), 0, {"tag_malformed": 1}),
        (
            json.dumps(
                {"what_to_do": "a", "tags": [*TAGS[:1], {"id": "[Err-1]", "tag": "harmful"}]}
            ),
            *(("", "a"), 1, {"tag_repeated": 1}),
        ),
        (
            json.dumps({"what_to_do": "a", "tags": TAGS + [{"id": "x", "tag": 0}] * 70}),
            *(("", "a"), 2, {"tag_malformed": 62, "tag_too_many": 8}),
        ),
    ],
)
def test_what_is_lost_of_a_reflection_is_counted(output, texts, tags, rejected):
    parsed = parse_reflection(output)
    assert (parsed.what_went_wrong, parsed.what_to_do) == texts
    assert parsed.tags == TAGGED[:tags] and dict(parsed.rejected) == rejected
    assert bool(parsed) == any(texts) == (not parsed.problem)


@pytest.mark.parametrize(
    ("output", "reason"),
    [("", "empty"), ("fine", "no_json"), ('{"what_to_do": "x"}', "wrong_keys")],
)
def test_tags_that_cannot_be_read_are_counted(output, reason):
    parsed = parse_success_tags(output)
    assert (dict(parsed.rejected), bool(parsed.problem)) == ({f"review_{reason}": 1}, True)


@pytest.mark.parametrize("output", [None, 3, b"{}", [], {}])
def test_what_is_no_text_is_empty(output):
    assert {reason for parse in PARSERS for reason in parse(output).rejected} == {
        *("reflection_empty", "review_empty", "curation_empty")
    }
