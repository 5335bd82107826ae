"""The playbook: a persistent list of lessons that all samples share (paper: section 3.3, App. D).

`book` is the door; `entry` is one lesson, `admission` says which are shown, `concise` which leave.
"""

from resd.context.playbook.book import Playbook
from resd.context.playbook.config import PlaybookConfig
from resd.context.playbook.entry import SECTIONS, Entry, Operation, Tag

__all__ = ["SECTIONS", "Entry", "Operation", "Playbook", "PlaybookConfig", "Tag"]
