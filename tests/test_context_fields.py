"""Ids and sections in whatever spelling."""

import pytest

from resd.context.fields import as_id, as_section, ids_in, is_id
from resd.context.playbook import SECTIONS


@pytest.mark.parametrize(
    ("names", "slug"),
    [
        ("sai|SAI|[sai]|sai-00000|strategies_and_insights|STRATEGIES & INSIGHTS|Strategy", "sai"),
        ("calc|formulas|FORMULAS & CALCULATIONS|calc (formulas and calculations)", "calc"),
        ("code|Code Snippets|code_snippets_and_templates|templates", "code"),
        ("err|Common Mistakes|ERR: mistakes|mistakes in code|Errors|section err", "err"),
        ("heu|PROBLEM-SOLVING HEURISTICS|problem_solving_heuristics", "heu"),
        ("ctx|context_clues_and_indicators|Clues", "ctx"),
        ("misc|others|Other|miscellaneous|", "misc"),
    ],
)
def test_sections_in_any_spelling(names, slug):
    for name in names.split("|"):
        assert as_section(name) == (slug, True), name
    assert as_section("nonsense") == ("misc", False)


def test_every_section_is_known_by_its_slug_and_by_its_title():
    for slug, title in SECTIONS.items():
        assert as_section(slug) == as_section(title) == (slug, True)


@pytest.mark.parametrize(
    ("spelled", "id_"),
    [
        *((s, "sai-00012") for s in ("sai-00012", " [SAI-12] ", "`sai_12`:", "sai 000000012")),
        ("[sai-00012] helpful=1 harmful=0 :: text", "sai-00012"),
        ("sai-123456", "sai-123456"),
        ("all but sai-00012", "all but sai-00012"),
        ("sai-" + "9" * 5000, "sai-" + "9" * 5000),
        ("a\u2028b\x00", "a b"),
        (12, ""),
    ],
)
def test_ids_in_odd_forms(spelled, id_):
    assert as_id(spelled) == id_


def test_what_is_one_id():
    for value in ("err-00012", " [SAI-12] ", "`sai_12`:", "lesson 7", "a" * 20 + "-1"):
        assert is_id(value), value
    for value in ("", "the end", "err-", "all but sai-00012", "a" * 38 + "-1", 12, None, ["sai-1"]):
        assert not is_id(value), value


def test_ids_of_a_text():
    assert ids_in("[SAI-1] and err 2,") == ["sai-00001", "err-00002"]
    assert ids_in("`ERR-2`") == ["err-00002"]
    assert ids_in("as err-00002 says") == ["as err-00002 says"]  # no id, so it names no entry
