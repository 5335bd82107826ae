"""Templates: replaced one by one, found broken at once, and what the built-in ones ask for."""

import json
import re
from dataclasses import replace

import pytest

from resd.context import (
    ContextBudgets,
    Entry,
    PromptBuilder,
    Reflection,
    Sections,
    TemplateError,
    Templates,
    parse_curation,
    parse_reflection,
    parse_success_tags,
)
from resd.text import approximate_tokens
from resd.types import Example

QUESTION = [{"role": "user", "content": "Sort the list."}]
FULL = Sections(
    [Entry("err-00001", "a lesson")], "the trial", "wrong", Reflection("w", "d"), "the solution"
)


def prompt(name, add_only=False, messages=QUESTION, sections=FULL):
    def count(messages):
        return sum(approximate_tokens(m["content"]) for m in messages)

    builder = PromptBuilder(
        Templates(), ContextBudgets(), approximate_tokens, count, 10**6, add_only=add_only
    )
    return getattr(builder, name)(Example("e", messages), sections)[-1]["content"]


def form(name, **more):
    """The answer that a template shows as an example."""
    (line,) = (line for line in prompt(name, **more).splitlines() if line.startswith('{"'))
    return line


# -- the built-in ones -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["teacher", "reflect", "curate", "review"])
@pytest.mark.parametrize("add_only", [True, False])
def test_no_form_holds_dots_to_copy(name, add_only):
    text = prompt(name, add_only)
    assert "..." not in text and "\u2026" not in text


def test_the_forms_are_answers_that_are_read():
    """What a form shows is read whole: nothing in it is refused."""
    reflection = parse_reflection(form("reflect"))
    assert "pasta" in reflection.what_to_do and reflection.tags and not reflection.rejected
    assert parse_success_tags(form("review")).tags
    curation = parse_curation(form("curate"))
    assert [o.op for o in curation.operations] == ["ADD", "UPDATE", "MERGE", "REMOVE"]
    assert not curation.rejected


def test_a_curator_that_may_only_add_is_shown_nothing_else():
    text = prompt("curate", add_only=True)
    whole = Templates().render("curate", "q", FULL.playbook)
    assert "UPDATE" in whole and "UPDATE" not in text
    operations = json.loads(form("curate", add_only=True))["operations"]
    assert {operation["op"] for operation in operations} == {"ADD"}
    assert not re.search("update|merge|remove", text, re.IGNORECASE)
    assert all(word in prompt("curate") for word in ("Update", "merge", "remove"))


def test_the_teacher_is_asked_to_reason_and_to_check():
    """`Answer directly` would pull a thinking student away from thinking."""
    text = prompt("teacher")
    assert "reason step by step, then check your answer a second time" in text
    assert "directly" not in text
    assert "do not mention the lessons, the attempt or anything else" in text
    assert "that failed (learn from it, do not copy it):\n```\nthe trial\n```" in text


@pytest.mark.parametrize("name", ["reflect", "curate", "review"])
def test_the_form_stands_before_what_it_is_to_be_filled_with(name):
    """A form that is read last is copied: 0.5 billion parameters wrote about pasta 8 of 8 times."""
    text, shown = prompt(name), form(name)
    for section in {
        "reflect": ("a lesson", "the trial", "wrong"),
        "curate": ("a lesson", "w\nd"),
    }.get(name, ("a lesson", "the solution")):
        assert text.index(shown) < text.rindex(section)


def test_an_empty_playbook_has_nothing_to_tag_or_to_change():
    empty = replace(FULL, playbook=[])
    assert '"tags": []' in form("reflect", sections=empty)
    assert [o.op for o in parse_curation(form("curate", sections=empty)).operations] == ["ADD"]


def test_the_question_stands_last_in_the_teachers_prompt():
    """A small model answers what it reads last; after a trial it goes on with the trial."""
    assert prompt("teacher").endswith("The problem:\n\nSort the list.")


# -- templates of one's own ------------------------------------------------------------------------


def test_templates_are_replaced_one_by_one(tmp_path):
    task, user = tmp_path / "task", tmp_path / "user"
    for folder, names in ((task, ("teacher", "reflect")), (user, ("teacher", "review"))):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.jinja").write_text(f"{folder.name} {name}: {{{{ question }}}}\n")
    templates = Templates([user, task])
    assert templates.render("teacher", "q") == "user teacher: q"
    assert templates.render("reflect", "q") == "task reflect: q"
    assert templates.render("review", "q") == "user review: q"
    assert templates.render("curate", "q").startswith("You keep a playbook")
    assert Templates().render("teacher", "q") == "q"


def test_a_template_may_include_another(tmp_path):
    (tmp_path / "part.jinja").write_text("part")
    (tmp_path / "teacher.jinja").write_text("{% include 'part.jinja' %} {{ question }}")
    assert Templates([tmp_path]).render("teacher", "q") == "part q"


def test_a_template_is_trimmed_but_not_its_question(tmp_path):
    (tmp_path / "teacher.jinja").write_text("\n\n  {{ question }}\n\n {{ trial }} \n\n")
    (tmp_path / "review.jinja").write_text("\n\n  again! \n\n")
    templates = Templates([tmp_path])
    assert templates.render("review", " q \n") == "again!"
    assert templates.render("teacher", " q \n") == " q \n"
    assert templates.render("teacher", " q \n", trial="t") == " q \n\n\n t"
    assert templates.render("teacher", "", trial="t") == "t"


def test_the_lines_of_blocks_leave_nothing(tmp_path):
    (tmp_path / "teacher.jinja").write_text(
        "{{ question }}\n  {% if trial %}\ntried {{ trial }} & <b>\n  {% endif %}\nend"
    )
    templates = Templates([tmp_path])
    assert templates.render("teacher", "q") == "q\nend"
    assert templates.render("teacher", "q", trial="<t>") == "q\ntried <t> & <b>\nend"


def test_a_file_that_changes_does_not_change_a_run(tmp_path):
    file = tmp_path / "teacher.jinja"
    file.write_text("old {{ question }}")
    templates = Templates([tmp_path])
    file.write_text("new {{ question }}, and more")
    assert templates.render("teacher", "q") == "old q"
    file.unlink()
    assert templates.render("teacher", "q") == "old q"


def test_a_directory_that_is_missing(tmp_path):
    with pytest.raises(TemplateError, match=r"template directory .*nowhere does not exist"):
        Templates([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n{% if %}", r"line 2: Expected an expression"),
        ("a\n\n{{ questoin }}", r"line 3: 'questoin' is undefined"),
        ("a\n{{ playbook[0].text }}", r"line 2: .*has no attribute 'text'"),
        ("{{ 1 // 0 }}", r"line 1: ZeroDivisionError"),
        ("a\n{% include 'nothing.jinja' %}", r"line 2: .*nothing\.jinja"),
        ("a\n{{ question.__class__.__mro__ }}", r"line 2: .*unsafe"),
        ("a\n{{ question | nofilter }}", r"line 2: No filter named 'nofilter'"),
        # These fail only when there is nothing to show.
        ("a\n{{ playbook[0].content }}", r"line 2: .*has no element 0"),
        ("a\n{% if not trial %}{{ 'x' + 1 }}{% endif %}", r"line 2: TypeError"),
    ],
)
@pytest.mark.parametrize("name", ["teacher", "review"])
def test_a_broken_template_is_found_at_once_by_file_and_line(tmp_path, text, message, name):
    (tmp_path / f"{name}.jinja").write_text(text)
    with pytest.raises(TemplateError, match=rf"template .*{name}\.jinja, {message}"):
        Templates([tmp_path])


def test_a_template_that_is_no_text_is_found_at_once(tmp_path):
    (tmp_path / "curate.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TemplateError, match=r"curate\.jinja: UnicodeDecodeError"):
        Templates([tmp_path])


def test_a_mistake_in_an_included_file_names_that_file(tmp_path):
    (tmp_path / "part.jinja").write_text("a\n\n{{ nothing }}")
    (tmp_path / "teacher.jinja").write_text("{% include 'part.jinja' %}")
    with pytest.raises(TemplateError, match=r"part\.jinja, line 3: 'nothing' is undefined"):
        Templates([tmp_path])
