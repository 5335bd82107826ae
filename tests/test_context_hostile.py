"""Outputs that are damaged, hostile or anything at all: nothing raises, and time is linear."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_context_parsing import CURATIONS, PARSERS, REFLECTIONS

from resd.context import Playbook, PlaybookConfig, parse_curation, parse_reflection
from resd.context.lenient_json import read_value

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.sampled_from([None, 1]))
def test_the_lenient_reader_reads_json_exactly(value, indent):
    text = json.dumps(value, indent=indent)
    assert read_value("x" + text + "y", 1) == (value, len(text) + 1, False)


@given(
    st.text(st.sampled_from("{}[]()\"'`\u201c\u201d\uff5b\uff1a:,\\ \n\t#/*au1-.n="), max_size=60)
)
def test_any_text_is_read_to_an_end(text):
    value, end, _ = read_value("{" + text, 0)
    assert isinstance(value, dict) and 0 < end <= len(text) + 1
    for parse in PARSERS:
        for lead in ("", "{", '{"operations": [{"op":', "tags:\n  - ", '{"what_to_do": "'):
            assert parse(lead + text) == parse(lead + text)


SLOW = [
    "{",
    "[{",
    '{"a":',
    "{:",
    '{"',
    "{'",
    '{"a":\u201c',
    "{/*",
    '{"a" c',
    "\uff5b",
    '{\\"a\\":"',
]
SLOW += ['{"operations":"', '{"operations":[{"op":"ADD",', "<think>", "</think>{", '{"a":"</think>']
SLOW += [
    "- ",
    "a: |\n",
    "tags:\n",
    "<tags>",
    "err-1: ",
    '{"operations":"[{\\"op\\":',
    '{"a":"b',
]


@pytest.mark.parametrize("unit", SLOW)
def test_hostile_outputs_cost_linear_time(unit):
    """A guard against quadratic time, which takes minutes here; no measurement of speed."""
    began = time.process_time()
    for parse in (parse_reflection, parse_curation):
        parse((unit * 10_000)[:10_000])
    assert time.process_time() - began < 12


def feed(book, output, evidence):
    """One output as reflection, review and curation at once; nothing vanishes uncounted."""
    reflection, review, curation = (parse(output) for parse in PARSERS)
    assert reflection or (reflection.rejected and reflection.problem)
    assert curation.operations or bool(+curation.rejected) >= bool(curation.problem)
    assert all(n > 0 for p in (reflection, review, curation) for n in p.rejected.values())
    book.begin_update()
    book.tag((*reflection.tags, *review.tags), evidence)
    book.apply([(evidence, curation.operations)])
    assert Playbook.parse(book.render(), book.config) == book
    json.dumps(book.state_dict()).encode("utf-8")


NOISE = "{}[]\"':,\\/ \n\t\r\x00\u2028\ud800\u200bé漢9-.<think></>|`#x"


def damaged(rng):
    """A good output with pieces taken out, put in, doubled or swapped."""
    text = rng.choice([*CURATIONS.values(), *REFLECTIONS])
    for _ in range(rng.choice([1, 1, 2, 6])):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        piece = "".join(rng.choice(NOISE) for _ in range(rng.randint(1, 3)))
        text = rng.choice(
            [
                *(text[:a], text[b:], text[:a] + text[b:], text[:a] + piece + text[a:]),
                *(text[:b] + text[a:], text.replace('"', rng.choice(["'", "", '\\"']), 5)),
            ]
        )
    return text


@pytest.mark.parametrize("admission", ["immediate", "confirmed"])
def test_damaged_outputs_go_the_whole_way(admission):
    rng = random.Random(admission)
    for number in range(600):
        if number % 20 == 0:
            book = Playbook(PlaybookConfig(max_entries=10, max_tokens=300, admission=admission))
        feed(book, damaged(rng), f"{number % 5}")


FIELDS = {
    "op": st.sampled_from(["ADD", "UPDATE", "MERGE", "REMOVE", "add", "", None, 3]),
    "id": st.sampled_from(["misc-00001", "[sai-2]", "", None, 1, ["err-00001"]]),
    "ids": st.lists(st.sampled_from(["misc-00001", "sai-00002", "x", None]), max_size=3),
    "content": VALUES,
    "section": st.sampled_from(["err", "Others", "?", None]),
    "tag": st.sampled_from(["helpful", "harmful", "good", 1]),
}
OBJECTS = st.lists(st.fixed_dictionaries({}, optional=FIELDS), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(OBJECTS, OBJECTS, VALUES), min_size=1, max_size=3))
def test_objects_of_any_types_go_the_whole_way(steps):
    book = Playbook(PlaybookConfig(max_entries=10))
    for place, (operations, tags, text) in enumerate(steps):
        output = {"operations": operations, "tags": tags, "what_to_do": text}
        feed(book, json.dumps(output), f"{place}")
