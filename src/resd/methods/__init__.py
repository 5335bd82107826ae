"""What each method does with a scored batch. One method is one file and one line here.

One of a user's own is a file, or of an installed package (`resd.plugins`).
"""

from __future__ import annotations

from typing import Any

from resd.config import find_method
from resd.methods.base import Method, Services
from resd.methods.grpo import Grpo
from resd.methods.handoff import Handoff
from resd.methods.resd import Resd
from resd.methods.sdpo import Sdpo, SdpoSs

REGISTRY: dict[str, type[Method[Any]]] = {
    "resd": Resd,
    "sdpo": Sdpo,
    "sdpo_ss": SdpoSs,
    "grpo": Grpo,
    "handoff": Handoff,
}


def make_method(config: Any, services: Services) -> Method[Any]:
    """The method that a configuration names.

    Raises:
        UserError: it is not built in, and its file is gone or fails.
    """
    made: Method[Any] = (REGISTRY.get(config.name) or find_method(config.name))(config, services)
    return made


__all__ = ["REGISTRY", "Grpo", "Handoff", "Method", "Resd", "Sdpo", "SdpoSs", "make_method"]
