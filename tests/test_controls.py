"""Controls: what the teacher sees instead of the right context, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import fakes
import pytest
from books import contents
from fakes import Scripted, rollout
from test_context_update import curation, learn, reflection
from test_methods import REFLECTION, seen

from resd.context import Entry, Reflection
from resd.methods.controls import shuffled_entries, shuffled_reflections

FACTS = ("open: hey", "close: end", "verb: lamp zap", "verb: fan buzz")


def entries(*texts: str) -> list[Entry]:
    return [Entry(f"misc-{i:05d}", text, helpful=i) for i, text in enumerate(texts, 1)]


def with_entries(**config: Any) -> Any:
    made = fakes.method("resd", **config)
    made.playbook.entries = {entry.id: entry for entry in entries(*FACTS)}
    return made


@pytest.mark.parametrize("seed", range(5))
def test_each_entry_gets_another_ones_last_word(seed: int) -> None:
    before = entries(*FACTS)
    after = shuffled_entries(before, seed)
    assert [e.id for e in after] == [e.id for e in before]
    assert [e.helpful for e in after] == [e.helpful for e in before]
    for old, new in zip(before, after, strict=True):
        assert new.content.split()[:-1] == old.content.split()[:-1]
        assert new.content.split()[-1] != old.content.split()[-1]
    assert sorted(" ".join(e.content for e in after).split()) == sorted(" ".join(FACTS).split())
    assert [e.content for e in before] == list(FACTS)


def test_an_entry_by_itself_has_nothing_to_exchange() -> None:
    assert shuffled_entries(entries("open: hey"), 0) == []
    assert shuffled_entries([], 0) == []


def test_a_shuffled_playbook_is_shown_and_the_right_one_is_kept() -> None:
    batch = [rollout(answer="a"), rollout(answer="b", passed=True)]
    right, wrong = with_entries(), with_entries(control="shuffled_playbook")
    for sections, plain in zip(seen(wrong, batch), seen(right, batch), strict=True):
        shown, true = sections.playbook, plain.playbook
        assert [e.id for e in shown] == [e.id for e in true]
        assert not {e.content for e in shown} & {e.content for e in true}
        assert (sections.trial, sections.feedback) == (plain.trial, plain.feedback)
    assert contents(wrong.playbook) == list(FACTS)


def test_every_prompt_of_a_step_shows_the_same_shuffled_playbook() -> None:
    first, second = seen(with_entries(control="shuffled_playbook"), [rollout("a"), rollout("b")])
    assert first.playbook == second.playbook


def test_lessons_of_ones_own_stand_in_place_of_the_playbook() -> None:
    made = with_entries(lessons=["close: over", "open: yo"])
    (sections,) = seen(made, [rollout()])
    assert [entry.content for entry in sections.playbook] == ["close: over", "open: yo"]
    assert contents(made.playbook) == list(FACTS)
    (hidden,) = seen(with_entries(lessons=["x"], use_playbook=False), [rollout()])
    assert hidden.playbook == []
    (none,) = seen(with_entries(lessons=[]), [rollout()])
    assert none.playbook == []


def test_a_reflection_is_exchanged_with_one_on_another_example() -> None:
    batch = [rollout(str(i // 2), seed=i) for i in range(6)]
    given = {i: Reflection("wrong", f"of {i // 2}") for i in range(6)}
    found = shuffled_reflections(given, batch)
    assert found.keys() == given.keys()
    for i, other in found.items():
        assert other.what_to_do in {f"of {j}" for j in range(3)} - {f"of {i // 2}"}
    assert shuffled_reflections(given, batch) == found
    assert shuffled_reflections({0: REFLECTION, 1: REFLECTION}, batch) == {}


def test_curators_and_playbook_get_the_right_reflections() -> None:
    batch = [rollout("a", seed=1), rollout("b", seed=2)]
    shown = {}
    for control in (None, "shuffled_reflection"):
        write = Scripted(
            reflection=[reflection("to a"), reflection("to b")],
            curation=[curation("first new lesson"), curation("another thing entirely")],
        )
        _, book, notes, _ = learn(write, batch, control=control)
        assert [s.reflection.what_to_do for s in book.seen["curate"]] == ["to a", "to b"]
        shown[control] = [r.what_to_do for r in notes.reflections if r is not None]
    assert shown == {None: ["to a", "to b"], "shuffled_reflection": ["to b", "to a"]}
