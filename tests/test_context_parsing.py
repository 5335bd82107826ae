"""Reflector, reviewer and curator outputs of any shape: nothing raises, refusals are counted."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resd.context import (
    Operation,
    Playbook,
    PlaybookConfig,
    parse_curation,
    parse_reflection,
    parse_success_tags,
)
from resd.context.lenient_json import read_object
from resd.context.parsing import as_id, find_object, find_objects

REFLECTION = {
    "what_went_wrong": "The list was read past its end.",
    "what_to_do": "Check the length first.",
    "tags": [{"id": "err-00001", "tag": "helpful"}, {"id": "sai-00002", "tag": "harmful"}],
}
REVIEW = {"tags": [{"id": "err-00001", "tag": "neutral"}, {"id": "calc-00003", "tag": "helpful"}]}
CURATION = {
    "operations": [
        {"op": "ADD", "section": "err", "content": "Check the length of a list first."},
        {"op": "UPDATE", "id": "err-00001", "content": 'Close with ";" and nothing else.'},
        {"op": "MERGE", "ids": ["sai-00002", "calc-00003"], "content": "Read the task twice."},
        {"op": "REMOVE", "id": "err-00001"},
    ]
}
ADD = {"op": "ADD", "section": "err", "content": "Check it."}
ADDED = Operation("ADD", "Check it.", "err")
ONE = json.dumps({"operations": [ADD]})

# Output, what is made of it, and what is refused, by reason.
CURATIONS = [
    ("", (), {"curation_empty": 1}),
    (" \n\t ", (), {"curation_empty": 1}),
    ("<think>" + ONE, (), {"curation_empty": 1}),
    ("Nothing to add.", (), {"curation_no_json": 1}),
    ("null", (), {"curation_no_json": 1}),
    ("[]", (), {"curation_no_json": 1}),
    ("{}", (), {"curation_wrong_keys": 1}),
    ("{", (), {"curation_wrong_keys": 1}),
    ("}{", (), {"curation_wrong_keys": 1}),
    ('{"reasoning": "x"}', (), {"curation_wrong_keys": 1}),
    ('{"operations": []}', (), {}),
    ('{"operations": [', (), {"curation_cut_off": 1}),
    ('{"operations": null}', (), {"operations_not_a_list": 1}),
    ('{"operations": "ADD"}', (), {"operations_not_a_list": 1}),
    ('{"operations": 7}', (), {"operations_not_a_list": 1}),
    ('{"operations": NaN}', (), {"operations_not_a_list": 1}),
    ('{"operations": {}}', (), {"operation_unknown": 1}),
    ('{"operations": [null, 1, "ADD", [], true]}', (), {"operation_not_an_object": 5}),
    ('{"operations": [{}]}', (), {"operation_unknown": 1}),
    ('{"operations": [{"op": 3}]}', (), {"operation_unknown": 1}),
    ('{"operations": [{"op": "DROP TABLE", "content": "x"}]}', (), {"operation_unknown": 1}),
    ('{"operations": [{"op": "ADD"}]}', (), {"operation_no_content": 1}),
    ('{"operations": [{"op": "ADD", "content": "..."}]}', (), {"operation_no_content": 1}),
    ('{"operations": [{"op": "ADD", "content": "禁止"}]}', (Operation("ADD", "禁止"),), {}),
    ('{"operations": [{"op": "ADD", "content": {"a": 1}}]}', (), {"operation_no_content": 1}),
    ('{"operations": [{"op": "ADD", "content": " \\n"}]}', (), {"operation_no_content": 1}),
    (
        '{"operations": [{"op": "ADD", "content": "\\u200b\\ud800"}]}',
        (),
        {"operation_no_content": 1},
    ),
    ('{"operations": [{"op": "ADD", "content": "<think>x"}]}', (), {"operation_no_content": 1}),
    (
        '{"operations": [{"op": "ADD", "content": "\\u003cthink\\u003ex"}]}',
        (),
        {"operation_no_content": 1},
    ),
    (
        '{"operations": [{"op": "REMOVE", "ids": ["a-1", "b-2"]}]}',
        (Operation("REMOVE", ids=("a-00001",)),),
        {},
    ),
    ('{"operations": [{"op": "UPDATE", "content": "x"}]}', (), {"operation_no_id": 1}),
    ('{"operations": [{"op": "UPDATE", "id": 4, "content": "x"}]}', (), {"operation_no_id": 1}),
    ('{"operations": [{"op": "UPDATE", "id": "err-00001"}]}', (), {"operation_no_content": 1}),
    ('{"operations": [{"op": "REMOVE"}]}', (), {"operation_no_id": 1}),
    ('{"operations": [{"op": "REMOVE", "ids": []}]}', (), {"operation_no_id": 1}),
    (
        '{"operations": [{"op": "MERGE", "ids": ["a-1", "A-01"], "content": "x"}]}',
        (),
        {"operation_no_id": 1},
    ),
    (ONE, (ADDED,), {}),
    ("<think>{</think>" + ONE, (ADDED,), {}),
    ("{" + "</think>" + ONE, (ADDED,), {}),
    (ONE + "<think>" + ONE, (ADDED,), {}),
    ("Sure! Here it is:\n```json\n" + ONE + "\n```\nGood luck {name}!", (ADDED,), {}),
    ("{}" + ONE, (ADDED,), {}),
    ("{}\n{\n" + ONE, (ADDED,), {}),
    ("for (;;) { if (x) { y(); } }" * 40 + ONE, (ADDED,), {}),
    ('{"operations": []} no, better: ' + ONE, (ADDED,), {}),
    ('{"result": {"data": ' + ONE + "}}", (ADDED,), {}),
    (ONE.replace("operations", "Operations "), (ADDED,), {}),
    (ONE.replace('"op"', '"OP"').replace("ADD", " add "), (ADDED,), {}),
    (ONE.replace('"op"', '"type"'), (ADDED,), {}),
    (json.dumps(ADD), (ADDED,), {}),
    (json.dumps({"operations": ADD}), (ADDED,), {}),
    # Operations that stand alone, and the whole ones of a list that was cut off.
    (json.dumps([ADD, ADD]), (ADDED, ADDED), {}),
    (json.dumps(ADD) + "\n" + json.dumps(ADD), (ADDED, ADDED), {}),
    (f'{{"operations": [{json.dumps(ADD)}, {json.dumps(ADD)}, {{"op": "AD', (ADDED,) * 2, {}),
    (f'{{"operations": [{json.dumps(ADD)} {json.dumps(ADD)}]}}', (ADDED,) * 2, {}),
    (ONE[:-1], (ADDED,), {}),
    (ONE[:-4], (Operation("ADD", "Check it.", "err"),), {}),
    (ONE[:-9], (Operation("ADD", "Chec", "err"),), {}),
    (ONE.replace('"', "'"), (ADDED,), {}),
    (ONE.replace('{"op"', "{op").replace('"ADD"', "ADD"), (ADDED,), {}),
    (ONE.replace("}]}", ",},]}"), (ADDED,), {}),
    (ONE.replace("Check it.", "Check\nit."), (Operation("ADD", "Check it.", "err"),), {}),
    (
        ONE.replace("Check it.", 'Say "yes" twice'),
        (Operation("ADD", 'Say "yes" twice', "err"),),
        {},
    ),
    (ONE.replace("Check it.", "a :: b"), (Operation("ADD", "a :: b", "err"),), {}),
    (ONE.replace("Check it.", "[err-00001] x"), (Operation("ADD", "[err-00001] x", "err"),), {}),
    (ONE.replace("Check it.", "a\\u2028b\\u0000c"), (Operation("ADD", "a bc", "err"),), {}),
    (
        ONE.replace("Check it.", "\\ud83d\\ude00 ok"),
        (Operation("ADD", "\U0001f600 ok", "err"),),
        {},
    ),
    (ONE.replace('"Check it."', '["Check", "it.", 3]'), (ADDED,), {}),
    (
        ONE.replace('"err"', '"Common mistakes to avoid"'),
        (Operation("ADD", "Check it.", "err"),),
        {},
    ),
    (ONE.replace('"err"', '"nonsense"'), (Operation("ADD", "Check it."),), {"section_unknown": 1}),
    (ONE.replace('"err"', "null"), (Operation("ADD", "Check it."),), {}),
    ('{"operations": [], "operations": [' + json.dumps(ADD) + "]}", (ADDED,), {}),
    ('{"n": ' + "9" * 5000 + ', "operations": [' + json.dumps(ADD) + "]}", (ADDED,), {}),
    ('{"n": 1e999999, "m": -Infinity, "operations": []}', (), {}),
    (json.dumps({"operations": [ADD] * 20}), (ADDED,) * 16, {"operation_too_many": 4}),
    (
        '{"operations": [{"op": "DELETE", "id": "[ERR-1]"}]}',
        (Operation("REMOVE", ids=("err-00001",)),),
        {},
    ),
    (
        '{"operations": [{"op": "MERGE", "ids": ["a-1", "b-2"], "id": "c", "content": "x"}]}',
        (Operation("MERGE", "x", ids=("a-00001", "b-00002")),),
        {},
    ),
    (
        '{"operations": [{"op": "UPDATE", "ids": null, "id": "sai-00002", "content": "x"}]}',
        (Operation("UPDATE", "x", ids=("sai-00002",)),),
        {},
    ),
]


@pytest.mark.parametrize(("output", "operations", "rejected"), CURATIONS)
def test_curations(output, operations, rejected):
    curation = parse_curation(output)
    assert curation.operations == operations
    assert dict(curation.rejected) == rejected


TAG = {"id": "err-00001", "tag": "helpful"}
REFLECTIONS = [
    ("", ("", ""), (), {"reflection_empty": 1}),
    ("<think>{}", ("", ""), (), {"reflection_empty": 1}),
    ("Mind the end.", ("", "Mind the end."), (), {"reflection_no_json": 1}),
    ('"Mind the end."', ("", "Mind the end."), (), {"reflection_no_json": 1}),
    ("null", ("", ""), (), {"reflection_no_json": 1}),
    ("[1, 2]", ("", ""), (), {"reflection_no_json": 1}),
    ("[" * 500, ("", ""), (), {"reflection_no_json": 1}),
    ("12.", ("", ""), (), {"reflection_no_json": 1}),
    ("{}", ("", ""), (), {"reflection_wrong_keys": 1}),
    ('{"a": {"b": 1}}', ("", ""), (), {"reflection_wrong_keys": 1}),
    (
        '{"what_to_do": 5}',
        ("", ""),
        (),
        {"reflection_text_mistyped": 1, "reflection_no_text": 1},
    ),
    ('{"what_to_do": ""}', ("", ""), (), {"reflection_no_text": 1}),
    (
        '{"what_went_wrong": {"x": "y"}, "what_to_do": "b"}',
        ("", "b"),
        (),
        {"reflection_text_mistyped": 1},
    ),
    ('{"what_to_do": ["a", 1, "b"]}', ("", "a b"), (), {}),
    ('{"error": "a", "lesson": "b"}', ("a", "b"), (), {}),
    ('{"what_went_wrong": [], "error": "a"}', ("a", ""), (), {}),
    ('{"what_to_do": "a<think>b"}', ("", "a"), (), {}),
    ('{"what_to_do": "a\\u003cthink\\u003eb"}', ("", "a"), (), {}),
    ('{"what_to_do": "a\\u0000\\ud800\\u200bb\\nc"}', ("", "ab\nc"), (), {}),
    ('{"what_to_do": "' + "x" * 5000 + '"}', ("", "x" * 4000), (), {}),
    ('{"what_to_do": "a', ("", "a"), (), {}),
    ('{"what_to_do": "a\\', ("", "a"), (), {}),
    ('{"what_went_wrong": "a", "what_to_do"', ("a", ""), (), {}),
    ('{"what_to_do": "a", "tags": "helpful"}', ("", "a"), (), {"tags_not_a_list": 1}),
    (
        '{"what_to_do": "a", "tags": [null, "x", 1, [], {}, {"id": "err-00001"}]}',
        ("", "a"),
        (),
        {"tag_malformed": 6},
    ),
    (
        '{"what_to_do": "a", "tags": [{"id": 1, "tag": "helpful"}, {"id": "x", "tag": "good"}]}',
        ("", "a"),
        (),
        {"tag_malformed": 2},
    ),
    (
        json.dumps({"what_to_do": "a", "tags": [TAG, {"id": "[Err-1]", "tag": "harmful"}]}),
        ("", "a"),
        (("err-00001", "helpful"),),
        {"tag_repeated": 1},
    ),
    (
        json.dumps({"what_to_do": "a", "tags": {"ID": "err-00001", " Tag": " HARMFUL "}}),
        ("", "a"),
        (("err-00001", "harmful"),),
        {},
    ),
    (
        json.dumps({"tags": [TAG]}),
        ("", ""),
        (("err-00001", "helpful"),),
        {"reflection_no_text": 1},
    ),
    (
        json.dumps({"what_to_do": "a", "tags": [TAG] + [{**TAG, "tag": 0}] * 70}),
        ("", "a"),
        (("err-00001", "helpful"),),
        {"tag_malformed": 63, "tag_too_many": 7},
    ),
    (
        json.dumps({"what_to_do": "no"}) + "{}" + json.dumps({"what_to_do": "yes"}) + "{x}",
        ("", "yes"),
        (),
        {},
    ),
]


@pytest.mark.parametrize(("output", "texts", "tags", "rejected"), REFLECTIONS)
def test_reflections(output, texts, tags, rejected):
    reflection = parse_reflection(output)
    assert (reflection.what_went_wrong, reflection.what_to_do) == texts
    assert reflection.tags == tags
    assert dict(reflection.rejected) == rejected
    assert bool(reflection) == any(texts)


@pytest.mark.parametrize(
    ("output", "tags", "rejected"),
    [
        (json.dumps(REVIEW), (("err-00001", "neutral"), ("calc-00003", "helpful")), {}),
        ("", (), {"review_empty": 1}),
        ("fine", (), {"review_no_json": 1}),
        ('{"what_to_do": "x"}', (), {"review_wrong_keys": 1}),
        ('{"tags": []}', (), {}),
        ('{"tags": null}', (), {}),
        ('{"entry_tags": 3}', (), {"tags_not_a_list": 1}),
        ('{"tags": [{"id": "err-1", "tag": "helpful"}', (("err-00001", "helpful"),), {}),
    ],
)
def test_success_tags(output, tags, rejected):
    review = parse_success_tags(output)
    assert review.tags == tags
    assert dict(review.rejected) == rejected
    assert not review


@pytest.mark.parametrize("output", [None, 3, b"{}", [], {}])
def test_what_is_no_text_is_empty(output):
    assert parse_reflection(output).rejected == {"reflection_empty": 1}
    assert parse_success_tags(output).rejected == {"review_empty": 1}
    assert parse_curation(output).rejected == {"curation_empty": 1}


@pytest.mark.parametrize(
    ("spelled", "id_"),
    [
        ("sai-00012", "sai-00012"),
        (" [sai-00012] ", "sai-00012"),
        ("SAI-12", "sai-00012"),
        ("`sai_12`:", "sai-00012"),
        ("sai 000000012", "sai-00012"),
        ("[sai-00012] helpful=1 harmful=0 :: text", "sai-00012"),
        ("sai-123456", "sai-123456"),
        ("sai-00012, err-00001", "sai-00012, err-00001"),
        ("all but sai-00012", "all but sai-00012"),
        ("sai-\u0661\u0662", "sai-\u0661\u0662"),
        ("sai-" + "9" * 5000, "sai-" + "9" * 5000),
        ("a\u2028b\x00", "a b"),
        ("", ""),
        (12, ""),
        (None, ""),
    ],
)
def test_ids_in_odd_forms(spelled, id_):
    assert as_id(spelled) == id_


def test_how_an_object_was_found():
    assert find_object('{"A ": 1}', ["a"]) == ({"a": 1.0}, "ok")
    assert find_object('{"a": 1', ["a"]) == ({"a": 1.0}, "repaired")
    assert find_object('{"a": "x\ny"}', ["a"]) == ({"a": "x\ny"}, "ok")
    assert find_object('{"a": 1, "b": ' + "9" * 9999 + "}", ["a"])[1] == "ok"
    assert find_object('{"b": 1}', ["a"]) == (None, "wrong_keys")
    assert find_object("a: 1", ["a"]) == (None, "no_json")
    assert find_object("", ["a"]) == (None, "empty")
    assert find_objects('{"a": 1} {"b": 2} [{"a": 3}]', ["a"]) == ([{"a": 1.0}, {"a": 3.0}], "ok")


def test_the_object_after_much_that_looks_like_one():
    junk = '{"x": [1, 2' * 300
    assert find_object(junk + '}{"a": 1}', ["a"]) == ({"a": 1.0}, "ok")


# -- time ----------------------------------------------------------------------------------------

SLOW = [
    *("{", "[", '{"a":', '{"a":[', "{}", '{"', '{"a"', '{"a', "{'", "[{", "{[", "{(", "{,", "{:"),
    *("{\\", '{"a": "b "c", ', '{"a b" c', '"a "b" ', "{\u201ca\u201d: \u201c", "{ ", "{//", "{/*"),
    *('{"operations":', '{"operations":[', '{"operations":["', '{"operations":[{"op":"ADD",'),
    *('{"operations":"', '{"operations": "\\', '{"operations":9', '{"operations":[{"content":"a" '),
    *("<think>", "</think>", "<think>{", "{<think", '{"tags":[{"id":"', '{"what_to_do":"\\u00'),
    *('{"a":{"a":"', '{"op":"ADD"}', '{"op":"ADD"},{"', '{"":"",', "\ud800{", '{"\n', '{"a"\t'),
]


_HANG = 10.0  # seconds of CPU; the machine may be busy


@pytest.mark.parametrize("unit", SLOW)
@pytest.mark.parametrize("lead", ["", '{"operations": ["', '{"what_to_do": '])
def test_long_outputs_do_not_hang(unit, lead):
    """A guard against quadratic time, which takes minutes here; no measurement of speed."""
    output = (lead + unit * 20_000)[:20_000]
    for parse in (parse_reflection, parse_curation):
        began = time.process_time()
        parse(output)
        assert time.process_time() - began < _HANG


@pytest.mark.parametrize("unit", ["<think>", "{", "a ", '{"a":', "{a:"])
def test_endless_outputs_do_not_hang(unit):
    began = time.process_time()
    parse_reflection(unit * (1_000_000 // len(unit)))
    assert time.process_time() - began < _HANG


# -- the lenient reader ----------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans())
def test_the_lenient_reader_reads_json_exactly(value, indent, plain):
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    assert read_object("x" + text + "y", 1) == (value, len(text) + 1)


@given(OBJECTS, st.integers(0, 200))
def test_the_lenient_reader_reads_what_was_cut_off(value, length):
    text = json.dumps(value)
    cut = text[: 1 + min(length, len(text) - 1)]
    read, end = read_object(cut, 0)
    assert end == len(cut)
    for key, item in list(read.items())[:-1]:
        assert item == value[key]


@given(st.text(st.sampled_from("{}[]\"'\u201c\u201d:,\\ \n\tau1-.n/"), max_size=60))
def test_the_lenient_reader_always_ends(text):
    read, end = read_object("{" + text, 0)
    assert isinstance(read, dict)
    assert 0 < end <= len(text) + 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: b, 'c': True, “d”: None}", {"a": "b", "c": True, "d": None}),
        ('{"a" "b", "c": 1}', {"c": 1.0}),
        ('{"a": 1 "b": 2}', {"a": '1 "b": 2'}),
        ('{"a": "x" "b": "y"}', {"a": "x", "b": "y"}),
        ('{"a": "x"\n"b": 2}', {"a": "x", "b": 2.0}),
        ('{"a": ["x"\n"y"]}', {"a": ["x", "y"]}),
        ('{"a": "x"', {"a": "x"}),
        ('{"a": ["x",', {"a": ["x"]}),
        ('{"a": "say "x", then "y"", "b": 2}', {"a": 'say "x", then "y"', "b": 2.0}),
        ("{'a': 'don't', 'b': 1}", {"a": "don't", "b": 1.0}),
        ('{"a": [1, [2, {"b": 3]]', {"a": [1.0, [2.0, {"b": 3.0}]]}),
        ('{"a": [1, 2}, "b": 3}', {"a": [1.0, 2.0]}),
        ('{,,"a": 1,,}', {"a": 1.0}),
        ('{"a":}', {"a": None}),
        ("{:}", {"": None}),
        ('{"a": "\\n\\t\\"\\\\\\/\\d\\u00e9\\ud83d\\ude00\\ud800"}', {"a": '\n\t"\\/\\dé😀\ufffd'}),
        ('{"a": "\\\\", "b": "c"}', {"a": "\\", "b": "c"}),
    ],
)
def test_the_lenient_reader_mends(text, value):
    assert read_object(text, 0)[0] == value


def test_the_lenient_reader_bounds_its_depth():
    value = read_object('{"a":' * 5000, 0)[0]
    depth = 0
    while value:
        value, depth = value.get("a"), depth + 1
    assert 20 < depth < 50


# -- the whole way: parse, tag, apply --------------------------------------------------------------


def check(book):
    """What must hold of a playbook after every batch of operations."""
    config = book.config
    assert Playbook.parse(book.render(), config) == book
    assert len(book) <= config.max_entries
    assert book.tokens() <= config.max_tokens
    for id_, entry in book.entries.items():
        assert entry.id == id_ and entry.content
        assert min(entry.helpful, entry.harmful, entry.support, entry.against) >= 0
        assert len(entry.content) <= config.max_entry_chars
        assert entry.render().splitlines() == [entry.render()]
        assert "<think>" not in entry.content
        entry.content.encode("utf-8")


def fresh(admission, concise="staleness"):
    book = Playbook(
        PlaybookConfig(
            max_entries=10,
            max_tokens=300,
            max_entry_chars=160,
            admission=admission,
            concise=concise,
            candidate_patience=5,
        )
    )
    contents = ["Mind the end of the list.", "Read the task.", "Read the task once more, slowly."]
    for section, content in zip(("err", "sai", "calc"), contents, strict=True):
        book.apply([(f"start {section}", [Operation("ADD", content, section)])])
    return book


def feed(book, output, evidence):
    """One output as reflection, review and curation at once."""
    reflection, review = parse_reflection(output), parse_success_tags(output)
    curation = parse_curation(output)
    counts = reflection.rejected + review.rejected + curation.rejected
    # Nothing vanishes without a trace.
    assert reflection or reflection.rejected
    empty = find_object(output, ["operations", "ops"])[1] == "ok"
    assert curation.operations or curation.rejected or empty
    book.begin_update()
    book.tag(reflection.tags, evidence)
    book.tag(review.tags, evidence)
    book.apply([(evidence, curation.operations)])
    check(book)
    assert all(n > 0 for n in counts.values())
    json.dumps(book.state_dict()).encode("utf-8")


CORPUS = [
    *(output for output, *_ in CURATIONS),
    *(output for output, *_ in REFLECTIONS),
    *(unit * 50 for unit in SLOW),
]


@pytest.mark.parametrize("admission", ["immediate", "confirmed"])
def test_the_corpus_goes_the_whole_way(admission):
    assert len(CORPUS) > 60
    book = fresh(admission)
    for round_ in range(3):
        for place, output in enumerate(CORPUS):
            feed(book, output, f"{place % 7}/{round_}")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(max_size=40) | VALUES.map(json.dumps) | st.sampled_from(CORPUS), max_size=3),
    st.sampled_from(["immediate", "confirmed"]),
)
def test_any_text_goes_the_whole_way(outputs, admission):
    book = fresh(admission)
    feed(book, "".join(outputs), "x")
    for place, output in enumerate(outputs):
        feed(book, output, f"{place}")


FIELDS = {
    "op": st.sampled_from(["ADD", "UPDATE", "MERGE", "REMOVE", "add", "", None, 3]),
    "id": st.sampled_from(["err-00001", "[sai-2]", "calc-00009", "", None, 1, ["err-00001"]]),
    "ids": st.lists(st.sampled_from(["err-00001", "sai-00002", "x", None]), max_size=3),
    "content": st.text(max_size=30) | st.sampled_from(["Read the task.", "é" * 200, None, ["a"]]),
    "section": st.sampled_from(["err", "Others", "?", None]),
}
OPERATIONS = st.lists(st.fixed_dictionaries({}, optional=FIELDS), max_size=5)
TAGS = st.lists(
    st.fixed_dictionaries(
        {"id": FIELDS["id"], "tag": st.sampled_from(["helpful", "harmful", "neutral", "good", 1])}
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(OPERATIONS, TAGS), min_size=1, max_size=5),
    st.sampled_from(["immediate", "confirmed"]),
    st.sampled_from(["staleness", "prioritized", "off"]),
)
def test_objects_of_any_types_go_the_whole_way(steps, admission, concise):
    book = fresh(admission, concise)
    for place, (operations, tags) in enumerate(steps):
        output = {"operations": operations, "tags": tags, "what_to_do": "x"}
        feed(book, json.dumps(output), f"{place % 3}")


SWAPS = [None, True, 0, -1, 1e308, "", "x", [], {}, [[]], {"id": []}, ["err-00001"], "helpful"]
NOISE = "{}[]\"':,\\/ \n\t\r\x00\u2028\ud800\u200bé漢9eE+-.<think></>|`#x"


def swap(value, rng):
    """Put a value of some other type somewhere into a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: swap(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], swap(value[place], rng), *value[place + rng.randrange(2) :]]
    return rng.choice(SWAPS)


def mutate(rng):
    value = rng.choice([REFLECTION, REVIEW, CURATION])
    while rng.random() < 0.5:
        value = swap(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        piece = "".join(rng.choice(NOISE) for _ in range(rng.randint(1, 3)))
        text = rng.choice(
            [
                text[:a],  # cut off
                text[b:],
                text[:a] + text[b:],
                text[:a] + piece + text[a:],
                text[:a] + piece + text[a + 1 :],
                text[:b] + text[a:],  # said twice
                text.replace('"', rng.choice(["'", "", '\\"']), rng.randint(1, 9)),
            ]
        )
    return text


@pytest.mark.parametrize("seed", range(4))
def test_ten_thousand_mutations_go_the_whole_way(seed):
    rng = random.Random(f"mutations {seed}")
    for number in range(2500):
        if number % 25 == 0:
            book = fresh(
                "confirmed" if number % 50 else "immediate",
                rng.choice(["staleness", "prioritized", "off"]),
            )
        feed(book, mutate(rng), f"{number % 5}")


@pytest.mark.parametrize("parse", [parse_reflection, parse_success_tags, parse_curation])
def test_good_outputs_are_taken_whole(parse):
    for value in (REFLECTION, REVIEW, CURATION):
        parsed = parse(f"<think>{{</think>\n```json\n{json.dumps(value, indent=2)}\n```")
        same = parse(json.dumps(value))
        assert parsed == same
    assert parse_reflection(json.dumps(REFLECTION)).tags == (
        ("err-00001", "helpful"),
        ("sai-00002", "harmful"),
    )
    assert [o.op for o in parse_curation(json.dumps(CURATION)).operations] == [
        *("ADD", "UPDATE", "MERGE", "REMOVE")
    ]
