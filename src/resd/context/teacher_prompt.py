"""Prompts that fit: every section has a token budget, and nothing essential is ever cut.

Shared text (the playbook) stands first in every template, so that prefix caches work. When a
prompt is too long, the oldest playbook entries go, then trial, solution, feedback and reflection
are shortened in the middle. The messages of the example, the instructions of the template and the
chat header stay whole; if they alone are too long there is no prompt.

Nothing is taken out of a text because of what it says: model output comes here without its
thinking, and feedback or a lesson about `</think>` is shown as it is. But no line of a text can
open a section of the template (`Templates.guard`), and none a turn (`ChatFormat`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from resd.context.playbook import Entry
from resd.context.reflection import Reflection
from resd.context.spans import Span, section_spans
from resd.context.templates import Templates
from resd.text import CountTokens, clip, fenced, one_line, printable, shorten
from resd.types import ChatMessage, Example

# What a prompt is about: if all of it had to go, there is no prompt.
_SUBJECTS = {"reflect": ("trial", "feedback"), "curate": ("reflection",), "review": ("solution",)}
_ROUNDS = 32
_LINES_KEPT = 4096
_TEXTS_KEPT = 128
_PLAYBOOKS_KEPT = 4
# Of an entry, what decides whether it fits: id, content, counts, and when it was created.
_Line = tuple[str, str, int, int, int]


class ContextBudgets(BaseModel):
    """Most tokens of each section of a teacher, reflector or curator prompt."""

    model_config = ConfigDict(extra="forbid")

    playbook: int = Field(8192, ge=0, description="playbook section; the oldest entries go first")
    trial: int = Field(8192, ge=0, description="the student's own earlier response")
    feedback: int = Field(4096, ge=0, description="what the environment said")
    reflection: int = Field(2048, ge=0, description="what the model wrote about its failure")
    solution: int = Field(8192, ge=0, description="a response that passed")


@dataclass(frozen=True)
class Sections:
    """What a prompt may show; an empty section is left out, never printed empty.

    Model output (trial, reflection, solution) comes without its thinking.
    """

    playbook: Sequence[Entry] = ()
    trial: str = ""
    feedback: str = ""
    reflection: Reflection = field(default_factory=Reflection)
    solution: str = ""


class PromptBuilder:
    """Builds chat prompts from templates within token budgets.

    Args:
        templates: the templates.
        budgets: most tokens of each section.
        count_tokens: tokens of a text.
        count_chat: tokens of a whole prompt with the chat template and the assistant header.
        max_tokens: most tokens of a whole prompt.
        scrub: cleans untrusted text (control characters, role marks: `ChatFormat.harmless`).
        add_only: whether the curator may only ADD (its template shows nothing else then).
    """

    def __init__(
        self,
        templates: Templates,
        budgets: ContextBudgets,
        count_tokens: CountTokens,
        count_chat: Callable[[Sequence[ChatMessage]], int],
        max_tokens: int,
        scrub: Callable[[str], str] = printable,
        add_only: bool = False,
    ) -> None:
        self.templates = templates
        self.budgets = budgets
        self.max_tokens = max_tokens
        self._count = count_tokens
        self._count_chat = count_chat
        self._scrub = scrub
        self._add_only = add_only
        # Every prompt of a step shows the same lines, and reflector and teacher the same texts:
        # each is cleaned and counted once.
        self._count_line = lru_cache(_LINES_KEPT)(count_tokens)
        self._clean_content = lru_cache(_LINES_KEPT)(self._clean_line)
        self._find_fitting = lru_cache(_PLAYBOOKS_KEPT)(self._search_fitting)
        self._clean_text = lru_cache(_TEXTS_KEPT)(self._clean)

    def teacher(self, example: Example, sections: Sections) -> list[ChatMessage] | None:
        """The self-teacher's prompt: the student's, its last message wrapped in context.

        Returns None if the question alone is longer than `max_tokens`.
        """
        return self._fit("teacher", example, sections)

    def teacher_and_spans(
        self, example: Example, sections: Sections
    ) -> tuple[list[ChatMessage], list[Span]] | None:
        """The self-teacher's prompt, and where in its last message each section stands."""
        fitted = self._fitted("teacher", example, sections)
        if fitted is None:
            return None
        messages, shown = fitted
        spans = section_spans(
            messages[-1]["content"],
            self.templates.guard(example.prompt[-1]["content"]),
            [entry.content for entry in shown.playbook],
            [
                ("trial", shown.trial),
                ("feedback", shown.feedback),
                ("reflection", shown.reflection.what_went_wrong),
                ("reflection", shown.reflection.what_to_do),
                ("solution", shown.solution),
            ],
        )
        return messages, spans

    def reflect(self, example: Example, sections: Sections) -> list[ChatMessage] | None:
        """The reflector's prompt: playbook, the example's messages, trial and feedback.

        One user message: the example's system message is shown in it, and does not command the
        reflector. A template without `conversation` gets the earlier messages before the question.

        Returns None if there is no room for the question and some of trial or feedback.
        """
        return self._fit("reflect", example, sections)

    def curate(self, example: Example, sections: Sections) -> list[ChatMessage] | None:
        """The curator's prompt: playbook and reflection.

        Returns None if there is no room for any of the reflection.
        """
        return self._fit("curate", example, sections)

    def review(self, example: Example, sections: Sections) -> list[ChatMessage] | None:
        """The success tagger's prompt: playbook, the example's messages and solution.

        Returns None if there is no room for the question and some of the solution.
        """
        return self._fit("review", example, sections)

    def _fit(self, name: str, example: Example, given: Sections) -> list[ChatMessage] | None:
        fitted = self._fitted(name, example, given)
        return fitted[0] if fitted else None

    def _fitted(
        self, name: str, example: Example, given: Sections
    ) -> tuple[list[ChatMessage], Sections] | None:
        """The prompt, and the sections as it shows them."""
        subjects = [subject for subject in _SUBJECTS.get(name, ()) if getattr(given, subject)]
        sections, round_ = self._within_budgets(given), 0
        while True:
            if subjects and not any(getattr(sections, subject) for subject in subjects):
                return None
            messages = self._render(name, example, sections)
            excess = self._count_chat(messages) - self.max_tokens
            if excess <= 0:
                return messages, sections
            # A tokenizer may count parts and whole so differently that cuts come to nothing: after
            # some rounds whole sections go.
            round_ += 1
            smaller = self._shrink(sections, excess if round_ < _ROUNDS else 1 << 60)
            if smaller is None:
                return None
            sections = smaller

    def _render(self, name: str, example: Example, sections: Sections) -> list[ChatMessage]:
        *before, last = example.prompt
        question, kept, conversation = last["content"], list(before), []
        if _shown(sections):
            question = self.templates.guard(question)
        if name != "teacher":
            kept = []
            conversation = [
                ChatMessage(role=m["role"], content=self.templates.guard(m["content"]))
                for m in before
            ]
        if conversation and not self.templates.shows(name, "conversation"):
            question = _with_conversation(conversation, question)
        text = self.templates.render(
            name,
            question=question,
            playbook=sections.playbook,
            trial=sections.trial,
            feedback=sections.feedback,
            reflection=sections.reflection,
            solution=sections.solution,
            conversation=conversation,
            add_only=self._add_only,
        )
        return [*kept, {"role": "user", "content": text}]

    def _within_budgets(self, sections: Sections) -> Sections:
        clean = self._clean_text
        budgets, reflection = self.budgets, sections.reflection
        return Sections(
            playbook=self._fitting(sections.playbook),
            trial=clean(sections.trial, budgets.trial),
            feedback=clean(sections.feedback, budgets.feedback),
            reflection=replace(
                reflection,
                what_went_wrong=clean(reflection.what_went_wrong, budgets.reflection // 2),
                what_to_do=clean(reflection.what_to_do, budgets.reflection // 2),
            ),
            solution=clean(sections.solution, budgets.solution),
        )

    def _clean(self, text: str, budget: int) -> str:
        # Cut first: a megabyte is not worth cleaning to show a page of it.
        text = self.templates.guard(self._scrub(clip(text, budget)).strip())
        return shorten(text, budget, self._count)

    def _fitting(self, entries: Sequence[Entry]) -> list[Entry]:
        """The newest entries that can be shown within the budget, cleaned.

        Every prompt of a step shows the same playbook: what is kept of it is found once.
        """
        shown = self._find_fitting(
            tuple((e.id, e.content, e.helpful, e.harmful, e.created) for e in entries)
        )
        return [
            entries[place]
            if entries[place].content == content
            else replace(entries[place], content=content)
            for place, content in shown
        ]

    def _search_fitting(self, lines: tuple[_Line, ...]) -> list[tuple[int, str]]:
        """Places and cleaned contents of the entries that fit."""
        found: list[tuple[int, Entry]] = []
        for place, (id_, content, helpful, harmful, created) in enumerate(lines):
            entry = Entry(id_, self._clean_content(content), helpful, harmful, created)
            # One that never fits must not drive out all others.
            if entry.content and self._line_tokens(entry) <= self.budgets.playbook:
                found.append((place, entry))
        kept = self._newest([entry for _, entry in found], self.budgets.playbook)
        return [(found[i][0], found[i][1].content) for i in kept]

    def _clean_line(self, content: str) -> str:
        return self.templates.guard(one_line(self._scrub(content)))

    def _newest(self, entries: Sequence[Entry], budget: int) -> list[int]:
        """Places of the newest entries that fit the budget, in order."""
        left, kept = budget, []
        for place, entry in sorted(enumerate(entries), key=lambda p: (-p[1].created, -p[0])):
            left -= self._line_tokens(entry)
            if left < 0:
                break
            kept.append(place)
        return sorted(kept)

    def _line_tokens(self, entry: Entry) -> int:
        return self._count_line(entry.render() + "\n")

    def _shrink(self, sections: Sections, excess: int) -> Sections | None:
        """Take about `excess` tokens out of the least needed section; None if all are empty."""
        if sections.playbook:
            had = sum(self._line_tokens(entry) for entry in sections.playbook)
            places = self._newest(sections.playbook, max(0, had - excess))
            kept = [sections.playbook[place] for place in places]
            if len(kept) == len(sections.playbook):
                kept.remove(min(kept, key=lambda entry: entry.created))
            return replace(sections, playbook=kept)
        for name in ("trial", "solution", "feedback"):
            if text := getattr(sections, name):
                cut: Any = {name: self._cut(text, excess)}
                return replace(sections, **cut)
        for name in ("what_went_wrong", "what_to_do"):
            if text := getattr(sections.reflection, name):
                cut = {name: self._cut(text, excess)}
                return replace(sections, reflection=replace(sections.reflection, **cut))
        return None

    def _cut(self, text: str, excess: int) -> str:
        shorter = shorten(text, max(0, self._count(text) - excess), self._count)
        return shorter if len(shorter) < len(text) else ""


def _shown(sections: Sections) -> bool:
    return any(getattr(sections, section.name) for section in fields(sections))


def _with_conversation(conversation: Sequence[ChatMessage], question: str) -> str:
    """The whole conversation as one text, for a template that shows a question alone."""
    earlier = [f"{m['role']} message:\n{fenced(m['content'])}" for m in conversation]
    return "\n\n".join((*earlier, question))
