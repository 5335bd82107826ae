"""resd: post-train a language model from its failures.

Reflection-Enhanced Self-Distillation (arXiv 2605.12741). Environments and playbooks import
without torch; `resd.api` holds `train`, `resume` and `evaluate_model`; `load_run` opens what a run
left.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resd.tasks.base import Environment
from resd.types import ChatMessage, Example, Outcome

__version__ = "0.1.0"

__all__ = ["ChatMessage", "Environment", "Example", "Outcome", "__version__", "load_run"]

if TYPE_CHECKING:
    from resd.loaded import Run


def load_run(path: str | Path) -> Run:
    """A run on disk: see `resd.loaded.Run`.

    Raises:
        UserError: there is no run at `path`.
    """
    from resd.loaded import Run  # an environment needs nothing of what a run is read with

    return Run(Path(path))
