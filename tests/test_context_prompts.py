"""Prompts: budgets, what is never cut, what goes first, what is shared, templates."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resd.context import (
    ContextBudgets,
    Entry,
    PromptBuilder,
    Reflection,
    Sections,
    Templates,
)
from resd.types import Example

NAMES = ("teacher", "reflect", "curate", "review")
HEADINGS = {
    "playbook": ("Lessons from earlier attempts", "Playbook, one lesson a line"),
    "trial": ("An earlier attempt that failed", "An attempt that failed:"),
    "feedback": ("What was found when it was checked:",),
    "reflection": ("A reflection on it:", "A new reflection on a failed attempt:"),
    "solution": ("A solution that passed:",),
}
# The sections that each built-in template shows.
SHOWN = {
    "teacher": ("playbook", "trial", "feedback", "reflection", "solution"),
    "reflect": ("playbook", "trial", "feedback"),
    "curate": ("playbook", "reflection"),
    "review": ("playbook", "solution"),
}
INSTRUCTIONS = {
    "teacher": ("Now solve the problem yourself.", "else that stands here beside the problem."),
    "reflect": (
        "You review failed attempts",
        "one JSON object about this attempt and nothing else.",
    ),
    "curate": ("You keep a playbook", "one JSON object about this reflection and nothing else."),
    "review": ("Tag the playbook entries", "Answer with one JSON object and nothing else."),
}
QUESTION = "  Reverse a list.\nAnswer with code alone:\n    def f(x):  \n"
EXAMPLE = Example(
    "e1", [{"role": "system", "content": "Be terse."}, {"role": "user", "content": QUESTION}]
)
HEADER = 11
BUILT_IN = Templates()


def count(text):
    """Words and symbols."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def count_chat(messages):
    return sum(count(message["content"]) + 3 for message in messages) + HEADER


def builder(
    max_tokens=100_000, budgets=None, templates=None, count=count, count_chat=count_chat, **more
):
    return PromptBuilder(
        templates or BUILT_IN,
        ContextBudgets(**(budgets or {})),
        count,
        count_chat,
        max_tokens,
        **more,
    )


def words(name, number):
    return " ".join(f"{name}{i}" for i in range(number))


def entries(number, size=5):
    return [
        Entry(f"err-{i:05d}", words(f"lesson{i}x", size), created=i) for i in range(1, number + 1)
    ]


FULL = Sections(
    playbook=entries(10),
    trial=words("trial", 40),
    feedback=words("feedback", 40),
    reflection=Reflection(words("wrong", 40), words("todo", 40)),
    solution=words("solution", 40),
)


def some(*names):
    return Sections(**{name: getattr(FULL, name) for name in names})


# -- the built-in templates ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_section_is_never_printed(name):
    for size in range(len(HEADINGS) + 1):
        for present in itertools.combinations(HEADINGS, size):
            messages = getattr(builder(), name)(EXAMPLE, some(*present))
            text = messages[-1]["content"]
            for section, headings in HEADINGS.items():
                shown = section in present and section in SHOWN[name]
                assert any(heading in text for heading in headings) == shown, (section, present)
            assert "\n\n\n" not in text.replace(QUESTION, "Q")


def test_a_reflection_of_one_part_leaves_no_gap():
    for reflection in (Reflection("wrong"), Reflection("", "to do")):
        text = builder().teacher(EXAMPLE, Sections(reflection=reflection))[-1]["content"]
        said = reflection.what_went_wrong or "to do"
        assert f"A reflection on it:\n```\n{said}\n```\n\nNow solve" in text


@pytest.mark.parametrize("name", NAMES)
def test_instructions_and_sections_are_whole(name):
    text = getattr(builder(), name)(EXAMPLE, FULL)[-1]["content"]
    for instruction in INSTRUCTIONS[name]:
        assert instruction in text
    for section in set(SHOWN[name]) - {"playbook", "reflection"}:
        assert getattr(FULL, section) in text
    for entry in FULL.playbook:
        assert (entry.content if name == "teacher" else entry.render()) in text
    if name != "curate":
        assert QUESTION in text


def test_the_teachers_prompt_is_the_students_with_context():
    messages = builder().teacher(EXAMPLE, FULL)
    assert messages[:-1] == EXAMPLE.prompt[:-1]
    assert messages[-1]["role"] == "user"
    assert "helpful=" not in messages[-1]["content"] and "err-0" not in messages[-1]["content"]
    assert builder().teacher(EXAMPLE, Sections()) == list(EXAMPLE.prompt)
    for name in ("reflect", "curate", "review"):
        assert [m["role"] for m in getattr(builder(), name)(EXAMPLE, FULL)] == ["user"]


@pytest.mark.parametrize("question", ["  x\n", "\n\n x", "{{ 7 * 7 }} {% if %}", "x {# y #}", " "])
def test_the_question_is_never_changed(question):
    example = Example("e", [{"role": "user", "content": question}])
    for sections in (Sections(), FULL):
        text = builder().teacher(example, sections)[-1]["content"]
        assert question in text or not question.strip()


def test_text_of_a_model_is_no_template():
    text = builder().teacher(EXAMPLE, Sections(trial="{{ 7 * 7 }} {% for %}"))[-1]["content"]
    assert "{{ 7 * 7 }} {% for %}" in text


@pytest.mark.parametrize("name", NAMES)
def test_shared_text_stands_first(name):
    """Two samples of one batch share their prompts up to the end of the playbook."""
    other = Sections(
        playbook=FULL.playbook,
        trial="another",
        feedback="other feedback",
        reflection=Reflection("z", "zz"),
        solution="none",
    )
    example = Example("e2", [EXAMPLE.prompt[0], {"role": "user", "content": "Sort a list."}])
    one, two = (
        "\0".join(m["content"] for m in getattr(builder(), name)(e, s))
        for e, s in ((EXAMPLE, FULL), (example, other))
    )
    last = FULL.playbook[-1].content
    end = one.index(last) + len(last)
    assert one[:end] == two[:end]
    for text in (QUESTION.strip(), FULL.trial, FULL.feedback, FULL.solution):
        assert text not in one[:end]


# -- budgets ---------------------------------------------------------------------------------------

MARKED = (
    "P<{% for entry in playbook %}{{ entry.render() }}\n{% endfor %}>\n{{ question }}\n"
    "T<{{ trial }}> F<{{ feedback }}> W<{{ reflection.what_went_wrong }}>"
    " D<{{ reflection.what_to_do }}> S<{{ solution }}>"
)
MARKS = {
    "playbook": "P",
    "trial": "T",
    "feedback": "F",
    "wrong": "W",
    "to_do": "D",
    "solution": "S",
}


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Templates whose sections can be read back from a prompt."""
    folder = tmp_path_factory.mktemp("marked")
    for name in NAMES:
        (folder / f"{name}.jinja").write_text(MARKED)
    return Templates([folder])


def parts(messages):
    text = messages[-1]["content"]
    return {
        name: re.search(rf"{mark}<(.*?)>", text, re.DOTALL).group(1) for name, mark in MARKS.items()
    }


def lines(part):
    return [line.rpartition(" :: ")[2] for line in part.splitlines()]


@settings(max_examples=80, deadline=None)
@given(
    st.fixed_dictionaries({name: st.integers(0, 120) for name in ContextBudgets.model_fields}),
    st.integers(0, 60),
)
def test_every_section_holds_its_budget(marked, budgets, size):
    sections = Sections(
        playbook=entries(size // 4, 3),
        trial=words("t", size),
        feedback=words("f", size),
        reflection=Reflection(words("w", size), words("d", size)),
        solution=words("s", size),
    )
    got = parts(builder(budgets=budgets, templates=marked).teacher(EXAMPLE, sections))
    for name in ("playbook", "trial", "feedback", "solution"):
        assert count(got[name]) <= budgets[name]
    assert count(got["wrong"]) + count(got["to_do"]) <= budgets["reflection"]
    for name in ("trial", "feedback", "solution"):
        if size <= budgets[name]:
            assert got[name] == getattr(sections, name)
    kept = lines(got["playbook"])
    assert kept == [e.content for e in sections.playbook][len(sections.playbook) - len(kept) :]


def test_budgets_of_zero_show_nothing(marked):
    budgets = dict.fromkeys(ContextBudgets.model_fields, 0)
    assert set(
        parts(builder(budgets=budgets, templates=marked).teacher(EXAMPLE, FULL)).values()
    ) == {""}
    assert builder(budgets=budgets).teacher(EXAMPLE, FULL) == list(EXAMPLE.prompt)


def test_negative_budgets_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        ContextBudgets(trial=-1)


def test_a_section_is_shortened_in_the_middle(marked):
    got = parts(builder(budgets={"trial": 20}, templates=marked).teacher(EXAMPLE, FULL))
    assert got["trial"].startswith("trial0 trial1 ") and got["trial"].endswith(" trial39")
    assert " [...] " in got["trial"]


def test_one_entry_that_never_fits_hides_no_others(marked):
    big = Entry("sai-00099", words("big", 60), created=99)
    got = parts(
        builder(budgets={"playbook": 50}, templates=marked).teacher(
            EXAMPLE, Sections([*entries(3, 2), big])
        )
    )
    assert lines(got["playbook"]) == [e.content for e in entries(3, 2)]


def test_of_entries_of_one_age_the_later_stay(marked):
    same_age = [Entry(f"err-{i:05d}", f"lesson{i}") for i in range(9)]
    got = parts(
        builder(budgets={"playbook": 30}, templates=marked).teacher(EXAMPLE, Sections(same_age))
    )
    kept = lines(got["playbook"])
    assert 0 < len(kept) < 9 and kept == [e.content for e in same_age][-len(kept) :]
    # Age goes by when an entry was written, not by where it stands.
    rewritten = [Entry("err-00001", "new", created=5), *entries(3)]
    got = parts(
        builder(budgets={"playbook": 15}, templates=marked).teacher(EXAMPLE, Sections(rewritten))
    )
    assert lines(got["playbook"]) == ["new"]


# -- prompts that are too long ---------------------------------------------------------------------

LEAST = count_chat(EXAMPLE.prompt)
WHOLE = count_chat(builder().teacher(EXAMPLE, FULL))


@pytest.mark.parametrize("name", NAMES)
def test_prompts_fit_and_the_essential_is_never_cut(name):
    whole = count_chat(getattr(builder(), name)(EXAMPLE, FULL))
    least = count_chat(getattr(builder(), name)(EXAMPLE, Sections()))
    seen = set()
    for limit in (*range(least - 3, whole, 4), whole - 1, whole, whole + 1):
        messages = getattr(builder(limit), name)(EXAMPLE, FULL)
        seen.add(messages is None)
        if messages is None:
            continue
        assert count_chat(messages) <= limit
        text = messages[-1]["content"]
        assert name == "curate" or QUESTION in text
        if text != QUESTION:
            assert all(instruction in text for instruction in INSTRUCTIONS[name])
        if limit >= whole:
            assert messages == getattr(builder(), name)(EXAMPLE, FULL)
    assert seen == {True, False}


def test_a_question_that_is_too_long_alone_has_no_prompt():
    assert builder(LEAST - 1).teacher(EXAMPLE, FULL) is None
    assert builder(LEAST - 1).teacher(EXAMPLE, Sections()) is None
    assert builder(LEAST).teacher(EXAMPLE, FULL) == list(EXAMPLE.prompt)
    for name in NAMES:
        assert getattr(builder(0), name)(EXAMPLE, FULL) is None


@pytest.mark.parametrize(
    ("name", "subjects"),
    [("reflect", ("trial", "feedback")), ("curate", ("reflection",)), ("review", ("solution",))],
)
def test_there_is_no_prompt_about_nothing(name, subjects):
    """A reflector without attempt and feedback could only invent."""
    least = count_chat(getattr(builder(), name)(EXAMPLE, Sections()))
    assert getattr(builder(least + 1), name)(EXAMPLE, some(*subjects)) is None
    blank = Sections(trial=" \n", feedback="\x00", solution="\t", reflection=Reflection("\u200b"))
    assert getattr(builder(), name)(EXAMPLE, blank) is None
    for subject in subjects:
        assert getattr(builder(), name)(EXAMPLE, some(subject)) is not None


def test_the_order_of_sacrifice(marked):
    """The oldest entries, then trial, solution, feedback, then the reflection's two parts."""
    order = ("playbook", "trial", "solution", "feedback", "wrong", "to_do")
    whole = parts(builder(templates=marked).teacher(EXAMPLE, FULL))
    top = count_chat(builder(templates=marked).teacher(EXAMPLE, FULL))
    least = count_chat(builder(templates=marked).teacher(EXAMPLE, Sections()))
    touched = set()
    for limit in range(least, top):
        messages = builder(limit, templates=marked).teacher(EXAMPLE, FULL)
        got = parts(messages)
        cut = [name for name in order if got[name] != whole[name]]
        # All before the last that was touched are gone; all after it are whole.
        assert cut == list(order[: len(cut)]) and cut
        assert all(got[name] == "" for name in cut[:-1])
        if cut == ["playbook"]:
            kept = lines(got["playbook"])
            assert kept == [e.content for e in FULL.playbook][10 - len(kept) :]
        # Little more is cut than must be: an entry, or a mark with the words beside it.
        assert limit - count_chat(messages) < 20
        touched.update(cut)
    assert touched == set(order)


COUNTERS = {
    "zero": lambda text: 0,
    "constant": lambda text: 7,
    "start token": lambda text: count(text) + 1,
    "square": lambda text: len(text) ** 2 // 300,
    "odd": lambda text: (len(text) * 7919) % 173,
    "characters": len,
}


@pytest.mark.parametrize("parts_", COUNTERS)
@pytest.mark.parametrize("whole", COUNTERS)
def test_fitting_always_ends(marked, parts_, whole):
    """However a tokenizer counts, and however little its counts of parts and whole agree."""
    calls = 0

    def chat(messages):
        nonlocal calls
        calls += 1
        return COUNTERS[whole]("".join(m["content"] for m in messages))

    for limit in (0, 6, 50, 1000):
        build = builder(limit, templates=marked, count=COUNTERS[parts_], count_chat=chat)
        messages = build.teacher(EXAMPLE, FULL)
        assert messages is None or chat(messages) <= limit
        assert calls < 60
        calls = 0


def test_fitting_ends_soon_even_if_cuts_come_to_nothing(marked):
    calls = 0

    def chat(messages):
        nonlocal calls
        calls += 1
        return 101 if len(messages[-1]["content"]) > len(MARKED) else 99

    sections = Sections(trial=words("t", 3000), feedback=words("f", 3000))
    build = builder(100, budgets={"trial": 9999}, templates=marked, count_chat=chat)
    assert build.teacher(EXAMPLE, sections) is not None
    assert calls < 60
