"""Prompt templates: files that a task or a user can replace one by one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from resd.context.headings import line_guard, shows
from resd.context.playbook import Entry
from resd.context.reflection import Reflection
from resd.errors import TemplateError
from resd.text import fenced
from resd.types import ChatMessage

BUILT_IN = Path(__file__).parent / "templates"
NAMES = ("teacher", "reflect", "curate", "review")
_OF_AN_ENTRY = frozenset((*(field.name for field in fields(Entry)), "render", "section"))


class Templates:
    """Renders `teacher`, `reflect`, `curate` and `review` (success tagging).

    Args:
        directories: searched first to last for `NAME.jinja`, before the built-in templates.

    Raises:
        TemplateError: a directory does not exist, or a template does not render.

    Variables: `question`, `playbook` (entries), `trial`, `feedback`, `reflection`, `solution`,
    `conversation` (the messages before the question, each with `role` and `content`; never in
    `teacher`) and `add_only` (whether a curator may only add). What does not exist is empty, and
    false in a condition. The filter `fenced` puts a text between lines of backticks, more of them
    than stand together in the text.
    """

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        for directory in directories:
            if not directory.is_dir():
                raise TemplateError(f"template directory {directory} does not exist")
        self._environment = _Sandbox(
            loader=jinja2.FileSystemLoader([*map(str, directories), str(BUILT_IN)]),
            undefined=jinja2.StrictUndefined,
            auto_reload=False,  # a file that changes must not change a run
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
        self._environment.filters["fenced"] = fenced
        self._shown: dict[tuple[str, str], bool] = {}
        # With everything, with nothing, and with each section missing.
        full: dict[str, Any] = {
            "playbook": [Entry("misc-00001", "a lesson")],
            "trial": "a trial",
            "feedback": "feedback",
            "reflection": Reflection("what went wrong", "what to do"),
            "solution": "a solution",
        }
        without = [{k: v for k, v in full.items() if k != left_out} for left_out in full]
        for name in NAMES:
            for sections in (full, {}, *without):
                self.render(name, "a question", **sections)

    def render(
        self,
        name: str,
        question: str,
        playbook: Sequence[Entry] = (),
        trial: str = "",
        feedback: str = "",
        reflection: Reflection | None = None,
        solution: str = "",
        conversation: Sequence[ChatMessage] = (),
        add_only: bool = False,
    ) -> str:
        """Render one template to the text of a user message."""
        try:
            template = self._environment.get_template(f"{name}.jinja")
            text = template.render(
                question=question,
                playbook=playbook,
                trial=trial,
                feedback=feedback,
                reflection=reflection or Reflection(),
                solution=solution,
                conversation=conversation,
                add_only=add_only,
            )
        except Exception as error:  # a template is a program of the user's: it may raise anything
            raise TemplateError(f"template {_place(error, name)}: {_message(error)}") from error
        return _trim(text, question)

    def guard(self, text: str) -> str:
        """A text in which no line opens a section of any of the templates: such a line is quoted.

        A heading of the teacher's that stands in a trial would be believed by the reflector too.
        """
        return self._guard(text)

    @cached_property
    def _guard(self) -> Callable[[str], str]:
        return line_guard([partial(self.render, name) for name in NAMES])

    def shows(self, name: str, variable: str) -> bool:
        """Whether a template prints `question`, `trial`, `conversation`, ..."""
        if (name, variable) not in self._shown:
            self._shown[name, variable] = shows(partial(self.render, name), variable)
        return self._shown[name, variable]


class _Sandbox(jinja2.sandbox.SandboxedEnvironment):
    """Templates see public attributes alone; those of hundreds of lessons without a long check."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute of an object in a template."""
        if type(obj) is Entry and attribute in _OF_AN_ENTRY:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


def _trim(text: str, question: str) -> str:
    """No white space at the ends, but the question stays as it is."""
    start = text.find(question)
    if start < 0 or not question.strip():
        return text.strip()
    end = text.rfind(question) + len(question)
    return text[:start].lstrip() + text[start:end] + text[end:].rstrip()


def _place(error: BaseException, name: str) -> str:
    """File and line of a mistake: of the error itself, or of the template's frame it came from."""
    where = f"{name}.jinja"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"{error.filename or where}, line {error.lineno}"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.endswith(".jinja"):
            where = f"{frame.filename}, line {frame.lineno}"
    return where


def _message(error: BaseException) -> str:
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}"
