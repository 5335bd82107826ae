"""What the method remembers and shows its teacher: playbook, reflections, solutions, prompts.

Imports without torch.
"""

from resd.context.curation import Curation, parse_curation
from resd.context.playbook import Entry, Operation, Playbook, PlaybookConfig
from resd.context.reflection import Reflection, parse_reflection, parse_success_tags
from resd.context.solutions import SolutionBuffer
from resd.context.teacher_prompt import ContextBudgets, PromptBuilder, Sections
from resd.context.templates import Templates
from resd.errors import TemplateError

__all__ = [
    "ContextBudgets",
    "Curation",
    "Entry",
    "Operation",
    "Playbook",
    "PlaybookConfig",
    "PromptBuilder",
    "Reflection",
    "Sections",
    "SolutionBuffer",
    "TemplateError",
    "Templates",
    "parse_curation",
    "parse_reflection",
    "parse_success_tags",
]
