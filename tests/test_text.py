"""Cleaning and shortening of untrusted text."""

import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd.text import (
    approximate_tokens,
    clip,
    fenced,
    mark_breaker,
    one_line,
    printable,
    shorten,
    strip_thinking,
)

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)
TAGS = ["<think>", "</think>", "<thinking>", "</ think >", "<Think>"]
BITS = ["<th", "ink>", "<", ">", "/", "a", " ", "\n", "<|end|>", "<|e", "nd|>", "\x00", "b"]
PIECES = st.lists(st.sampled_from(TAGS + BITS), max_size=14).map("".join)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("answer", "answer"),
        ("", ""),
        ("<think>why</think>answer", "answer"),
        ("<think>why</think>\n\nanswer\n", "answer"),
        ("<think></think>answer", "answer"),
        # The opening tag stood in the chat template.
        ("why, then</think>answer", "answer"),
        # Never closed.
        ("<think>why, and on and on", ""),
        ("answer <think>second thoughts", "answer"),
        ("a <think>x</think> b <think>y", "a  b"),
        # Several, nested, crossed.
        ("a<think>x</think>b<think>y</think>c", "abc"),
        ("<think>x<think>y</think>z</think>answer", "answer"),
        ("<think>x</think>y</think>answer", "answer"),
        ("x</think>answer<think>y", "answer"),
        ("x</think>", ""),
        ("</think></think>answer", "answer"),
        # Other spellings.
        ("<thinking>x</thinking>answer", "answer"),
        ("<THINK>x</Think>answer", "answer"),
        ("< think >x</ think >answer", "answer"),
        ('<think effort="high">x</think>answer', "answer"),
        ("<think\n>x</think\n>answer", "answer"),
        ('answer <think effort="high">x', "answer"),
        # Not thinking.
        ("I <thought> so", "I <thought> so"),
        ("a <thinker> and <think-tank>", "a <thinker> and <think-tank>"),
        ("x < think and y > think", "x < think and y > think"),
        # Tags that appear once others are taken out.
        ("a<th<think>x</think>ink>hidden", "a"),
        ("hidden</th<think>x</think>ink>a", "a"),
    ],
)
def test_thinking_is_stripped(text, left):
    assert strip_thinking(text) == left


@given(PIECES)
def test_no_thinking_tag_survives(text):
    left = strip_thinking(text)
    assert strip_thinking(left) == left
    assert not any(tag in left for tag in TAGS)


@pytest.mark.parametrize(("depth", "left"), [(1, "ab"), (3, "ab"), (8, "")])
def test_tags_made_of_tags(depth, left):
    """A few layers are taken off; what has more is no honest text."""
    text = "<think></think>"
    for _ in range(1, depth):
        text = f"<th{text}ink></th{text}ink>"
    assert strip_thinking(f"a{text}b") == left


@pytest.mark.parametrize(
    "text",
    ["<think>", "</think>", "<think", "<think a=", "< ", "<think>a</think>", "<" + " " * 99_999],
)
def test_stripping_is_linear(text):
    text = text * (400_000 // len(text))
    began = time.process_time()
    strip_thinking(text)
    assert time.process_time() - began < 2


def test_printable_keeps_text_and_drops_what_hides():
    assert printable("naïve 漢字 \U0001f600 \t\n") == "naïve 漢字 \U0001f600 \t\n"
    assert printable("a\x00b\x1bc\x7fd\x9fe") == "abcde"
    assert printable("a\ud800b\udfffc") == "abc"
    assert printable("a\u200bb\u202ec\ufeffd\U000e0041e\u2060f") == "abcdef"
    assert printable("a\u200db\u200cc") == "a\u200db\u200cc"


def test_every_line_end_becomes_a_newline():
    assert printable("a\r\nb\rc\u2028d\u2029e\x85f\x0bg\x0ch\x1ci\x1dj\x1ek").split("\n") == list(
        "abcdefghijk"
    )


@given(ANY_TEXT)
def test_printable_text_is_clean_and_stays(text):
    clean = printable(text)
    assert printable(clean) == clean
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in clean if c not in "\n\t")
    assert clean.splitlines() == clean.removesuffix("\n").split("\n") or not clean


@given(ANY_TEXT)
def test_one_line_is_one_line(text):
    line = one_line(text)
    assert one_line(line) == line
    assert len(line.splitlines()) <= 1
    assert line == line.strip() and "  " not in line


def test_one_line_parts_words_at_every_white_space():
    assert one_line(" a\u2028b\x1fc\x85d\n\te\u00a0f\u3000g ") == "a b c d e f g"


def test_approximate_tokens():
    assert [approximate_tokens(t) for t in ("", "a", "abcd", "abcde", "é" * 4, "\ud800")] == (
        [0, 1, 1, 2, 2, 1]
    )


def test_a_text_that_fits_stays():
    assert shorten("abcdef", 6, len) == "abcdef"


def test_the_middle_is_cut_out():
    text = "".join(chr(97 + i % 26) for i in range(100))
    short = shorten(text, 27, len)
    head, mark, tail = short.partition(" [...] ")
    assert mark and len(short) == 27
    assert (len(head), len(tail)) == (14, 6)
    assert text.startswith(head) and text.endswith(tail)


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_budget_without_room_for_any_text_gives_none(budget):
    assert shorten("a" * 100, budget, len) == ""


COUNTERS = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "with a start token": lambda text: len(text) + 1,
    "square": lambda text: len(text) ** 2 // 50,
    "not monotonic": lambda text: (len(text) * 7919) % 101,
    "constant": lambda text: 30,
}


@pytest.mark.parametrize("counter", COUNTERS)
@given(text=st.text(max_size=120), budget=st.integers(0, 40))
def test_a_shortened_text_holds_its_budget(counter, text, budget):
    count = COUNTERS[counter]
    short = shorten(text, budget, count)
    assert short == "" or count(short) <= budget


@pytest.mark.parametrize("length", [300, 5_000, 1_000_000])
@pytest.mark.parametrize("budget", [20, 500, 4_000])
@pytest.mark.parametrize("rate", [1, 3, 7])
def test_shortening_counts_a_few_times_and_wastes_little(length, budget, rate):
    calls = []

    def count(text):
        calls.append(len(text))
        return (len(text) + rate - 1) // rate

    text = "".join(chr(97 + i % 26) for i in range(length))
    short = shorten(text, budget, count)
    assert len(calls) <= 10 and max(calls) <= 24 * budget + len(" [...] ") + length * (length < 999)
    if length // rate <= budget:
        assert short == text
    else:
        assert budget - budget // 50 - 1 <= count(short) <= budget
        head, _, tail = short.partition(" [...] ")
        assert text.startswith(head) and text.endswith(tail) and len(head) > len(tail) > 0


UNEVEN = {
    "the head is dense": lambda text: text.count("a") + text.count("b") // 100,
    "the tail is dense": lambda text: text.count("a") // 100 + text.count("b"),
    "square": lambda text: len(text) ** 2 // 6000,
    "root": lambda text: int((6000 * len(text)) ** 0.5),
}


@pytest.mark.parametrize("kind", UNEVEN)
@pytest.mark.parametrize("budget", [1000, 2500])
def test_a_text_of_uneven_tokens_is_shortened_well_too(kind, budget):
    calls = []

    def count(text):
        calls.append(text)
        return UNEVEN[kind](text)

    short = shorten("a" * 3000 + "b" * 3000, budget, count)
    assert budget * 0.98 <= UNEVEN[kind](short) <= budget
    assert len(calls) <= 10


def test_marks_are_broken_in_every_spelling_that_a_model_may_take_for_them():
    broken = mark_breaker(["Human:", " ", "**Bot**"])
    assert broken("x HUMAN: y Human : z\nhuman: a") == "x HUMAN\\: y Human \\: z\nhuman\\: a"
    assert broken("if human: x, a superhuman: y, ** bot") == "if human: x, a superhuman: y, ** bot"
    assert broken("**Bot** ** BOT **") == "**Bot*\\* ** BOT *\\*"
    assert mark_breaker([])("Human: x") == "Human: x"


def test_far_too_long_a_text_is_clipped_by_its_letters():
    assert clip("a" * 1000, 42) == "a" * 1000
    clipped = clip("a" * 500 + "b" * 500, 2)
    assert clipped == "a" * 24 + " [...] " + "b" * 24
    assert clip("a" * 1000, 0) == " [...] "


@given(st.text("`a\n", max_size=30))
def test_a_fence_is_longer_than_what_it_holds(text):
    first, inside, last = re.fullmatch(r"(`+)\n(.*)\n(`+)", fenced(text), re.DOTALL).groups()
    assert first == last and len(first) >= 3 and inside == text and first not in text
