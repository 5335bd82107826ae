"""resd: post-train a language model from its failures.

Reflection-Enhanced Self-Distillation (arXiv 2605.12741). Environments and playbooks import
without torch; `resd.api` holds `train`, `resume` and `evaluate_model`.
"""

from resd.tasks.base import Environment
from resd.types import ChatMessage, Example, Outcome

__version__ = "0.1.0"

__all__ = ["ChatMessage", "Environment", "Example", "Outcome", "__version__"]
