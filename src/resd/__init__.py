"""resd: post-train a language model from its failures.

Reflection-Enhanced Self-Distillation (arXiv 2605.12741). `train` makes a run, `load_run` opens one
that is on disk, `evaluate` measures a model (docs/python.md). What is developed without a model,
environments and playbooks, imports without torch: everything else is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resd.errors import StopTraining
from resd.tasks.base import Environment
from resd.types import ChatMessage, Example, Outcome

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "ChatMessage",
    "Environment",
    "Evaluation",
    "Example",
    "Outcome",
    "Run",
    "StopTraining",
    "__version__",
    "evaluate",
    "load_run",
    "train",
]

if TYPE_CHECKING:
    from resd.api import evaluate, train
    from resd.loaded import Run
    from resd.loop.callbacks import Callback
    from resd.loop.evaluate import Evaluation

_LATER = {
    "Callback": "resd.loop.callbacks",
    "Evaluation": "resd.loop.evaluate",
    "Run": "resd.loaded",
    "evaluate": "resd.api",
    "train": "resd.api",
}


def __getattr__(name: str) -> Any:
    """What needs torch or pydantic, when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def load_run(path: str | Path) -> Run:
    """A run on disk: see `resd.loaded.Run`.

    Raises:
        UserError: there is no run at `path`.
    """
    from resd.loaded import Run  # an environment needs nothing of what a run is read with

    return Run(Path(path))
