"""Prompt templates: files that a task or a user can replace one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
import jinja2.sandbox

from resd.context.playbook import Entry
from resd.context.reflection import Reflection

BUILT_IN = Path(__file__).parent / "templates"
NAMES = ("teacher", "reflect", "curate", "review")


class TemplateError(ValueError):
    """A template is missing, does not parse, or uses a variable that does not exist."""


class Templates:
    """Renders `teacher`, `reflect`, `curate` and `review` (success tagging).

    Args:
        directories: searched first to last for `NAME.jinja`, before the built-in templates.

    Raises:
        TemplateError: a directory does not exist, or a template does not render.

    Variables: `question`, `playbook` (entries), `trial`, `feedback`, `reflection` and `solution`;
    what does not exist is empty, and false in a condition.
    """

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        for directory in directories:
            if not directory.is_dir():
                raise TemplateError(f"template directory {directory} does not exist")
        self._environment = jinja2.sandbox.SandboxedEnvironment(
            loader=jinja2.FileSystemLoader([*map(str, directories), str(BUILT_IN)]),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
        sample = [Entry("misc-00001", "a lesson")]
        for name in NAMES:
            self.render(name, "a question", sample, "a trial", "feedback", Reflection("a"), "b")

    def render(
        self,
        name: str,
        question: str,
        playbook: Sequence[Entry] = (),
        trial: str = "",
        feedback: str = "",
        reflection: Reflection | None = None,
        solution: str = "",
    ) -> str:
        """Render one template to the text of a user message."""
        try:
            template = self._environment.get_template(f"{name}.jinja")
            return template.render(
                question=question,
                playbook=playbook,
                trial=trial,
                feedback=feedback,
                reflection=reflection or Reflection(),
                solution=solution,
            ).strip()
        except jinja2.TemplateError as error:
            where = getattr(error, "filename", None) or f"{name}.jinja"
            line = getattr(error, "lineno", None)
            at = f", line {line}" if line else ""
            raise TemplateError(f"template {where}{at}: {error}") from error
