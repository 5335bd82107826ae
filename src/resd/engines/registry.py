"""The one door to engines: a new one is a file beside this, and a line in `resd.config.ENGINES`.

One of a user's own is a file, or of an installed package (`resd.plugins`).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from resd import plugins
from resd.backend import Backend, Local
from resd.config import ENGINES, RunConfig
from resd.engines.base import Engine, EngineKind
from resd.errors import UserError


def check_engine(config: RunConfig, context: int) -> None:
    """Refuse an engine that cannot work, or options that it does not read.

    Args:
        config: of the run.
        context: most tokens of prompt and response together.

    Raises:
        UserError: one line that says what to do.
    """
    chosen = config.engine
    own = _kind(chosen.kind).options
    for name in type(chosen).model_fields:
        if name in ("kind", *own) or getattr(chosen, name) is None:
            continue
        owners = [kind for kind in ENGINES if name in _kind(kind).options]
        whose = " and ".join(owners) or "engines of your own"
        other = f", or set engine.kind to {owners[0]}" if owners else ""
        raise UserError(
            f"engine.{name} does not go with engine.kind {chosen.kind}: it is an option of "
            f"{whose}; leave it out{other}"
        )
    _kind(chosen.kind).check(config, context)


def make_engine(
    config: RunConfig, model: Any, tokenizer: Any, context: int, backend: Backend | None = None
) -> Engine:
    """The engine that a run's configuration names.

    Args:
        config: of the run, checked by `check_engine`.
        model: the student, as it was loaded.
        tokenizer: the student's.
        context: most tokens of prompt and response together.
        backend: the processes that share the model; each has an engine.

    Raises:
        UserError: it cannot start.
    """
    make = _kind(config.engine.kind).make
    return make(config, model, tokenizer, context, backend or Local())


def _kind(name: str) -> EngineKind:
    # Only the engine that a run names is imported whole; none imports vLLM by itself.
    if name in ENGINES:
        kind: EngineKind = import_module(ENGINES[name]).ENGINE
        return kind
    place = plugins.place_of("engine", name)
    assert place is not None  # the configuration was checked
    kind = plugins.load("engine", place, lambda found: isinstance(found, EngineKind), "EngineKind")
    return kind
