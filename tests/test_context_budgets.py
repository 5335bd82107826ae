"""Exact limits of a prompt's sections: what just fits stays, what does not goes whole."""

from __future__ import annotations

from typing import Any

from resd.context import ContextBudgets, Entry, PromptBuilder, Reflection, Sections, Templates
from resd.types import Example

EXAMPLE = Example("e", [{"role": "user", "content": "Sort."}])


def words(text: str) -> int:
    return len(text.split())


def builder(**budgets: int) -> PromptBuilder:
    def chat(messages: Any) -> int:
        return sum(words(message["content"]) for message in messages)

    return PromptBuilder(Templates(), ContextBudgets(**budgets), words, chat, 10_000)


def test_a_playbook_that_just_fits_is_shown_whole() -> None:
    entries = [Entry(f"err-{i:05d}", f"lesson number {i}", created=i) for i in range(3)]
    lines = [entry.content for entry in entries]
    each = words(entries[0].render())

    def shown(budget: int) -> list[str]:
        prompt = builder(playbook=budget).teacher(EXAMPLE, Sections(entries, feedback="no"))
        assert prompt is not None
        return [line for line in lines if line in prompt[-1]["content"]]

    assert shown(3 * each) == lines
    assert shown(3 * each - 1) == lines[1:]
    assert shown(each) == lines[2:]
    assert shown(each - 1) == []


def test_a_section_that_must_lose_more_than_it_has_is_empty() -> None:
    build = builder()
    text = " ".join(["word"] * 50)
    assert build._cut(text, 50) == build._cut(text, 1_000) == ""
    assert 0 < words(build._cut(text, 30)) <= 20


def test_each_section_may_have_its_budget_and_a_reflections_texts_half_of_it() -> None:
    def fits(name: str, number: int, budget: int) -> bool:
        text = " ".join(f"word{i}" for i in range(number))
        section: Any = text
        budgets = {name: budget}
        if name in ("what_went_wrong", "what_to_do"):
            section, budgets = Reflection(**{name: text}), {"reflection": 2 * budget}
            name = "reflection"
        prompt = builder(**budgets).teacher(EXAMPLE, Sections(**{name: section}))
        return prompt is not None and text in prompt[-1]["content"]

    for name in ("trial", "feedback", "solution", "what_went_wrong", "what_to_do"):
        assert fits(name, 20, 20), name
        assert not fits(name, 21, 20), name
